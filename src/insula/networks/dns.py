"""DNS for the segments: one server, listening on every segment's gateway address.

    a zone registered with `set_zone` (the longest suffix wins)      →  its resolver
    a name of an end point on one of the asker's segments, or its    →  A, AAAA, PTR; others empty
    address (the one that it asks on first)
    anything else, from an asker that has a way out                  →  the asker's own resolvers, else the host's

Who asks is told by its address; no asker hears of segments that it is not on. The server listens on a port that the kernel
chose, and the firewall brings port 53 of the gateway there: so neither a DNS server of the host on 0.0.0.0:53 nor a container
that publishes port 53 is in the way. Only hosts of the segment get answers.

`dnspackets` is loaded at the first query. Sources: RFC 1035, RFC 7766 (TCP).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from insula.errors import InsulaError
from insula.networks.contract import Endpoint, Network, Zone
from insula.networks.forward import Forwarder, SocketMaker
from insula.networks.names import Names
from insula.tasks import Tasks

if TYPE_CHECKING:
    import dnslib

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 64
_IDLE_S = 10.0
_ZONE_S = 5.0


class Asker(Struct, frozen=True, kw_only=True):
    """What an asker may know: the names of its segments, and whom to ask for others, if anybody; no `resolvers` means the
    host's."""

    names: list[Names]
    resolvers: tuple[str, ...] = ()
    forward: bool = True


class DnsServer:
    """The server of one node. Used on the event loop."""

    def __init__(self, resolv_conf: Path, make_socket: SocketMaker) -> None:
        self._make_socket = make_socket
        self._forwarder = Forwarder(resolv_conf, make_socket)
        self._zones: dict[str, Zone] = {}
        self._segments: dict[str, SegmentServer] = {}
        self._there: dict[str, tuple[Network, Sequence[Endpoint]]] = {}  # on every segment, by the network's id
        self._names: dict[str, Names] = {}  # made of that when somebody asks
        self._askers: dict[str, dict[str, Endpoint]] = {}  # network's id to address to end point
        self._places: dict[str, dict[str, Endpoint]] = {}  # owner to network's id to end point
        self.tasks = Tasks("dns")

    def set_zone(self, suffix: str, zone: Zone | None) -> None:
        """Answer names at and below `suffix` on all segments with `zone`; None takes it away."""
        key = suffix.strip(".").lower()
        if zone is None:
            self._zones.pop(key, None)
        else:
            self._zones[key] = zone

    async def listen(self, network: Network) -> tuple[int, int]:
        """Serve a segment whose bridge is there. Returns the UDP and the TCP port on its gateway's address."""
        if there := self._segments.get(network.id):
            return there.ports
        server = SegmentServer(self, network)
        await server.start(self._make_socket)
        self._segments[network.id] = server
        return server.ports

    def set_names(self, network: Network, endpoints: Iterable[Endpoint]) -> None:
        """Replace what a segment knows."""
        there = list(endpoints)
        self._forget_places(network.id)
        self._there[network.id] = network, there
        self._names.pop(network.id, None)
        self._askers[network.id] = {each.address: each for each in there if each.address}
        for each in there:
            self._places.setdefault(each.owner, {})[network.id] = each

    def _forget_places(self, network_id: str) -> None:
        for each in self._askers.pop(network_id, {}).values():
            places = self._places.get(each.owner, {})
            places.pop(network_id, None)
            if not places:
                self._places.pop(each.owner, None)

    async def forget(self, network_id: str) -> None:
        """Stop serving a segment."""
        self._forget_places(network_id)
        self._names.pop(network_id, None)
        self._there.pop(network_id, None)
        if server := self._segments.pop(network_id, None):
            await server.close()

    def asker(self, network_id: str, address: str) -> Asker:
        """Who asks from an address of a segment: the host itself, or an end point with all that its owner is on."""
        here = self._askers.get(network_id, {}).get(address)
        if here is None:
            return Asker(names=[self._names_of(network_id)] if network_id in self._there else [])
        places = self._places[here.owner]
        names = [self._names_of(id) for id in (network_id, *(id for id in places if id != network_id))]
        ways_out = any(each.gateway or each.gateway6 for each in places.values())
        resolvers = next((each.resolvers for each in places.values() if each.resolvers), ())
        return Asker(names=names, resolvers=resolvers, forward=ways_out)

    def _names_of(self, network_id: str) -> Names:
        names = self._names.get(network_id)
        if names is None:
            names = self._names[network_id] = Names(*self._there[network_id])
        return names

    async def close(self) -> None:
        """Stop serving all."""
        for network_id in list(self._segments):
            await self.forget(network_id)
        await self.tasks.close()

    def zone_of(self, name: str) -> Zone | None:
        """The zone with the longest suffix of a name."""
        labels = name.lower().split(".")
        return next((z for i in range(len(labels)) if (z := self._zones.get(".".join(labels[i:])))), None)

    async def resolve(self, query: dnslib.DNSRecord, packet: bytes, asker: Asker, *, tcp: bool) -> bytes:
        """What needs waiting: a zone, or other resolvers. Never raises but for cancellation."""
        from insula.networks import dnspackets

        name, kind = dnspackets.question(query)
        try:
            if zone := self.zone_of(name):
                async with asyncio.timeout(_ZONE_S):
                    return dnspackets.answer(query, await zone(name, kind), tcp=tcp)
            if not asker.forward:
                return dnspackets.refuse(packet, 2)
            own = [server.gateway for server in self._segments.values()]
            return await self._forwarder.ask(packet, tcp=tcp, own=own, servers=asker.resolvers)
        except (InsulaError, OSError) as fault:
            log.debug("dns query failed", extra={"query": name, "fault": str(fault)})
        except Exception:
            log.exception("dns zone failed", extra={"query": name})
        return dnspackets.refuse(packet, 2)


