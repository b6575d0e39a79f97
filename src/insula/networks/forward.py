"""DNS queries passed on to the host's own resolvers, as resolv.conf(5) names them.

A query goes out unchanged but for its id, which is drawn anew, from a socket of its own with a port that the kernel draws:
an answer has to guess both. Every wait has a deadline; the answer to silence is SERVFAIL, given by the caller.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

from insula.errors import DeadlineExceeded, Unavailable

SocketMaker = Callable[[int, int], Awaitable[socket.socket]]  # (family, type) to a socket of the host's namespace

_TRY_S = 2.0
_DEADLINE_S = 5.0
_MAX_OPEN = 256


def parse_resolvers(text: str) -> list[str]:
    """The name servers of a resolv.conf, in order, at most three; link-local ones with a zone are left out."""
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and "%" not in words[1]:
            servers.append(words[1])
    return servers[:3]


class Forwarder:
    """Asks the resolvers of the host. `own` are addresses of ours, which would lead in a circle."""

    def __init__(self, resolv_conf: Path, make_socket: SocketMaker) -> None:
        self._path, self._make_socket = resolv_conf, make_socket
        self._seen: tuple[int, int] | None = None
        self._servers: list[str] = []
        self._open = asyncio.Semaphore(_MAX_OPEN)

    def servers(self) -> list[str]:
        """Read again when the file changed."""
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                self._servers = parse_resolvers(self._path.read_text(errors="replace"))
                self._seen = seen
        except OSError:
            self._servers, self._seen = [], None
        return self._servers

    async def ask(self, query: bytes, *, tcp: bool, own: Collection[str] = (), servers: Sequence[str] = ()) -> bytes:
        """The first answer of a resolver: of `servers`, or of the host's where none are given. Raises Unavailable,
        DeadlineExceeded."""
        servers = [server for server in servers or self.servers() if server not in own]
        if not servers:
            raise Unavailable(f"{self._path} names no resolver.")
        if self._open.locked():
            raise Unavailable("Too many DNS queries are waiting for the host's resolvers.")
        ask = self._ask_tcp if tcp else self._ask_udp
        async with self._open:
            try:
                async with asyncio.timeout(_DEADLINE_S):
                    for server in (*servers, *servers):
                        try:
                            async with asyncio.timeout(_TRY_S):
                                return await ask(server, query)
                        except (OSError, EOFError):  # TimeoutError is an OSError
                            continue
            except TimeoutError:
                raise DeadlineExceeded(f"No resolver answered within {_DEADLINE_S:g} s.") from None
        raise Unavailable("No resolver answered.")

    async def _connect(self, server: str, kind: int) -> socket.socket:
        sock = await self._make_socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (server, 53))
            return sock
        except BaseException:
            sock.close()
            raise

    async def _ask_udp(self, server: str, query: bytes) -> bytes:
        sock = await self._connect(server, socket.SOCK_DGRAM)
        sent = secrets.token_bytes(2) + query[2:]
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Reply(sent, answer), sock=sock
        )
        try:
            transport.sendto(sent)
            return query[:2] + (await answer)[2:]
        finally:
            transport.close()

    async def _ask_tcp(self, server: str, query: bytes) -> bytes:
        sock = await self._connect(server, socket.SOCK_STREAM)
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            writer.write(len(query).to_bytes(2, "big") + query)
            await writer.drain()
            size = int.from_bytes(await reader.readexactly(2), "big")
            return await reader.readexactly(size)
        finally:
            writer.close()


class _Reply(asyncio.DatagramProtocol):
    """Waits for the datagram that answers `sent`: same id, an answer, same question."""

    def __init__(self, sent: bytes, answer: asyncio.Future[bytes]) -> None:
        self._sent, self._answer = sent, answer

    def datagram_received(self, data: bytes, _address: object) -> None:
        end = _question_end(self._sent)
        same = data[:2] == self._sent[:2] and len(data) >= end and data[2] & 0x80
        if same and data[12:end].lower() == self._sent[12:end].lower() and not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, fault: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(fault)


def _question_end(query: bytes) -> int:
    """Where the one question of a query ends: behind its name's labels, type and class."""
    at = 12
    while at < len(query) and query[at]:
        at += query[at] + 1
    return min(at + 5, len(query))
