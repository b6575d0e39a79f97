"""Subnets, addresses, MACs."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.errors import Conflict, Invalid, Unavailable
from insula.networks import ipam

SMALL = ipaddress.ip_network("10.1.0.0/29")  # hosts .1 to .6


def test_addresses_go_round_and_skip_what_is_taken() -> None:
    taken = {"10.1.0.1"}
    given_out = []
    last = ""
    for _ in range(5):
        last = ipam.choose_address(SMALL, taken, last=last)
        given_out.append(last)
        taken.add(last)
    assert given_out == [f"10.1.0.{n}" for n in (2, 3, 4, 5, 6)]
    taken.remove("10.1.0.3")
    assert ipam.choose_address(SMALL, taken, last=last) == "10.1.0.3"
    with pytest.raises(Unavailable, match="no available IPv4 addresses"):
        ipam.choose_address(SMALL, {*taken, "10.1.0.3"}, last=last)


@given(st.sets(st.integers(1, 254)), st.integers(0, 255))
def test_a_chosen_address_is_free_and_a_host(taken: set[int], last: int) -> None:
    subnet = ipaddress.ip_network("10.2.3.0/24")
    used = {f"10.2.3.{n}" for n in taken}
    if len(taken) == 254:
        return
    chosen = ipam.choose_address(subnet, used, last=f"10.2.3.{last}")
    assert chosen not in used
    assert ipaddress.IPv4Address(chosen) in subnet and not chosen.endswith((".0", ".255"))


def test_a_range_within_the_subnet() -> None:
    subnet = ipaddress.ip_network("10.1.0.0/16")
    assert ipam.choose_address(subnet, {"10.1.0.1"}, ip_range="10.1.5.0/30") == "10.1.5.0"
    assert ipam.choose_address(subnet, set(), ip_range="10.1.0.0/30") == "10.1.0.1", "never the network's own address"
    with pytest.raises(Unavailable):
        ipam.choose_address(subnet, {f"10.1.5.{n}" for n in range(4)}, ip_range="10.1.5.0/30")


def test_asked_addresses() -> None:
    assert ipam.check_address(SMALL, "10.1.0.4", {"10.1.0.1"}) == "10.1.0.4"
    with pytest.raises(Conflict, match="already in use"):
        ipam.check_address(SMALL, "10.1.0.1", {"10.1.0.1"})
    for wrong in ("10.1.0.0", "10.1.0.7", "10.2.0.1", "::1", "x", ""):
        with pytest.raises(Invalid):
            ipam.check_address(SMALL, wrong, set())


@pytest.mark.parametrize(
    "text", ["10.1.0.1/24", "10.0.0.0/4", "10.0.0.0/31", "fd00::/127", "ff02::/64", "127.0.0.0/8", "224.0.0.0/24", "x"]
)
def test_subnets_that_cannot_be(text: str) -> None:
    with pytest.raises(Invalid):
        ipam.parse_subnet(text)


def test_overlaps_ignore_the_default_route_and_its_halves() -> None:
    subnet = ipaddress.ip_network("10.88.0.0/16")
    assert ipam.overlapping(subnet, ["0.0.0.0/0", "0.0.0.0/1", "10.89.0.0/16"]) == ""
    assert ipam.overlapping(subnet, ["10.0.0.0/8"]) == "10.0.0.0/8"
    assert ipam.overlapping(subnet, ["10.88.3.0/24"]) == "10.88.3.0/24"


def test_the_default_subnet_gives_way() -> None:
    assert ipam.choose_default("10.88.0.0/16", []) == "10.88.0.0/16"
    assert ipam.choose_default("10.88.0.0/16", ["10.88.0.0/24"]) == "10.64.0.0/16"
    assert ipam.choose_default("10.88.0.0/16", ["10.0.0.0/8"]) == "172.18.0.0/16"
    with pytest.raises(Unavailable):
        ipam.choose_default("10.88.0.0/16", ["10.0.0.0/8", "172.16.0.0/12"])


def test_pools() -> None:
    pools = (("10.1.0.0/23", 24), ("10.9.0.0/24", 24))
    assert ipam.choose_subnet(pools, ["0.0.0.0/0"]) == "10.1.0.0/24"
    assert ipam.choose_subnet(pools, ["10.1.0.128/25"]) == "10.1.1.0/24"
    assert ipam.choose_subnet(pools, ["10.1.0.0/16"]) == "10.9.0.0/24"
    with pytest.raises(Unavailable, match="non-overlapping"):
        ipam.choose_subnet(pools, ["10.0.0.0/8"])


def test_gateways() -> None:
    assert ipam.choose_gateway(SMALL) == "10.1.0.1"
    assert ipam.choose_gateway(SMALL, "10.1.0.6") == "10.1.0.6"
    for wrong in ("10.1.0.0", "10.1.0.7", "10.1.1.1", "x"):
        with pytest.raises(Invalid):
            ipam.choose_gateway(SMALL, wrong)


def test_macs() -> None:
    assert ipam.mac_of("10.88.0.2") == "02:42:0a:58:00:02"
    assert ipam.check_mac("02-AA-bb-00-00-01") == "02:aa:bb:00:00:01"
    for wrong in ("", "02:aa", "01:00:5e:00:00:01", "00:00:00:00:00:00", "zz:00:00:00:00:00"):
        with pytest.raises(Invalid):
            ipam.check_mac(wrong)
