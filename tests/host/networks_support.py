"""A host made of a network namespace, with a machine outside on its uplink: tests of networks touch nothing of the real host.

outside 192.0.2.9/24  ──veth──  192.0.2.1/24 host ── bridges of Insula ── end points
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import dnslib

from insula.host import netlink, netns
from insula.networks.manager import NodeNetworks
from insula.networks.pool import settle

HOST, OUTSIDE = "192.0.2.1", "192.0.2.9"
HOST6, OUTSIDE6 = "2001:db8::1", "2001:db8::9"
REPLY_S = 3.0


class World:
    """Paths of the namespaces, and a factory of opened networks on the host."""

    def __init__(self, folder: Path, host: Path, outside: Path) -> None:
        self.folder, self.host, self.outside = folder, host, outside
        self.resolv_conf = folder / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {OUTSIDE}\n")

    def options(self, **more: Any) -> dict[str, Any]:
        return {"host_netns": str(self.host), "resolv_conf": self.resolv_conf, "prefix": "it", "table": "itest"} | more

    async def open(self, **more: Any) -> NodeNetworks:
        return await NodeNetworks.open(self.folder / "state", self.folder / "run", **self.options(**more))

    @contextlib.asynccontextmanager
    async def networks(self, **more: Any) -> AsyncIterator[NodeNetworks]:
        opened = await self.open(**more)
        try:
            yield opened
        finally:
            await opened.destroy()


def _uplink(host: Path, outside: Path) -> None:
    with netns.inside(host), netlink.Rtnl() as rtnl, open(outside, "rb") as other:
        ends = {"mac": "02:00:00:00:00:01", "peer": "eth0", "peer_mac": "02:00:00:00:00:09"}
        rtnl.run(
            netlink.add_veth("up0", mtu=1500, peer_netns_fd=other.fileno(), **ends), netlink.set_link("up0", up=True)
        )
        index = rtnl.link("up0").index  # type: ignore[union-attr]
        rtnl.run(netlink.add_address(index, HOST, 24))
    with netns.inside(outside), netlink.Rtnl() as rtnl:
        index = rtnl.link("eth0").index  # type: ignore[union-attr]
        rtnl.run(netlink.set_link("eth0", up=True), netlink.add_address(index, OUTSIDE, 24))
    with netns.inside(host), netlink.Rtnl() as rtnl:
        rtnl.run(netlink.add_default_route(rtnl.link("up0").index, OUTSIDE))  # type: ignore[union-attr]


def add_ipv6(world: World) -> None:
    """Addresses of the documentation's prefix on the wire between host and outside. Blocks."""
    for path, name, address in ((world.host, "up0", HOST6), (world.outside, "eth0", OUTSIDE6)):
        with netns.inside(path), netlink.Rtnl() as rtnl:
            for setting in ("disable_ipv6", "accept_dad"):
                netns.sysctl(f"ipv6/conf/{name}/{setting}", "0")
            index = rtnl.link(name).index  # type: ignore[union-attr]
            rtnl.run(netlink.add_address(index, address, 64))
    with netns.inside(world.host), netlink.Rtnl() as rtnl:
        rtnl.run(netlink.add_default_route(rtnl.link("up0").index, OUTSIDE6))  # type: ignore[union-attr]


@contextlib.contextmanager
def make_world(folder: Path) -> Iterator[World]:
    """Two namespaces and the wire between them; gone afterwards with all that is in them."""
    host, outside = folder / "host.ns", folder / "outside.ns"
    with contextlib.ExitStack() as undo:
        for path in (host, outside):
            fd = netns.fresh(settle)
            undo.callback(netns.unbind, path)
            netns.bind(fd, path)
            os.close(fd)
        _uplink(host, outside)
        yield World(folder, host, outside)


@contextlib.asynccontextmanager
async def listening(
    path: str | Path, address: str, port: int, *, protocol: str = "tcp", answer: bytes = b""
) -> AsyncIterator[tuple[int, list[str]]]:
    """A server in a namespace that tells every asker its address, or `answer`. Yields its port and who asked."""
    askers: list[str] = []
    if protocol == "udp":
        sock = await bound(path, address, port, socket.SOCK_DGRAM)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Echo(askers, answer), sock=sock)
        try:
            yield sock.getsockname()[1], askers
        finally:
            transport.close()
            await asyncio.sleep(0)  # the loop closes the socket in its next round
        return

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        askers.append(writer.get_extra_info("peername")[0])
        writer.write(answer or askers[-1].encode())
        writer.close()
        await writer.wait_closed()

    sock = await bound(path, address, port, socket.SOCK_STREAM)
    server = await asyncio.start_server(serve, sock=sock)
    try:
        yield sock.getsockname()[1], askers
    finally:
        server.close()
        await server.wait_closed()


class _Echo(asyncio.DatagramProtocol):
    def __init__(self, askers: list[str], answer: bytes) -> None:
        self.askers, self.answer = askers, answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.askers.append(addr[0])
        self.transport.sendto(self.answer or addr[0].encode(), addr)


async def bound(path: str | Path, address: str, port: int, kind: int) -> socket.socket:
    """A bound socket of a namespace."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = await netns.visit(path, functools.partial(socket.socket, family, kind | socket.SOCK_NONBLOCK))
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        return sock
    except BaseException:
        sock.close()
        raise


async def ask(path: str | Path, address: str, port: int, *, protocol: str = "tcp", deadline_s: float = REPLY_S) -> str:
    """What a server answers when asked from inside of a namespace."""
    loop = asyncio.get_running_loop()
    sock = await netns.connect_in_netns(path, address, port, protocol=protocol, deadline_s=deadline_s)  # type: ignore[arg-type]
    try:
        if protocol == "udp":
            await loop.sock_sendall(sock, b"?")
        async with asyncio.timeout(deadline_s):
            return (await loop.sock_recv(sock, 4096)).decode()
    finally:
        sock.close()


async def run_in(path: str | Path, *arguments: str) -> tuple[int, str]:
    """A program inside of a namespace: its exit code and all its output."""
    process = await asyncio.create_subprocess_exec(
        "nsenter",
        f"--net={path}",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode()


async def lookup(path: str | Path, server: str, name: str, kind: str = "A") -> list[str]:
    """What a DNS server says of a name when asked from inside of a namespace: the values, or the word for why not."""
    packet = dnslib.DNSRecord.question(name, kind).pack()
    sock = await netns.connect_in_netns(path, server, 53, protocol="udp")
    try:
        await asyncio.get_running_loop().sock_sendall(sock, packet)
        async with asyncio.timeout(6):
            reply = dnslib.DNSRecord.parse(await asyncio.get_running_loop().sock_recv(sock, 4096))
    finally:
        sock.close()
    code = dnslib.RCODE[reply.header.rcode]
    return [str(each.rdata) for each in reply.rr] if code == "NOERROR" else [code]
