"""The address ranges of networks, and what is chosen for an end point: pure."""

from __future__ import annotations

import msgspec
import pytest

from insula.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from insula.host.netlink import Route
from insula.networks import ipam, options
from insula.networks.configs import check_unused, inherit
from insula.networks.contract import AddressRange, Endpoint, Network
from insula.networks.ranges import complete, give, range_with, ranges_of
from insula.networks.reserve import Wish, by_rank, reserve, with_metrics

POOLS = (("10.9.0.0/16", 24), ("fd12:3456:789a::/48", 64))


def network(*ranges: AddressRange, **more: object) -> Network:
    return Network(id="n", name="net", ranges=ranges, **more)  # type: ignore[arg-type]


def made(*ranges: AddressRange, others: tuple[Network, ...] = (), **more: object) -> Network:
    return complete(network(*ranges, **more), others=others, routes=(), pools=POOLS)


def test_old_networks_have_one_range() -> None:
    old = Network(id="n", name="net", subnet="10.1.0.0/24", gateway="10.1.0.1", ip_range="10.1.0.128/25")
    assert ranges_of(old) == [AddressRange(subnet="10.1.0.0/24", gateway="10.1.0.1", ip_range="10.1.0.128/25")]
    assert ranges_of(old, 6) == []


def test_both_versions_are_chosen() -> None:
    both = made(ipv6=True)
    assert [(each.subnet, each.gateway, each.chosen) for each in both.ranges] == [
        ("10.9.0.0/24", "10.9.0.1", True),
        ("fd12:3456:789a::/64", "fd12:3456:789a::1", True),
    ]
    assert (both.subnet, both.gateway) == ("10.9.0.0/24", "10.9.0.1")
    second = made(ipv6=True, others=(both,))
    assert [each.subnet for each in second.ranges] == ["10.9.1.0/24", "fd12:3456:789a:1::/64"]


def test_the_order_of_what_was_asked_does_not_matter() -> None:
    six, four = AddressRange(subnet="2001:db8::/64"), AddressRange(subnet="10.1.0.0/24", gateway="10.1.0.9")
    done = made(six, four, ipv6=True)
    assert [(each.subnet, each.gateway) for each in done.ranges] == [
        ("10.1.0.0/24", "10.1.0.9"),
        ("2001:db8::/64", "2001:db8::1"),
    ]


def test_a_gateway_is_chosen_from_the_range() -> None:
    done = made(AddressRange(subnet="10.1.0.0/24", ip_range="10.1.0.128/25", reserved={"router": "10.1.0.129"}))
    assert done.gateway == "10.1.0.128"
    kept = made(AddressRange(subnet="10.1.0.0/24", reserved={"router": "10.1.0.1"}))
    assert kept.gateway == "10.1.0.2"


@pytest.mark.parametrize(
    ("ranges", "error", "sentence"),
    [
        ((AddressRange(subnet="10.1.0.0/24"), AddressRange(subnet="10.1.0.0/25")), Forbidden, "Pool overlaps"),
        ((AddressRange(subnet="10.200.0.0/25"),), Forbidden, "Pool overlaps"),
        ((AddressRange(subnet="192.0.2.0/25"),), Invalid, "attached to"),
        ((AddressRange(subnet="10.1.0.0/24", reserved={"a": "10.2.0.1"}),), Forbidden, r"\(a:10.2.0.1\) must belong"),
        ((AddressRange(subnet="10.1.0.0/24", gateway="10.2.0.1"),), Invalid, "gateway"),
        ((AddressRange(subnet="10.1.0.0/24", gateway="10.1.0.7", reserved={"a": "10.1.0.7"}),), Invalid, "in use"),
        ((AddressRange(subnet="10.1.0.0/24", ip_range="fd00::/80"),), Invalid, "does not lie"),
        ((AddressRange(subnet="", gateway="10.1.0.1"),), Invalid, "needs a subnet"),
    ],
)
def test_ranges_that_cannot_be(ranges: tuple[AddressRange, ...], error: type[Exception], sentence: str) -> None:
    other = network(AddressRange(subnet="10.200.0.0/24"))
    with pytest.raises(error, match=sentence):
        complete(network(*ranges), others=(other,), routes=(Route(destination="192.0.2.0/24"),), pools=POOLS)


def test_reserved_addresses_are_never_given() -> None:
    done = made(AddressRange(subnet="10.1.0.0/29", reserved={"printer": "10.1.0.2", "scanner": "10.1.0.4"}))
    given = give(done, 4, "", [], {})
    assert given and given[0] == "10.1.0.3"
    with pytest.raises(Conflict, match=r"already in use: 10\.1\.0\.2"):
        give(done, 4, "10.1.0.2", [], {})


def test_several_subnets_fill_one_after_the_other() -> None:
    done = made(AddressRange(subnet="10.1.0.0/30"), AddressRange(subnet="10.2.0.0/30"))
    first = give(done, 4, "", [], {})
    assert first and first[0] == "10.1.0.2"
    there = [endpoint(address="10.1.0.2")]
    second = give(done, 4, "", there, {})
    assert second and (second[0], second[1].gateway) == ("10.2.0.2", "10.2.0.1")
    with pytest.raises(Unavailable):
        give(done, 4, "", [*there, endpoint(address="10.2.0.2")], {})
    asked = give(done, 4, "10.2.0.2", [], {})
    assert asked and asked[1].subnet == "10.2.0.0/30"