class SegmentServer:
    """DNS on one segment's gateway."""

    def __init__(self, node: DnsServer, network: Network) -> None:
        self._node = node
        self._id = network.id
        self._subnet = ipaddress.IPv4Network(network.subnet)
        self.gateway = network.gateway
        self.ports = (0, 0)
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._connections = 0

    async def start(self, make_socket: SocketMaker) -> None:
        """Listen for both transports. Raises OSError."""
        loop = asyncio.get_running_loop()
        udp = await make_socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = await make_socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            for sock in (udp, tcp):
                sock.setblocking(False)
                sock.bind((self.gateway, 0))
            self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp)
            self._tcp = await asyncio.start_server(self._serve, sock=tcp)
        except BaseException:
            udp.close()
            tcp.close()
            raise
        self.ports = (udp.getsockname()[1], tcp.getsockname()[1])

    async def close(self) -> None:
        """Stop listening."""
        if self._udp:
            self._udp.close()
        if self._tcp:
            self._tcp.close()

    def allowed(self, address: str) -> bool:
        """Whether an asker is on the segment (or is the host itself, which asks from the gateway's address)."""
        return ipaddress.IPv4Address(address) in self._subnet

    def known(self, query: dnslib.DNSRecord, asker: Asker, *, tcp: bool) -> bytes | None:
        """The answer when one of the asker's segments knows it."""
        from insula.networks import dnspackets

        name, kind = dnspackets.question(query)
        if self._node.zone_of(name):
            return None
        for names in asker.names:
            records = names.lookup(name, kind)
            if records is not None:
                return dnspackets.answer(query, records, tcp=tcp)
        return None

    def datagram(self, packet: bytes, asker: tuple[str, int]) -> None:
        """One UDP query. What the segment knows is answered at once, the rest by a task."""
        from insula.networks import dnspackets

        if len(packet) < 12 or packet[2] & 0x80 or not self.allowed(asker[0]):
            return
        query = dnspackets.parse(packet)
        who = self._node.asker(self._id, asker[0])
        reply = dnspackets.refuse(packet, 1) if query is None else self.known(query, who, tcp=False)
        if reply is not None:
            self._send(reply, asker)
        elif query is not None:
            self._node.tasks.spawn(self._later(query, packet, who, asker), "query")

    async def _later(self, query: dnslib.DNSRecord, packet: bytes, who: Asker, asker: tuple[str, int]) -> None:
        self._send(await self._node.resolve(query, packet, who, tcp=False), asker)

    def _send(self, reply: bytes, asker: tuple[str, int]) -> None:
        if self._udp and not self._udp.is_closing():
            self._udp.sendto(reply, asker)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One TCP connection: queries one after the other until it idles."""
        asker = writer.get_extra_info("peername")
        self._connections += 1
        try:
            if asker and self.allowed(asker[0]) and self._connections <= _MAX_CONNECTIONS:
                while True:
                    async with asyncio.timeout(_IDLE_S):
                        size = int.from_bytes(await reader.readexactly(2), "big")
                        packet = await reader.readexactly(size)
                    reply = await self._stream(packet, self._node.asker(self._id, asker[0]))
                    writer.write(len(reply).to_bytes(2, "big") + reply)
                    await writer.drain()
        except (OSError, EOFError):  # idle, gone, or cut off in the middle
            pass
        finally:
            self._connections -= 1
            writer.close()

    async def _stream(self, packet: bytes, who: Asker) -> bytes:
        from insula.networks import dnspackets

        if len(packet) < 12:
            raise EOFError("shorter than a header")
        query = dnspackets.parse(packet)
        if query is None:
            return dnspackets.refuse(packet, 1)
        return self.known(query, who, tcp=True) or await self._node.resolve(query, packet, who, tcp=True)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: SegmentServer) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.datagram(data, addr)
