"""The Docker door over TCP: TLS with client certificates that our authority signed, ended here and carried on to the door's
Unix socket.

Why not the HTTP server's own TLS: Docker clients end their input by half a close (`echo hi | docker run -i ...`), which is
a close_notify on TLS (RFC 8446, 6.1), and event loops take that for the end of both directions. Here TLS is a pure machine
(`Tls`) between bytes and bytes, and each direction ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from pathlib import Path
from typing import cast

from msgspec import Struct

from insula.errors import Invalid, Unavailable
from insula.tasks import Tasks

log = logging.getLogger(__name__)

_CHUNK = 64 * 1024
_HANDSHAKE_S = 10.0
_NO_TLS = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
_PORTS = {True: 2376, False: 2375}  # Docker's registered ports: with TLS, without


class Address(Struct, frozen=True, kw_only=True):
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def parse_address(text: str, *, tls: bool = True) -> Address:
    """Read `tcp://HOST[:PORT]`; a missing port is Docker's own. Raises Invalid."""
    scheme, separator, rest = text.partition("://")
    rest = rest.rstrip("/")
    if scheme != "tcp" or not separator or not rest:
        raise Invalid(f"{text!r} is not an address to listen on such as tcp://127.0.0.1:2376", field="docker_hosts")
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        host, port = rest, str(_PORTS[tls])
    if not port.isdecimal() or not port.isascii() or not 0 <= int(port) <= 65535:
        raise Invalid(f"{port!r} in {text!r} is not a port", field="docker_hosts")
    return Address(host=host.strip("[]") or "0.0.0.0", port=int(port))  # noqa: S104 - as Docker reads tcp://:PORT


class Tls:
    """The server's side of one TLS connection, without a socket. `ready` after the handshake; what `outgoing` gives must be
    sent after each call. Raises ssl.SSLError for a peer that breaks the rules or shows no good certificate."""

    def __init__(self, context: ssl.SSLContext, *, server: bool = True, name: str | None = None) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._out, server_side=server, server_hostname=name)
        self.ready = False
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Take in what came; the plain bytes in it. Sets `ended` when the peer has said that it sends no more."""
        self._in.write(data)
        plain = []
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self.ready:
                self._object.do_handshake()
                self.ready = True
            while not self.ended:
                try:
                    piece = self._object.read(_CHUNK)
                except ssl.SSLZeroReturnError:
                    piece = b""
                self.ended = not piece
                plain.append(piece)
        return b"".join(plain)

    def send(self, plain: bytes) -> None:
        """Encrypt."""
        view = memoryview(plain)
        while view:
            view = view[self._object.write(view) :]

    def end(self) -> None:
        """Say that no more is sent."""
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()

    def outgoing(self) -> bytes:
        """What is to be sent."""
        return self._out.read()


class _Client(asyncio.Protocol):
    """A connection from outside. `tls` is None for one without encryption."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._tls = Tls(remote.context) if remote.context is not None else None
        self._door: _Door | None = None
        self._waiting: list[bytes] = []
        self._ended = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self._remote.clients.add(self)
        if self._tls is None:
            self._open()
        else:
            self._deadline = asyncio.get_running_loop().call_later(_HANDSHAKE_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._tls is None:
            self._forward(data)
            return
        was_ready = self._tls.ready
        try:
            plain = self._tls.feed(data)
        except ssl.SSLError as fault:
            peer = self.transport.get_extra_info("peername")
            log.debug("a TLS client was turned away", extra={"peer": peer, "fault": str(fault.reason or fault)})
            # An alert says why, to those who speak TLS.
            self.transport.write(_NO_TLS if fault.reason == "HTTP_REQUEST" else self._tls.outgoing())
            self.transport.close()
            return
        self._flush()
        if self._tls.ready and not was_ready:
            self._open()
        if plain:
            self._forward(plain)
        if self._tls.ended:
            self._end()

    def eof_received(self) -> bool:
        if self._tls is not None and not self._tls.ended:
            return False  # cut off, not ended: that is what close_notify is for
        self._end()
        return True

    def _open(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.transport.pause_reading()
        self._remote.tasks.spawn(self._connect(), "connect")

    async def _connect(self) -> None:
        try:
            _, door = await asyncio.get_running_loop().create_unix_connection(
                lambda: _Door(self), str(self._remote.path)
            )
        except OSError:
            self.transport.abort()
            return
        self._door = door
        for data in self._waiting:
            door.transport.write(data)
        self._waiting.clear()
        if self._ended:
            door.transport.write_eof()
        if self.transport.is_closing():
            door.transport.abort()
        else:
            self.transport.resume_reading()

    def _forward(self, data: bytes) -> None:
        if self._door is None:
            self._waiting.append(bytes(data))
        elif not self._door.transport.is_closing():
            self._door.transport.write(data)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if self._door is not None and self._door.transport.can_write_eof():
                self._door.transport.write_eof()

    def _flush(self) -> None:
        if self._tls is not None and (data := self._tls.outgoing()):
            self.transport.write(data)

    def send(self, data: bytes) -> None:
        """What the door answers."""
        if self._tls is None:
            self.transport.write(data)
        else:
            self._tls.send(data)
            self._flush()

    def finish(self) -> None:
        """The door has closed the connection: what it said goes out, then this side closes as well."""
        if self._tls is not None and not self.transport.is_closing():
            self._tls.end()
            self._flush()
        self.transport.close()

    def pause_writing(self) -> None:
        if self._door is not None:
            self._door.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._door is not None and not self._door.transport.is_closing():
            self._door.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._remote.clients.discard(self)
        if self._door is not None:
            self._door.transport.abort()


class _Door(asyncio.Protocol):
    """The connection to the door's Unix socket."""

    transport: asyncio.Transport

    def __init__(self, client: _Client) -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def data_received(self, data: bytes) -> None:
        if not self._client.transport.is_closing():
            self._client.send(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.finish()

    def pause_writing(self) -> None:
        if not self._client.transport.is_closing():
            self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._client.transport.is_closing():
            self._client.transport.resume_reading()


class Remote:
    """One TCP address of the door. `context` is None for no encryption, which is for whoever opens it to have decided."""

    def __init__(self, path: Path, context: ssl.SSLContext | None) -> None:
        self.path = path
        self.context = context
        self.clients: set[_Client] = set()
        self.tasks = Tasks("docker/remote")
        self._server: asyncio.Server | None = None

    async def listen(self, address: Address) -> Address:
        """Open it. Returns the address with the port that it has. Raises Unavailable naming the address."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: _Client(self), address.host, address.port, backlog=1024, reuse_address=True
            )
        except (OSError, socket.gaierror) as fault:
            why = fault.strerror or str(fault)
            raise Unavailable(f"the Docker door cannot listen on {address}: {why}", hint="see docker_hosts") from fault
        return Address(host=address.host, port=self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Take no more connections and end those that are there. Repeatable."""
        if self._server is not None:
            self._server.close()
        for client in list(self.clients):
            client.transport.abort()
        await self.tasks.close()
        if self._server is not None:
            await self._server.wait_closed()


def own_context(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS with files of the administrator's own. Blocks. Raises Invalid for files that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as fault:
        raise Invalid(
            f"the TLS files {ca}, {certificate}, {key} cannot be used: {fault}", field="docker_tls_ca"
        ) from None
    context.verify_mode = ssl.CERT_REQUIRED
    return context
