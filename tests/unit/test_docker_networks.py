"""Networks in Docker's words, read and shown. Sentences and statuses as dockerd's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from insula.api.docker.errors import status_of
from insula.api.docker.networks_words import NetworkWords, network_of, network_words
from insula.errors import InsulaError
from insula.networks.contract import AddressRange, Network


def read(**fields: Any) -> Network:
    return network_of(msgspec.convert({"Name": "n", **fields}, NetworkWords))


def ipam(*ranges: dict[str, Any]) -> dict[str, Any]:
    return {"IPAM": {"Config": list(ranges)}}


def test_what_is_asked_for_is_kept() -> None:
    made = read(
        Driver="macvlan",
        EnableIPv6=True,
        Options={"parent": "eth0"},
        Labels={"a": "b"},
        ConfigFrom={"Network": ""},
        **ipam(
            {
                "Subnet": "10.1.0.0/24",
                "IPRange": "10.1.0.128/25",
                "Gateway": "10.1.0.9",
                "AuxiliaryAddresses": {"x": "10.1.0.5"},
            },
            {"Subnet": "fd00::/64"},
        ),
    )
    assert made.ranges == (
        AddressRange(subnet="10.1.0.0/24", ip_range="10.1.0.128/25", gateway="10.1.0.9", reserved={"x": "10.1.0.5"}),
        AddressRange(subnet="fd00::/64"),
    )
    assert (made.driver, made.ipv6, made.options, made.labels) == ("macvlan", True, {"parent": "eth0"}, {"a": "b"})
    assert read(ConfigOnly=True, Driver="bridge").driver == "none"
    assert read(**ipam({"Subnet": "fd00::/64"})).ranges == ()  # as dockerd: without EnableIPv6 they do not count


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        ({"Name": "bridge"}, 403, "operation is not permitted on predefined bridge network "),
        ({"Name": ""}, 400, "invalid name: "),
        ({"Driver": "none"}, 404, 'plugin "none" not found'),
        ({"IPAM": {"Driver": "foo"}}, 404, 'plugin "foo" not found'),
        ({"Ingress": True}, 403, "Ingress network can only be global scope network"),
        ({"Scope": "swarm"}, 403, "cannot create a swarm scoped network when swarm is not active"),
        ({"EnableIPv4": False}, 501, "a network without IPv4 is not supported: leave EnableIPv4 out"),
    ],
)
def test_refusals(fields: dict[str, Any], status: int, sentence: str) -> None:
    with pytest.raises(InsulaError) as caught:
        read(**fields)
    assert (status_of(caught.value), caught.value.message) == (status, sentence)


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        ({"Subnet": "bad"}, ["invalid subnet bad: invalid CIDR block notation"]),
        ({"Gateway": "10.1.1.1"}, ["invalid subnet : invalid CIDR block notation"]),
        ({"Subnet": "10.1.0.5/24"}, ["invalid subnet 10.1.0.5/24: it should be 10.1.0.0/24"]),
        (
            {"Subnet": "10.1.0.0/24", "Gateway": "10.2.0.1", "IPRange": "10.1.0.0/16"},
            [
                "invalid ip-range 10.1.0.0/16: CIDR block is bigger than its parent subnet 10.1.0.0/24",
                "invalid gateway 10.2.0.1: parent subnet 10.1.0.0/24 doesn't contain this address",
            ],
        ),
        ({"Subnet": "10.1.0.0/24", "Gateway": "x"}, ["invalid gateway x: invalid address"]),
        ({"Subnet": "fd00::%x/64"}, ["invalid subnet fd00::%x/64: invalid CIDR block notation"]),
        ({"Subnet": "10.1.0.0/24", "Gateway": "fd00::1"}, ["invalid gateway fd00::1: parent subnet is an IPv4 block"]),
        ({"Subnet": "10.1.0.0/24", "IPRange": "x"}, ["invalid ip-range x: invalid CIDR block notation"]),
        (
            {"Subnet": "10.1.0.0/24", "IPRange": "fd00::/80"},
            ["invalid ip-range fd00::/80: parent subnet is an IPv4 block"],
        ),
        (
            {"Subnet": "10.1.0.0/24", "IPRange": "10.1.0.5/25"},
            ["invalid ip-range 10.1.0.5/25: it should be 10.1.0.0/25"],
        ),
        (
            {"Subnet": "10.1.0.0/24", "IPRange": "10.2.0.0/25"},
            ["invalid ip-range 10.2.0.0/25: parent subnet 10.1.0.0/24 doesn't contain ip-range"],
        ),
        (
            {"Subnet": "10.1.0.0/24", "AuxiliaryAddresses": {"a": "10.9.0.1"}},
            ["invalid auxiliary address a: parent subnet 10.1.0.0/24 doesn't contain this address"],
        ),
    ],
)
def test_every_fault_of_the_ranges_is_told(given: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(InsulaError) as caught:
        read(**ipam(given))
    assert caught.value.message.splitlines() == ["invalid network config:", *faults]


def test_how_a_network_is_shown() -> None:
    network = Network(
        id="i",
        name="default",
        bridge="ins0",
        builtin=True,
        ipv6=True,
        ranges=(
            AddressRange(subnet="10.88.0.0/16", gateway="10.88.0.1"),
            AddressRange(subnet="fd00::/64", gateway="fd00::1"),
        ),
    )
    words = network_words(network, {})
    assert (words["Name"], words["Driver"], words["EnableIPv6"], words["Scope"]) == ("bridge", "bridge", True, "local")
    assert words["IPAM"]["Config"] == [
        {"Subnet": "10.88.0.0/16", "Gateway": "10.88.0.1"},
        {"Subnet": "fd00::/64", "Gateway": "fd00::1"},
    ]
    assert words["Options"]["com.docker.network.bridge.name"] == "ins0"
    lent = msgspec.structs.replace(network, builtin=False, driver="none", config_only=True, config_from="")
    assert (network_words(lent, {})["Driver"], network_words(lent, {})["ConfigOnly"]) == ("null", True)
