"""DHCP for machines: one socket per bridge that has a tap on it, answering only MACs that we gave out.

Answers go to the broadcast address unless the client has its address already: a client without one cannot answer ARP, and
every client takes a broadcast (RFC 2131, 4.1). The socket is bound to the bridge's interface, so it hears nothing of other
networks and stands beside a DHCP server of the host that is bound to its own interfaces.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import cast

from insula.errors import HostFault
from insula.networks.dhcp_packet import Lease, Message, decode, encode, reply
from insula.networks.kernel import Kernel

log = logging.getLogger(__name__)
_NONE = "0.0.0.0"  # noqa: S104 - the protocol's "no address yet"


class DhcpServer:
    """The server of one node. Used on the event loop."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._bridges: dict[str, _Bridge] = {}

    async def serve(self, bridge: str, leases: Iterable[Lease]) -> None:
        """Answer these MACs on a bridge and no others; without leases the socket is closed. Raises HostFault."""
        table = {lease.mac: lease for lease in leases}
        there = self._bridges.get(bridge)
        if there:
            there.leases = table
            if not table:
                self.forget(bridge)
        elif table:
            await self._open(bridge, table)

    async def _open(self, bridge: str, table: dict[str, Lease]) -> None:
        try:
            sock = await self._kernel.call(_socket_on, bridge)
        except OSError as fault:
            raise HostFault(
                f"DHCP cannot be served on {bridge}: {fault.strerror}. Another DHCP server of this host holds port 67 of "
                "every interface; bind it to its own interfaces.",
                command="ss -lunp sport = :67",
                code=fault.errno,
            ) from fault
        server = _Bridge(bridge, table)
        try:
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, sock=sock)
        except BaseException:
            sock.close()
            raise
        self._bridges[bridge] = server

    def forget(self, bridge: str) -> None:
        """Stop serving a bridge."""
        if server := self._bridges.pop(bridge, None):
            server.close()

    def close(self) -> None:
        """Stop serving all."""
        for bridge in list(self._bridges):
            self.forget(bridge)


def _socket_on(bridge: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode() + b"\0")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.bind((_NONE, 67))
        return sock
    except BaseException:
        sock.close()
        raise


class _Bridge(asyncio.DatagramProtocol):
    def __init__(self, name: str, leases: dict[str, Lease]) -> None:
        self._name, self.leases = name, leases
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # the loops do not derive theirs from it

    def datagram_received(self, data: bytes, _addr: object) -> None:
        request = decode(data)
        lease = self.leases.get(request.mac) if request else None
        if request is None or lease is None:
            return
        if request.message == Message.DECLINE:
            log.warning("a machine found its address in use", extra={"bridge": self._name, "address": lease.address})
        if (answer := reply(request, lease)) is None or self._transport is None:
            return
        known = request.ciaddr != _NONE and answer.message != Message.NAK
        self._transport.sendto(encode(answer), (request.ciaddr if known else "255.255.255.255", 68))

    def close(self) -> None:
        if self._transport:
            self._transport.close()
