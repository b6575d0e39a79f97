"""DNS and DHCP as real clients ask them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import dnslib
import pytest

from host.networks_support import OUTSIDE, World, ask, bound, listening, make_world, run_in
from insula.host import netlink, netns
from insula.networks.contract import Endpoint, Network, Record
from insula.networks.manager import NodeNetworks

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made


@pytest.fixture
async def nets(world: World) -> AsyncIterator[NodeNetworks]:
    async with world.networks() as opened:
        await opened.create(Network(id="", name="web"))
        yield opened


async def join(nets: NodeNetworks, owner: str, network: str = "web", **more: object) -> Endpoint:
    return await nets.connect(network, owner, netns=await nets.make_namespace(owner), **more)  # type: ignore[arg-type]


async def query(path: str, server: str, name: str, kind: str = "A", *, tcp: bool = False) -> dnslib.DNSRecord:
    """One question from inside of a namespace."""
    packet = dnslib.DNSRecord.question(name, kind).pack()
    loop = asyncio.get_running_loop()
    sock = await netns.connect_in_netns(path, server, 53, protocol="tcp" if tcp else "udp")
    try:
        await loop.sock_sendall(sock, (len(packet).to_bytes(2, "big") if tcp else b"") + packet)
        async with asyncio.timeout(8):
            data = await loop.sock_recv(sock, 65536)
            while tcp and len(data) < 2 + int.from_bytes(data[:2], "big"):
                data += await loop.sock_recv(sock, 65536)
        return dnslib.DNSRecord.parse(data[2:] if tcp else data)
    finally:
        sock.close()


def values(reply: dnslib.DNSRecord) -> list[str]:
    return sorted(str(r.rdata) for r in reply.rr)


@pytest.mark.parametrize("tcp", [False, True])
async def test_names_and_aliases_on_the_same_network(nets: NodeNetworks, tcp: bool) -> None:
    a = await join(nets, "a", aliases=["api", "shared"], hostname="a-host")
    b = await join(nets, "b", aliases=["db", "shared"])
    server = (await nets.get("web")).gateway
    for name, expected in {
        "db": [b.address],
        "DB.web": [b.address],
        "a-host": [a.address],
        "shared": sorted([a.address, b.address]),
    }.items():
        assert values(await query(a.netns, server, name, tcp=tcp)) == expected
    empty = await query(a.netns, server, "db", "AAAA", tcp=tcp)
    assert empty.header.rcode == 0 and not empty.rr
    reverse = ".".join(reversed(b.address.split("."))) + ".in-addr.arpa"
    assert values(await query(a.netns, server, reverse, "PTR", tcp=tcp)) == ["db.web."]


async def test_names_change_and_go_with_their_owner(nets: NodeNetworks) -> None:
    a, b = await join(nets, "a"), await join(nets, "b", aliases=["old"])
    server = (await nets.get("web")).gateway
    await nets.rename("b", aliases=["new"])
    assert values(await query(a.netns, server, "new")) == [b.address]
    await nets.disconnect("b")
    assert values(await query(a.netns, server, "new")) == []


async def test_the_default_network_knows_no_names_but_forwards(nets: NodeNetworks) -> None:
    a = await join(nets, "a", "default", aliases=["me"])
    reply = await query(a.netns, a.gateway, "me")
    assert dnslib.RCODE[reply.header.rcode] == "SERVFAIL", "nobody listens at the host's resolver"


async def test_other_networks_neither_ask_nor_are_told(nets: NodeNetworks) -> None:
    await nets.create(Network(id="", name="other"))
    await join(nets, "a", aliases=["secret"])
    spy = await join(nets, "s", "other")
    assert values(await query(spy.netns, spy.gateway, "secret")) == []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await query(spy.netns, (await nets.get("web")).gateway, "secret")


@pytest.mark.parametrize("tcp", [False, True])
async def test_the_rest_goes_to_the_hosts_resolvers(nets: NodeNetworks, world: World, tcp: bool) -> None:
    a = await join(nets, "a")

    class Upstream(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(answer(b"\0\0" + data[2:]), addr)  # type: ignore[attr-defined]  # a wrong id first
            self.transport.sendto(answer(data), addr)  # type: ignore[attr-defined]

    def answer(data: bytes) -> bytes:
        reply = dnslib.DNSRecord.parse(data).reply()
        reply.add_answer(dnslib.RR("example.org", rdata=dnslib.A("203.0.113.7")))
        return bytes(reply.pack())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = answer(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        writer.write(len(data).to_bytes(2, "big") + data)
        writer.close()

    loop = asyncio.get_running_loop()
    udp, _ = await loop.create_datagram_endpoint(Upstream, sock=await bound(world.outside, OUTSIDE, 53, 2))
    server = await asyncio.start_server(serve, sock=await bound(world.outside, OUTSIDE, 53, 1))
    try:
        assert values(await query(a.netns, a.gateway, "example.org", tcp=tcp)) == ["203.0.113.7"]
    finally:
        udp.close()
        server.close()
        await server.wait_closed()


async def test_a_silent_resolver_ends_in_servfail_and_blocks_nobody(nets: NodeNetworks, world: World) -> None:
    a = await join(nets, "a", aliases=["quick"])
    world.resolv_conf.write_text("nameserver 192.0.2.77\n")
    slow = asyncio.create_task(query(a.netns, a.gateway, "slow.example"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(1):
        assert values(await query(a.netns, a.gateway, "quick")) == [a.address]
    assert dnslib.RCODE[(await slow).header.rcode] == "SERVFAIL"


async def test_zones(nets: NodeNetworks) -> None:
    async def cluster(name: str, kind: str) -> Sequence[Record] | None:
        if name == "web.default.svc.cluster.local":
            return [Record(name, "A", "10.96.0.9")] if kind == "A" else []
        if name.startswith("_http"):
            return [Record(name, "SRV", "0 0 80 web.default.svc.cluster.local.")]
        return None

    nets.set_zone("cluster.local", cluster)
    a = await join(nets, "a", "default")
    assert values(await query(a.netns, a.gateway, "web.default.svc.cluster.local")) == ["10.96.0.9"]
    assert "80 web.default" in values(await query(a.netns, a.gateway, "_http._tcp.web.cluster.local", "SRV"))[0]
    missing = await query(a.netns, a.gateway, "no.cluster.local")
    assert dnslib.RCODE[missing.header.rcode] == "NXDOMAIN"


async def test_rubbish_is_answered_or_dropped_and_the_server_lives(nets: NodeNetworks) -> None:
    a = await join(nets, "a", aliases=["web"])
    loop = asyncio.get_running_loop()
    sock = await netns.connect_in_netns(a.netns, a.gateway, 53, protocol="udp")
    try:
        for rubbish in (b"", b"\0", b"x" * 11, b"\1\2" + b"\0" * 10, b"\1\2\1\0\0\1" + b"\xc0\x0c" * 50, b"\xff" * 600):
            await loop.sock_sendall(sock, rubbish)
    finally:
        sock.close()
    assert values(await query(a.netns, a.gateway, "web")) == [a.address]


async def machine(nets: NodeNetworks, world: World, tap: Endpoint) -> Path:
    """A namespace on the same bridge with the MAC of a machine's card, standing for its guest."""
    path = Path(await nets.make_namespace("guest"))
    bridge = (await nets.get(tap.network)).bridge

    def wire() -> None:
        with netlink.Rtnl() as rtnl, path.open("rb") as namespace:
            master = rtnl.link(bridge).index  # type: ignore[union-attr]
            rtnl.run(
                netlink.add_veth(
                    "guest0",
                    mac="fe:00:00:00:00:07",
                    mtu=1500,
                    peer="eth0",
                    peer_mac=tap.mac,
                    peer_netns_fd=namespace.fileno(),
                ),
                netlink.set_link("guest0", master=master, up=True),
            )

    await netns.visit(world.host, wire)
    await run_in(path, "ip", "link", "set", "eth0", "up")
    return path


