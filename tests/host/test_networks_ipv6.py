"""Networks with both IP versions: real traffic, published ports, names."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from host.networks_support import (
    HOST,
    HOST6,
    OUTSIDE,
    OUTSIDE6,
    World,
    add_ipv6,
    ask,
    listening,
    lookup,
    make_world,
    run_in,
)
from insula.errors import Conflict, Unavailable, Unsupported
from insula.model.instance import PortMapping
from insula.networks.contract import AddressRange, Endpoint, Network
from insula.networks.manager import NodeNetworks

pytestmark = pytest.mark.root

FIXED = (AddressRange(subnet="10.66.0.0/24"), AddressRange(subnet="fd66::/64"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        add_ipv6(made)
        yield made


@pytest.fixture
async def nets(world: World) -> AsyncIterator[NodeNetworks]:
    async with world.networks() as opened:
        await opened.create(Network(id="", name="six", ipv6=True, ranges=FIXED))
        yield opened


async def join(nets: NodeNetworks, owner: str, network: str = "six", **more: object) -> Endpoint:
    return await nets.connect(network, owner, netns=await nets.make_namespace(owner), **more)  # type: ignore[arg-type]


async def test_end_points_have_both_and_leave_by_both(nets: NodeNetworks, world: World) -> None:
    a, b = await join(nets, "a"), await join(nets, "b", address6="fd66::77")
    assert (a.address6, a.prefix6, a.gateway6, b.address6) == ("fd66::2", 64, "fd66::1", "fd66::77")
    async with listening(b.netns, b.address6, 80):
        assert await ask(a.netns, b.address6, 80) == a.address6
    async with listening(world.outside, OUTSIDE6, 80), listening(world.outside, OUTSIDE, 81):
        assert await ask(a.netns, OUTSIDE6, 80) == HOST6  # NAT66
        assert await ask(a.netns, OUTSIDE, 81) == HOST
    with pytest.raises(Conflict, match="already in use"):
        await join(nets, "c", address6="fd66::77")


async def test_the_default_network_has_it_when_the_settings_say_so(world: World) -> None:
    for wanted, subnet in (("fd88::/64", "fd88::/64"), ("", ""), ("auto", "fd"), ("auto", "fd")):
        nets = await world.open(default_subnet6=wanted)
        try:
            default = await nets.get("default")
            assert (default.ipv6, default.subnet) == (bool(wanted), "10.88.0.0/16")
            assert [each.subnet[: len(subnet)] for each in default.ranges[1:]] == ([subnet] if wanted else [])
            a = await join(nets, "a", "default", address="10.88.0.9")
            assert bool(a.address6) is bool(wanted)
            await nets.disconnect("a")
        finally:
            await nets.close()
    async with world.networks(default_subnet6="auto"):
        pass


async def test_a_chosen_subnet_is_a_unique_local_one(nets: NodeNetworks) -> None:
    made = await nets.create(Network(id="", name="auto", ipv6=True))
    assert made.ranges[1].subnet.startswith("fd") and made.ranges[1].subnet.endswith("/64") and made.ranges[1].chosen
    a = await join(nets, "a", "auto")
    code, told = await run_in(a.netns, "busybox", "ping", "-6", "-c1", "-W2", a.gateway6)
    assert code == 0, told


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_port_opens_on_both_versions(nets: NodeNetworks, world: World, protocol: str) -> None:
    a, b = await join(nets, "a"), await join(nets, "b")
    opened = await nets.publish("a", a.address, [PortMapping(container_port=80, host_port=8080, protocol=protocol)])  # type: ignore[arg-type]
    assert [(each.host_ip, each.host_port) for each in opened] == [("0.0.0.0", 8080), ("::", 8080)]
    async with listening(a.netns, a.address6, 80, protocol=protocol):
        assert await ask(world.outside, HOST6, 8080, protocol=protocol) == OUTSIDE6
        assert await ask(b.netns, HOST6, 8080, protocol=protocol) == a.gateway6
        assert await ask(a.netns, HOST6, 8080, protocol=protocol) == a.gateway6
    async with listening(a.netns, a.address, 80, protocol=protocol):
        assert await ask(world.outside, HOST, 8080, protocol=protocol) == OUTSIDE
    await nets.unpublish("a")
    with pytest.raises((Unavailable, OSError)):
        await ask(world.outside, HOST6, 8080, protocol=protocol, deadline_s=0.5)


async def test_the_hosts_own_loopback_refuses_at_once(nets: NodeNetworks, world: World) -> None:
    """So that a client that asks `localhost` goes on with 127.0.0.1."""
    a = await join(nets, "a")
    await nets.publish("a", a.address, [PortMapping(container_port=80, host_port=8081)])
    async with listening(a.netns, a.address, 80):
        with pytest.raises(Unavailable, match="Connect call failed"):
            await ask(world.host, "::1", 8081)
        assert await ask(world.host, "localhost", 8081) == a.gateway
    with pytest.raises(Unsupported, match=r"127\.0\.0\.1"):
        await nets.publish("a", a.address, [PortMapping(container_port=80, host_port=8082, host_ip="::1")])


async def test_segments_do_not_reach_each_other(nets: NodeNetworks, world: World) -> None:
    await nets.create(Network(id="", name="other", ipv6=True))
    a, b = await join(nets, "a"), await join(nets, "b", "other")
    async with listening(b.netns, b.address6, 80):
        for asker in (a.netns, world.outside):
            with pytest.raises((Unavailable, OSError)):
                await ask(asker, b.address6, 80, deadline_s=0.5)


async def test_names_have_addresses_of_both_versions(nets: NodeNetworks) -> None:
    a = await join(nets, "a", aliases=["web"])
    await join(nets, "b", aliases=["web"])
    assert sorted(await lookup(a.netns, a.gateway, "web", "AAAA")) == ["fd66::2", "fd66::3"]
    reverse = ipaddress.ip_address("fd66::3").reverse_pointer
    assert await lookup(a.netns, a.gateway, reverse, "PTR") == ["web.six."]


async def test_they_are_there_again_after_a_restart(world: World) -> None:
    first = await world.open()
    await first.create(Network(id="", name="six", ipv6=True, ranges=FIXED))
    a = await join(first, "a")
    await first.publish("a", a.address, [PortMapping(container_port=80, host_port=8080)])
    await first.close()
    async with world.networks() as again:
        await again.recover(["a"])
        async with listening(a.netns, a.address6, 80):
            assert await ask(world.outside, HOST6, 8080) == OUTSIDE6
        await asyncio.sleep(0)
