"""Who reaches whom: segments, the host, the outside, published ports, isolation."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from host.networks_support import HOST, OUTSIDE, World, ask, listening, make_world, run_in
from insula.errors import Conflict, Invalid, Unavailable, Unsupported
from insula.host import netlink, netns
from insula.model.instance import PortMapping
from insula.networks.contract import Endpoint, Network
from insula.networks.manager import NodeNetworks

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made


@pytest.fixture
async def nets(world: World) -> AsyncIterator[NodeNetworks]:
    async with world.networks() as opened:
        yield opened


async def join(nets: NodeNetworks, owner: str, network: str = "default", **more: object) -> Endpoint:
    path = await nets.make_namespace(owner)
    return await nets.connect(network, owner, netns=path, **more)  # type: ignore[arg-type]


async def test_end_points_of_a_segment_reach_each_other_and_the_gateway(nets: NodeNetworks) -> None:
    a, b = await join(nets, "a"), await join(nets, "b")
    for target in (b.address, a.gateway):
        code, told = await run_in(a.netns, "busybox", "ping", "-c1", "-W2", target)
        assert code == 0, told
    async with listening(b.netns, b.address, 80):
        assert await ask(a.netns, b.address, 80) == a.address


async def test_inside_a_namespace_is_what_docker_shows(nets: NodeNetworks) -> None:
    a = await join(nets, "a", address="10.88.7.7")
    _, links = await run_in(a.netns, "ip", "-o", "link")
    assert [line.split(": ")[1].split("@")[0] for line in links.splitlines()] == ["lo", "eth0"]
    assert "link/ether 02:42:0a:58:07:07" in links and "state UP" in links
    _, addresses = await run_in(a.netns, "ip", "-o", "addr")
    assert "10.88.7.7/16 brd 10.88.255.255" in addresses and "inet6 fe80" not in addresses
    _, routes = await run_in(a.netns, "ip", "route")
    assert "default via 10.88.0.1 dev eth0" in routes
    _, low = await run_in(a.netns, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start")
    assert low.strip() == "0"


async def test_what_leaves_wears_the_hosts_address(nets: NodeNetworks, world: World) -> None:
    a = await join(nets, "a")
    async with listening(world.outside, OUTSIDE, 80):
        assert await ask(a.netns, OUTSIDE, 80) == HOST


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_published_port_answers_from_everywhere(nets: NodeNetworks, world: World, protocol: str) -> None:
    a, neighbour = await join(nets, "a"), await join(nets, "b")
    await nets.create(Network(id="", name="other"))
    stranger = await join(nets, "c", "other")
    mapping = PortMapping(container_port=80, host_port=8080, protocol=protocol)  # type: ignore[arg-type]
    await nets.publish("a", a.address, [mapping])
    async with listening(a.netns, a.address, 80, protocol=protocol):
        assert await ask(world.outside, HOST, 8080, protocol=protocol) == OUTSIDE
        assert await ask(world.host, "127.0.0.1", 8080, protocol=protocol) == a.gateway
        assert await ask(world.host, HOST, 8080, protocol=protocol) in (HOST, a.gateway)
        assert await ask(neighbour.netns, HOST, 8080, protocol=protocol) == a.gateway
        assert await ask(a.netns, HOST, 8080, protocol=protocol) == a.gateway
        assert await ask(stranger.netns, HOST, 8080, protocol=protocol) == a.gateway
    await nets.unpublish("a")
    with pytest.raises((Unavailable, OSError)):
        await ask(world.outside, HOST, 8080, protocol=protocol, deadline_s=0.5)


async def test_a_udp_flow_that_goes_on_follows_the_port(nets: NodeNetworks, world: World) -> None:
    """One asker with one socket, before the port is open, to the first end point, then to the second."""
    a, b = await join(nets, "a"), await join(nets, "b")
    loop = asyncio.get_running_loop()
    sock = await netns.connect_in_netns(world.outside, HOST, 8085, protocol="udp")

    async def reply() -> str:
        with contextlib.suppress(ConnectionRefusedError):
            await loop.sock_sendall(sock, b"?")
        async with asyncio.timeout(2):
            return (await loop.sock_recv(sock, 100)).decode()

    try:
        with pytest.raises(ConnectionRefusedError):
            await reply()
        mapping = PortMapping(container_port=80, host_port=8085, protocol="udp")
        servers = [listening(e.netns, e.address, 80, protocol="udp", answer=e.owner.encode()) for e in (a, b)]
        async with servers[0], servers[1]:
            await nets.publish("a", a.address, [mapping])
            assert await reply() == "a"
            await nets.unpublish("a")
            await nets.publish("b", b.address, [mapping])
            assert await reply() == "b"
    finally:
        sock.close()


async def test_a_port_published_on_loopback_is_the_hosts_alone(nets: NodeNetworks, world: World) -> None:
    a, b = await join(nets, "a"), await join(nets, "b")
    await nets.publish("a", a.address, [PortMapping(container_port=80, host_port=8081, host_ip="127.0.0.1")])
    async with listening(a.netns, a.address, 80):
        assert await ask(world.host, "127.0.0.1", 8081) == a.gateway
        for asker in (world.outside, b.netns):
            with pytest.raises(Unavailable):
                await ask(asker, HOST, 8081, deadline_s=0.5)


async def test_loopback_of_the_host_stays_closed_to_segments(nets: NodeNetworks, world: World) -> None:
    """route_localnet must not let an end point send to 127.0.0.1 of the host (CVE-2020-8558)."""
    a = await join(nets, "a")
    async with listening(world.host, "127.0.0.1", 9999) as (_, askers):
        await run_in(a.netns, "ip", "route", "add", "127.0.0.9/32", "via", a.gateway)
        await run_in(
            a.netns, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; ip addr del 127.0.0.1/8 dev lo"
        )
        await run_in(a.netns, "ip", "route", "add", "127.0.0.1/32", "via", a.gateway, "src", a.address)
        with pytest.raises(Unavailable):
            await ask(a.netns, "127.0.0.1", 9999, deadline_s=0.5)
        assert askers == []


async def test_unpublished_ports_are_closed_to_the_outside(nets: NodeNetworks, world: World) -> None:
    a = await join(nets, "a")
    await run_in(world.outside, "ip", "route", "add", "10.88.0.0/16", "via", HOST)
    async with listening(a.netns, a.address, 81):
        with pytest.raises(Unavailable):
            await ask(world.outside, a.address, 81, deadline_s=0.5)


async def test_user_made_networks_are_apart(nets: NodeNetworks) -> None:
    for name in ("red", "blue"):
        await nets.create(Network(id="", name=name))
    red, blue = await join(nets, "r", "red"), await join(nets, "b", "blue")
    async with listening(blue.netns, blue.address, 80):
        with pytest.raises(Unavailable):
            await ask(red.netns, blue.address, 80, deadline_s=0.5)
        both = await nets.connect("blue", "r", netns=red.netns)
        assert both.interface == "eth1"
        assert await ask(red.netns, blue.address, 80) == both.address
        await nets.disconnect("r", "blue")
        _, links = await run_in(red.netns, "ip", "-o", "link")
        assert "eth1" not in links


async def test_leaving_the_first_network_moves_the_default_route(nets: NodeNetworks, world: World) -> None:
    a = await join(nets, "a")
    await nets.create(Network(id="", name="second"))
    second = await nets.connect("second", "a", netns=a.netns)
    await nets.disconnect("a", "default")
    _, routes = await run_in(a.netns, "ip", "route", "show", "default")
    assert f"default via {second.gateway} dev eth1" in routes
    async with listening(world.outside, OUTSIDE, 80):
        assert await ask(a.netns, OUTSIDE, 80) == HOST


async def test_an_internal_network_leads_nowhere(nets: NodeNetworks, world: World) -> None:
    await nets.create(Network(id="", name="vault", internal=True))
    a, b = await join(nets, "a", "vault"), await join(nets, "b", "vault")
    assert a.gateway == ""
    async with listening(world.outside, OUTSIDE, 80), listening(b.netns, b.address, 80):
        assert await ask(a.netns, b.address, 80) == a.address
        network = await nets.get("vault")
        await run_in(a.netns, "ip", "route", "add", "default", "via", network.gateway)
        with pytest.raises(Unavailable):
            await ask(a.netns, OUTSIDE, 80, deadline_s=0.5)


async def test_a_taken_port_is_refused_in_dockers_words(nets: NodeNetworks, world: World) -> None:
    a, b = await join(nets, "a"), await join(nets, "b")
    ports = [PortMapping(container_port=80, host_port=8082)]
    await nets.publish("a", a.address, ports)
    with pytest.raises(Conflict) as refused:
        await nets.publish("b", b.address, [PortMapping(container_port=81, host_port=8083), *ports], name="web")
    assert refused.value.message == (
        f"driver failed programming external connectivity on endpoint web ({b.id}): "
        "Bind for 0.0.0.0:8082 failed: port is already allocated"
    )
    assert await nets.published("b") == []
    with pytest.raises(Conflict, match="port is already allocated"):
        await nets.publish("b", b.address, [PortMapping(container_port=80, host_port=8082, host_ip="127.0.0.1")])
    assert await nets.publish("b", b.address, [PortMapping(container_port=81, host_port=8083)])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_the_host_and_published_ports_exclude_each_other(nets: NodeNetworks, world: World, protocol: str) -> None:
    a = await join(nets, "a")
    async with listening(world.host, "0.0.0.0", 0, protocol=protocol) as (taken, _):
        mapping = PortMapping(container_port=80, host_port=taken, protocol=protocol)  # type: ignore[arg-type]
        with pytest.raises(Conflict, match="port is already allocated"):
            await nets.publish("a", a.address, [mapping])
    (opened,) = await nets.publish("a", a.address, [mapping])
    with pytest.raises(OSError, match="in use"):
        async with listening(world.host, "0.0.0.0", opened.host_port, protocol=protocol):
            pass
    await nets.unpublish("a")
    async with listening(world.host, "0.0.0.0", opened.host_port, protocol=protocol):
        pass


async def test_port_zero_takes_a_free_one(nets: NodeNetworks, world: World) -> None:
    a = await join(nets, "a")
    async with listening(world.host, "0.0.0.0", 32768):
        opened = await nets.publish("a", a.address, [PortMapping(container_port=p) for p in (80, 81)])
    assert [p.host_port for p in opened] == [32769, 32770]
    assert list(await nets.published("a")) == list(opened)
    assert await nets.publish("a", a.address, [PortMapping(container_port=80, host_port=32769)]) == [opened[0]]


@pytest.mark.parametrize(
    ("mapping", "error"),
    [
        (PortMapping(container_port=80, host_ip="::1"), Unsupported),
        (PortMapping(container_port=80, host_ip="pots"), Invalid),
        (PortMapping(container_port=80, host_port=9, host_ip="203.0.113.5"), Invalid),
        (PortMapping(container_port=70000), Invalid),
        (PortMapping(container_port=0), Invalid),
    ],
)
async def test_mappings_that_cannot_be(nets: NodeNetworks, mapping: PortMapping, error: type[Exception]) -> None:
    a = await join(nets, "a")
    with pytest.raises(error):
        await nets.publish("a", a.address, [mapping])


async def test_port_53_can_be_published_and_dns_of_segments_goes_on(nets: NodeNetworks, world: World) -> None:
    await nets.create(Network(id="", name="names"))
    a = await join(nets, "a", "names", aliases=["web"])
    mapping = PortMapping(container_port=53, host_port=53, protocol="udp")
    await nets.publish("a", a.address, [mapping])
    code, told = await run_in(a.netns, "busybox", "nslookup", "-type=a", "web", a.gateway)
    assert code == 0 and a.address in told, told
    async with listening(a.netns, a.address, 53, protocol="udp"):
        assert await ask(world.outside, HOST, 53, protocol="udp") == OUTSIDE


async def test_flushed_rules_come_back_with_the_next_change(nets: NodeNetworks, world: World) -> None:
    a = await join(nets, "a")
    await run_in(world.host, "nft", "flush", "ruleset")
    await nets.publish("a", a.address, [PortMapping(container_port=80, host_port=8084)])
    async with listening(a.netns, a.address, 80):
        assert await ask(world.outside, HOST, 8084) == OUTSIDE


async def test_dockers_forward_policy_is_passed_by_its_own_chain(world: World) -> None:
    rules = (
        "table ip filter { chain DOCKER-USER { return; }; "
        "chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }; }"
    )
    code, told = await run_in(world.host, "nft", rules)
    assert code == 0, told
    async with world.networks() as nets:
        a = await join(nets, "a")
        async with listening(world.outside, OUTSIDE, 80):
            assert await ask(a.netns, OUTSIDE, 80) == HOST
        assert not [note for note in await nets.probe() if "FORWARD" in note]
    _, told = await run_in(world.host, "nft", "list", "ruleset")
    assert "insula" not in told and "DOCKER-USER" in told


async def test_a_firewall_that_drops_is_named_with_the_remedy(world: World) -> None:
    await run_in(
        world.host,
        "nft",
        "table inet strict { chain f { type filter hook forward priority 0; policy drop; }; "
        "chain i { type filter hook input priority 0; policy drop; }; }",
    )
    async with world.networks() as nets:
        notes = [note for note in await nets.probe() if "strict" in note]
        assert len(notes) == 2 and "inet strict i" in notes[0] and "inet strict f" in notes[1]
        for command in (part for note in notes for part in note.rpartition(": ")[2].split("; ")):
            code, told = await run_in(world.host, "sh", "-c", command)
            assert code == 0, told
        a = await join(nets, "a")
        async with listening(world.outside, OUTSIDE, 80):
            assert await ask(a.netns, OUTSIDE, 80) == HOST


async def test_the_default_subnet_gives_way_to_a_route_of_the_host(world: World) -> None:
    with netns.inside(world.host), netlink.Rtnl() as rtnl:
        index = rtnl.link("up0").index  # type: ignore[union-attr]
        rtnl.run(netlink.add_address(index, "10.88.3.4", 24))
    async with world.networks() as nets:
        assert (await nets.get("default")).subnet == "10.64.0.0/16"
    async with world.networks(default_subnet="10.99.0.0/16") as nets:
        assert (await nets.get("default")).subnet == "10.64.0.0/16", "what was chosen once stays"


async def test_two_insulas_on_one_host_choose_apart(world: World, tmp_path: Path) -> None:
    async with world.networks() as first:
        options = world.options(prefix="it2", table="itest2")
        second = await NodeNetworks.open(tmp_path / "s2", tmp_path / "r2", **options)
        try:
            assert (await first.get("default")).subnet != (await second.get("default")).subnet
            made = [await one.create(Network(id="", name="n")) for one in (first, second)]
            assert made[0].subnet != made[1].subnet
            b = await join(second, "b")
            await first.recover([])
            async with listening(world.outside, OUTSIDE, 80):
                assert await ask(b.netns, OUTSIDE, 80) == HOST
        finally:
            await second.destroy()


async def test_dial_into_a_namespace(nets: NodeNetworks) -> None:
    a = await join(nets, "a")
    async with listening(a.netns, "127.0.0.1", 7000):
        assert await ask(a.netns, "localhost", 7000) == "127.0.0.1"
    with pytest.raises(Unavailable, match="Nothing answers at localhost:7001"):
        await netns.connect_in_netns(a.netns, "localhost", 7001)


def test_a_socket_stays_in_its_namespace(world: World) -> None:
    with netns.inside(world.outside):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind((OUTSIDE, 0))
