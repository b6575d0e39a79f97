"""Options of bridge networks, several networks at one end point, networks on a parent interface: real traffic."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import dnslib
import pytest

from host.networks_support import HOST, OUTSIDE, World, ask, bound, listening, lookup, make_world, run_in
from insula.errors import Forbidden, HostFault, Invalid, NotFound, Unavailable
from insula.host import netlink, netns
from insula.model.instance import PortMapping
from insula.networks import options
from insula.networks.contract import AddressRange, Endpoint, Network
from insula.networks.manager import NodeNetworks

pytestmark = pytest.mark.root

MODE = "com.docker.network.bridge.gateway_mode_ipv4"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made


@pytest.fixture
async def nets(world: World) -> AsyncIterator[NodeNetworks]:
    async with world.networks() as opened:
        yield opened


async def join(nets: NodeNetworks, owner: str, network: str, **more: object) -> Endpoint:
    return await nets.connect(network, owner, netns=await nets.make_namespace(owner), **more)  # type: ignore[arg-type]


async def make(nets: NodeNetworks, name: str, subnet: str = "", **more: object) -> Network:
    ranges = (AddressRange(subnet=subnet),) if subnet else ()
    return await nets.create(Network(id="", name=name, ranges=ranges, **more))  # type: ignore[arg-type]


async def unreached(asker: str | Path, address: str, port: int = 80) -> None:
    with pytest.raises((Unavailable, OSError)):
        await ask(asker, address, port, deadline_s=0.5)


def route(world: World) -> None:
    """The outside machine sends to the host what it has no other way for, as a router in between would."""
    with netns.inside(world.outside), netlink.Rtnl() as rtnl:
        rtnl.run(netlink.add_default_route(rtnl.link("eth0").index, HOST))  # type: ignore[union-attr]


@contextlib.contextmanager
def kernel_module() -> Iterator[None]:
    """What this kernel lacks cannot be tried with it."""
    try:
        yield
    except HostFault as fault:
        if fault.code != errno.EOPNOTSUPP:
            raise
        pytest.skip(str(fault))


async def test_without_traffic_between_end_points(nets: NodeNetworks, world: World) -> None:
    await make(nets, "apart", options={options.ICC: "false"})
    a, b = await join(nets, "a", "apart"), await join(nets, "b", "apart")
    async with listening(b.netns, b.address, 80), listening(world.outside, OUTSIDE, 81):
        await unreached(a.netns, b.address)
        assert await ask(world.host, b.address, 80) == b.gateway
        assert await ask(a.netns, OUTSIDE, 81) == HOST


async def test_without_masquerading_addresses_are_kept(nets: NodeNetworks, world: World) -> None:
    await make(nets, "plain", "10.71.0.0/24", options={options.MASQUERADE: "false"})
    route(world)
    a = await join(nets, "a", "plain")
    async with listening(world.outside, OUTSIDE, 80):
        assert await ask(a.netns, OUTSIDE, 80) == a.address


async def test_a_routed_network_is_reached_at_its_own_addresses(nets: NodeNetworks, world: World) -> None:
    await make(nets, "routed", "10.72.0.0/24", options={MODE: "routed"})
    route(world)
    a = await join(nets, "a", "routed")
    async with listening(a.netns, a.address, 80), listening(a.netns, a.address, 81):
        await unreached(world.outside, a.address)
        opened = await nets.publish("a", a.address, [PortMapping(container_port=80, host_port=8080)])
        assert [(each.host_port, each.address) for each in opened] == [(0, a.address)]
        assert await ask(world.outside, a.address, 80) == OUTSIDE
        await unreached(world.outside, a.address, 81)
        await unreached(world.outside, HOST, 8080)
        await nets.unpublish("a")
        await unreached(world.outside, a.address)


async def test_an_unprotected_network_is_reached_at_every_port(nets: NodeNetworks, world: World) -> None:
    await make(nets, "bare", "10.73.0.0/24", options={MODE: "nat-unprotected"})
    await make(nets, "other")
    route(world)
    a, b = await join(nets, "a", "bare"), await join(nets, "b", "other")
    async with listening(a.netns, a.address, 80), listening(world.outside, OUTSIDE, 81):
        assert await ask(world.outside, a.address, 80) == OUTSIDE
        assert await ask(a.netns, OUTSIDE, 81) == HOST
        await unreached(b.netns, a.address)


async def test_ports_of_an_internal_network_are_not_opened(nets: NodeNetworks, world: World) -> None:
    await make(nets, "vault", internal=True)
    a, b = await join(nets, "a", "vault"), await join(nets, "b", "vault", aliases=["b"])
    assert await nets.publish("a", a.address, [PortMapping(container_port=80, host_port=8080)]) == []
    async with listening(a.netns, a.address, 80), listening(world.outside, OUTSIDE, 81):
        assert await ask(b.netns, a.address, 80) == b.address
        await unreached(world.outside, HOST, 8080)
        await unreached(a.netns, OUTSIDE, 81)
    gateway = (await nets.get("vault")).gateway
    assert await lookup(a.netns, gateway, "b") == [b.address]
    assert await lookup(a.netns, gateway, "example.com") == ["SERVFAIL"]  # nobody outside is asked from in there


async def test_a_source_address_of_the_host_s(nets: NodeNetworks, world: World) -> None:
    with netns.inside(world.host), netlink.Rtnl() as rtnl:
        rtnl.run(netlink.add_address(rtnl.link("up0").index, "192.0.2.77", 24))  # type: ignore[union-attr]
    await make(nets, "wears", options={"com.docker.network.host_ipv4": "192.0.2.77"})
    a = await join(nets, "a", "wears")
    async with listening(world.outside, OUTSIDE, 80):
        assert await ask(a.netns, OUTSIDE, 80) == "192.0.2.77"


async def test_names_of_all_networks_of_the_asker_and_of_no_other(nets: NodeNetworks) -> None:
    for name in ("front", "back", "secret"):
        await make(nets, name)
    a = await join(nets, "a", "front", aliases=["a"])
    await nets.connect("back", "a", netns=a.netns, aliases=["a"])
    b = await join(nets, "b", "back", aliases=["db"])
    c = await join(nets, "c", "secret", aliases=["hidden"])
    server = (await nets.get("front")).gateway

    for name in ("db", "db.back", "DB"):
        assert await lookup(a.netns, server, name) == [b.address]
    assert await lookup(a.netns, server, "hidden") != [c.address]
    await nets.disconnect("a", "back")
    assert await lookup(a.netns, server, "db") != [b.address]


async def test_docker_s_address_of_the_resolver(nets: NodeNetworks) -> None:
    """127.0.0.11 is written into many configurations; it works from inside, and opens nothing to neighbours."""
    for name in ("front", "back"):
        await make(nets, name)
    a = await join(nets, "a", "front", aliases=["a"])
    b = await join(nets, "b", "front", aliases=["b"])
    assert await lookup(a.netns, "127.0.0.11", "b") == [b.address]
    await nets.connect("back", "a", netns=a.netns, aliases=["a"])
    c = await join(nets, "c", "back", aliases=["c"])
    assert await lookup(a.netns, "127.0.0.11", "c") == [c.address]
    await nets.disconnect("a", "front")
    assert await lookup(a.netns, "127.0.0.11", "c") == [c.address]
    async with listening(a.netns, "127.0.0.1", 8000):
        await run_in(c.netns, "ip", "route", "add", "127.0.0.1/32", "via", (await nets.endpoints(owner="a"))[0].address)
        await unreached(c.netns, "127.0.0.1", 8000)


async def test_an_owner_s_own_resolvers_are_asked_for_the_rest(nets: NodeNetworks, world: World) -> None:
    await make(nets, "front")
    a = await join(nets, "a", "front", aliases=["a"], resolvers=["192.0.2.8"])
    b = await join(nets, "b", "front", aliases=["b"])
    with netns.inside(world.outside), netlink.Rtnl() as rtnl:
        rtnl.run(netlink.add_address(rtnl.link("eth0").index, "192.0.2.8", 24))  # type: ignore[union-attr]
    reply = dnslib.DNSRecord.question("example.org").reply()
    reply.add_answer(dnslib.RR("example.org", rdata=dnslib.A("203.0.113.8")))

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(data[:2] + reply.pack()[2:], addr)  # type: ignore[attr-defined]

    sock = await bound(world.outside, "192.0.2.8", 53, socket.SOCK_DGRAM)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Server, sock=sock)
    try:
        assert await lookup(a.netns, a.gateway, "example.org") == ["203.0.113.8"]
        assert await lookup(a.netns, a.gateway, "b") == [b.address]
        assert await lookup(b.netns, b.gateway, "example.org") == ["SERVFAIL"]  # nobody is at the host's resolver
    finally:
        transport.close()
        await asyncio.sleep(0)


async def test_who_has_the_default_route(nets: NodeNetworks) -> None:
    for name in ("alpha", "beta"):
        await make(nets, name)

    async def gateway(path: str) -> str:
        _, told = await run_in(path, "ip", "route", "get", OUTSIDE)
        return told.split(" via ")[1].split()[0]

    beta = await join(nets, "a", "beta")
    alpha = await nets.connect("alpha", "a", netns=beta.netns)
    assert await gateway(beta.netns) == alpha.gateway  # by name, where nobody says more
    await nets.disconnect("a", "alpha")
    assert await gateway(beta.netns) == beta.gateway
    await nets.disconnect("a", "beta")
    first = await nets.connect("beta", "a", netns=beta.netns, priority=5)
    await nets.connect("alpha", "a", netns=beta.netns)
    assert await gateway(beta.netns) == first.gateway


async def test_settings_of_an_interface(nets: NodeNetworks) -> None:
    words = {options.SYSCTLS: "net.ipv4.conf.IFNAME.log_martians=1", options.IFNAME: "lan0"}
    a = await join(nets, "a", "default", options=words)
    code, told = await run_in(a.netns, "cat", "/proc/sys/net/ipv4/conf/lan0/log_martians")
    assert (code, told.strip()) == (0, "1")


# --- on a parent interface -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
async def test_end_points_on_the_link_of_the_host(nets: NodeNetworks, world: World, driver: str) -> None:
    wish = Network(
        id="", name="lan", driver=driver, options={"parent": "up0"},
        ranges=(AddressRange(subnet="192.0.2.0/24", gateway=OUTSIDE, ip_range="192.0.2.128/25"),),
    )  # fmt: skip
    network = await nets.create(wish)
    with pytest.raises(Forbidden, match="already using parent interface up0"):
        await nets.create(Network(id="", name="second", driver=driver, options={"parent": "up0"}))
    with kernel_module():
        a = await join(nets, "a", "lan")
    assert (a.address, a.gateway, a.host_interface) == ("192.0.2.128", OUTSIDE, "")
    async with listening(world.outside, OUTSIDE, 80), listening(a.netns, a.address, 81):
        assert await ask(a.netns, OUTSIDE, 80) == a.address
        assert await ask(world.outside, a.address, 81) == OUTSIDE
    assert await nets.publish("a", a.address, [PortMapping(container_port=80, host_port=8080)]) == []
    with pytest.raises(Forbidden, match="machine cannot be connected"):
        await nets.connect_tap("lan", "vm")
    await nets.disconnect("a", "lan")
    _, links = await run_in(a.netns, "ip", "-o", "link")
    assert "eth0" not in links
    await nets.remove(network.id)
    with netns.inside(world.host), netlink.Rtnl() as rtnl:
        assert rtnl.link("up0") is not None


async def test_a_routed_ipvlan(nets: NodeNetworks, world: World) -> None:
    options_ = {"parent": "up0", "ipvlan_mode": "l3"}
    ranges = (AddressRange(subnet="10.74.0.0/24"), AddressRange(subnet="10.75.0.0/24"))
    await nets.create(Network(id="", name="l3", driver="ipvlan", options=options_, ranges=ranges))
    with kernel_module():
        a, b = await join(nets, "a", "l3"), await join(nets, "b", "l3", address="10.75.0.9")
    assert (a.gateway, a.on_link) == ("", True)
    async with listening(b.netns, b.address, 80):
        assert await ask(a.netns, b.address, 80) == a.address  # the parent routes between its subnets


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
async def test_without_a_parent_they_reach_each_other_alone(nets: NodeNetworks, world: World, driver: str) -> None:
    await nets.create(Network(id="", name="alone", driver=driver))
    with kernel_module():
        a, b = await join(nets, "a", "alone"), await join(nets, "b", "alone")
    async with listening(b.netns, b.address, 80), listening(world.outside, OUTSIDE, 81):
        assert await ask(a.netns, b.address, 80) == a.address
        await unreached(a.netns, OUTSIDE, 81)
    for owner in ("a", "b"):
        await nets.disconnect(owner)
    await nets.remove("alone")
    with netns.inside(world.host), netlink.Rtnl() as rtnl:
        assert [link.name for link in rtnl.links() if link.name.startswith("itd")] == []


async def test_a_vlan_is_made_and_removed(nets: NodeNetworks, world: World) -> None:
    wish = Network(id="", name="v10", driver="macvlan", options={"parent": "up0.10"})
    with kernel_module():
        await nets.create(wish)
    with netns.inside(world.host), netlink.Rtnl() as rtnl:
        assert rtnl.link("up0.10") is not None
    await nets.recover([])
    await nets.remove("v10")
    with netns.inside(world.host), netlink.Rtnl() as rtnl:
        assert rtnl.link("up0.10") is None


@pytest.mark.parametrize("wrong", [{"parent": "nowhere"}, {"parent": "up0.5000"}, {"macvlan_mode": "sideways"}])
async def test_parents_that_cannot_be(nets: NodeNetworks, wrong: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        await nets.create(Network(id="", name="wrong", driver="macvlan", options=wrong))
    with pytest.raises(NotFound):
        await nets.get("wrong")


async def test_they_go_on_after_a_restart(world: World) -> None:
    first = await world.open()
    await first.create(Network(id="", name="alone", driver="macvlan"))
    a, b = await join(first, "a", "alone"), await join(first, "b", "alone")
    await first.close()
    async with world.networks() as again:
        await again.recover(["a", "b"])
        async with listening(b.netns, b.address, 80):
            assert await ask(a.netns, b.address, 80) == a.address