@pytest.mark.parametrize("text", ["fd00::5%x } ; flush ruleset", "fd00::5%eth0"])
def test_an_address_with_a_zone_never_becomes_a_rule(text: str) -> None:
    both = made(AddressRange(subnet="10.1.0.0/24"), AddressRange(subnet="fd00::/64"), ipv6=True)
    with pytest.raises(Invalid):
        give(both, 6, text, [], {})
    with pytest.raises(Invalid):
        made(AddressRange(subnet="10.1.0.0/24"), AddressRange(subnet="fd00::/64", gateway=text), ipv6=True)
    with pytest.raises(Invalid):
        made(AddressRange(subnet="10.1.0.0/24"), AddressRange(subnet=f"{text}/64"), ipv6=True)


def test_an_address_of_a_version_that_is_not_there() -> None:
    with pytest.raises(Invalid, match="does not belong to any of this network's subnets"):
        give(made(), 6, "fd00::5", [], {})


def test_the_block_of_unique_local_addresses_is_the_node_s_own() -> None:
    block, prefix = ipam.ula_pool("one")
    assert block.startswith("fd") and block.endswith("/48") and prefix == 64
    assert (block, prefix) == ipam.ula_pool("one") != ipam.ula_pool("two")


# --- end points -----------------------------------------------------------------------------------------------------


def endpoint(**more: object) -> Endpoint:
    words = {
        "id": "e",
        "network": "n",
        "owner": "a",
        "interface": "eth0",
        "host_interface": "v",
        "mac": "02:00:00:00:00:01",
    }
    return Endpoint(**({**words, "address": "", "prefix": 24, "gateway": ""} | more))  # type: ignore[arg-type]


def test_what_an_end_point_gets() -> None:
    both = made(ipv6=True)
    chosen = reserve(both, Wish(owner="a", netns="/x"), [], {}, prefix="ins")
    assert (chosen.address, chosen.prefix, chosen.gateway) == ("10.9.0.2", 24, "10.9.0.1")
    assert (chosen.address6, chosen.prefix6, chosen.gateway6) == ("fd12:3456:789a::2", 64, "fd12:3456:789a::1")
    assert (chosen.interface, chosen.metric, chosen.mac) == ("eth0", 0, "02:42:0a:09:00:02")
    other = msgspec.structs.replace(both, id="m", internal=True)
    second = reserve(other, Wish(owner="a", netns="/x"), [chosen], {}, prefix="ins")
    assert (second.interface, second.metric, second.gateway, second.gateway6) == ("eth1", 1, "", "")
    assert range_with(both, chosen.address6).subnet == "fd12:3456:789a::/64"


def test_names_of_interfaces() -> None:
    named = made(options={options.PREFIX: "lan"})
    assert reserve(named, Wish(owner="a", netns="/x"), [], {}, prefix="ins").interface == "lan0"
    asked = Wish(owner="a", netns="/x", options={options.IFNAME: "uplink"})
    there = reserve(made(), asked, [], {}, prefix="ins")
    assert there.interface == "uplink"
    with pytest.raises(Conflict, match="uplink"):
        reserve(msgspec.structs.replace(named, id="m"), asked, [there], {}, prefix="ins")
    with pytest.raises(Invalid):
        reserve(made(), Wish(owner="a", netns="/x", options={options.IFNAME: "a/b"}), [], {}, prefix="ins")


def test_settings_of_an_interface() -> None:
    words = "net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.conf.IFNAME.accept_ra=2"
    assert options.sysctls({options.SYSCTLS: words}) == [
        ("net.ipv4.conf.IFNAME.log_martians", "1"),
        ("net.ipv6.conf.IFNAME.accept_ra", "2"),
    ]
    for wrong in ("net.ipv4.ip_forward=1", "net.ipv4.conf.eth0.forwarding=1", "x", "net.ipv4.conf.IFNAME.../x=1"):
        with pytest.raises(Invalid):
            options.sysctls({options.SYSCTLS: wrong})


def test_who_has_the_default_route() -> None:
    names = {"a": "alpha", "b": "beta", "c": "closed"}
    alpha = endpoint(network="a", gateway="10.1.0.1")
    beta = endpoint(network="b", gateway="10.2.0.1")
    closed = endpoint(network="c")
    assert by_rank([closed, beta, alpha], names) == [alpha, beta, closed]
    first = msgspec.structs.replace(beta, priority=1)
    assert by_rank([closed, alpha, first], names) == [first, alpha, closed]


def test_end_points_of_an_older_ledger_keep_their_order() -> None:
    old = [endpoint(id=str(n), interface=f"eth{n}", netns="/x") for n in range(3)] + [endpoint(id="o", netns="/y")]
    assert [each.metric for each in with_metrics(old)] == [0, 1, 2, 0]
    new = [endpoint(metric=4, netns="/x"), endpoint(metric=3, interface="eth1", netns="/x")]
    assert with_metrics(new) == new


# --- settings that are lent -------------------------------------------------------------------------------------------


def test_a_configuration_is_lent() -> None:
    lender = network(
        AddressRange(subnet="10.1.0.0/24"), config_only=True, options={"parent": "eth0"}, labels={"a": "b"}
    )
    wish = Network(id="", name="x", driver="macvlan", config_from="net", labels={"c": "d"})
    got = inherit(wish, [lender])
    assert (got.ranges, got.options, got.labels) == (lender.ranges, lender.options, {"a": "b", "c": "d"})
    with pytest.raises(Forbidden, match='configuration network "net" is in use'):
        check_unused(lender, [lender, got])
    check_unused(lender, [lender])
    for wrong in ({"options": {"x": "y"}}, {"ranges": lender.ranges}, {"config_only": True}):
        with pytest.raises(Forbidden):
            inherit(msgspec.structs.replace(wish, **wrong), [lender])
    with pytest.raises(NotFound, match='configuration network "net" does not exist'):
        inherit(wish, [msgspec.structs.replace(lender, config_only=False)])