UDHCPC = ("busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "3", "-T", "1", "-O", "mtu", "-s")


async def test_a_machine_gets_its_address(nets: NodeNetworks, world: World, tmp_path: Path) -> None:
    tap = await nets.connect_tap("web", "vm", hostname="linux")
    assert tap.tap and tap.netns == "" and tap.interface == ""
    guest = await machine(nets, world, tap)
    script = tmp_path / "lease.sh"
    script.write_text(
        '#!/bin/sh\n[ "$1" = bound ] || exit 0\nenv\n'
        "ip addr add $ip/$mask dev $interface\nip route add default via $router\n"
    )
    script.chmod(0o755)
    code, told = await run_in(guest, *UDHCPC, str(script))
    assert code == 0, told
    for line in (f"ip={tap.address}", f"router={tap.gateway}", f"dns={tap.gateway}", "hostname=linux", "mtu=1500"):
        assert line in told.splitlines()
    b = await join(nets, "b")
    async with listening(guest, tap.address, 80), listening(b.netns, b.address, 80):
        assert await ask(b.netns, tap.address, 80) == b.address
        assert await ask(guest, b.address, 80) == tap.address
    assert values(await query(b.netns, b.gateway, "linux")) == [tap.address]


async def test_strangers_get_no_lease(nets: NodeNetworks, world: World) -> None:
    tap = await nets.connect_tap("web", "vm")
    guest = await machine(nets, world, tap)
    await run_in(guest, "ip", "link", "set", "eth0", "address", "02:99:99:99:99:99")
    code, told = await run_in(
        guest, "busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "1", "-T", "1", "-s", "/bin/true"
    )
    assert code != 0 and "obtained" not in told


async def test_a_tap_is_ready_for_qemu_and_goes_with_its_owner(nets: NodeNetworks, world: World) -> None:
    tap = await nets.connect_tap("default", "vm", mac="52:54:00:12:34:56")
    again = await nets.connect_tap("default", "vm")
    assert again == tap and tap.mac == "52:54:00:12:34:56"
    _, links = await run_in(world.host, "ip", "-d", "-o", "link", "show", tap.tap)
    assert "tun type tap" in links and "master it0" in links and "persist on" in links
    await nets.disconnect("vm", "default")
    code, _ = await run_in(world.host, "ip", "link", "show", tap.tap)
    assert code != 0
