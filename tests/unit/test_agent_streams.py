"""The agent's protocols: SPDY frames, port-forward sessions with a real socket behind them, channels over a real WebSocket."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from insula.agent import channels, spdy
from insula.agent.portforward import QUEUE, Session
from insula.drivers.driver import Channel
from insula.errors import Invalid


class Client:
    """The client's half of a connection: compresses with the dictionary, as Kubernetes' clients do; answers come without it."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=spdy.DICTIONARY)
        self._buffer = b""

    def syn(self, stream: int, headers: Mapping[str, str]) -> bytes:
        """Open a stream."""
        plain = struct.pack(">I", len(headers))
        for pair in headers.items():
            for text in pair:
                plain += struct.pack(">I", len(text)) + text.encode()
        block = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        payload = struct.pack(">IIH", stream, 0, 0) + block
        return struct.pack(">HHI", 0x8003, spdy.SYN_STREAM, len(payload)) + payload

    @staticmethod
    def data(stream: int, data: bytes = b"", *, fin: bool = False) -> bytes:
        """Bytes on a stream."""
        return struct.pack(">II", stream, int(fin) << 24 | len(data)) + data

    @staticmethod
    def reset(stream: int) -> bytes:
        """Give a stream up."""
        return struct.pack(">HHIII", 0x8003, spdy.RST_STREAM, 8, stream, 5)

    def read(self, data: bytes) -> list[tuple[int, int, bytes, bool]]:
        """(kind, stream, data, fin) of whole frames."""
        self._buffer += data
        found = []
        while len(self._buffer) >= 8:
            head, rest = struct.unpack_from(">II", self._buffer)
            length = rest & 0xFFFFFF
            if len(self._buffer) < 8 + length:
                break
            payload, self._buffer = self._buffer[8 : 8 + length], self._buffer[8 + length :]
            kind = head & 0xFFFF if head >> 31 else 0
            stream = struct.unpack_from(">I", payload)[0] if kind else head
            found.append((kind, stream, payload, bool(rest >> 24 & 1)))
        return found


def test_the_dictionary_is_the_published_one() -> None:
    assert len(spdy.DICTIONARY) == 1423
    assert (
        hashlib.sha256(spdy.DICTIONARY).hexdigest()
        == "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02"
    )


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_frames_are_read_however_they_are_cut(size: int) -> None:
    client, decoder = Client(), spdy.Decoder()
    sent = client.syn(1, {"streamtype": "error", "port": "80", "requestid": "0"}) + client.syn(
        3, {"streamtype": "data"}
    )
    sent += client.data(3, b"hello") + client.data(3, fin=True) + struct.pack(">HHII", 0x8003, spdy.PING, 4, 9)
    frames = [frame for start in range(0, len(sent), size) for frame in decoder.feed(sent[start : start + size])]
    assert [(f.kind, f.stream, f.data, f.fin) for f in frames[2:4]] == [(0, 3, b"hello", False), (0, 3, b"", True)]
    assert frames[0].headers == {"streamtype": "error", "port": "80", "requestid": "0"}
    assert frames[1].headers == {"streamtype": "data"}
    assert (frames[4].kind, frames[4].data) == (spdy.PING, struct.pack(">I", 9))


def test_what_the_encoder_writes_the_decoder_reads() -> None:
    encoder, decoder = spdy.Encoder(), spdy.Decoder()
    sent = (
        encoder.syn(1, {"a": "1"})
        + encoder.reply(1)
        + encoder.data(1, b"x")
        + encoder.reset(1)
        + encoder.data(1, fin=True)
    )
    kinds = [(f.kind, f.stream, f.fin) for f in decoder.feed(sent)]
    assert kinds == [
        (spdy.SYN_STREAM, 1, False),
        (spdy.SYN_REPLY, 1, False),
        (0, 1, False),
        (spdy.RST_STREAM, 1, False),
        (0, 1, True),
    ]


@pytest.mark.parametrize(
    "junk",
    [
        struct.pack(">HHI", 0x8002, 1, 0),
        struct.pack(">HHI", 0x8003, 1, 14) + b"\0" * 10 + b"junk",
        struct.pack(">HHI", 0x8003, 1, 10 + 20) + b"\0" * 10 + zlib.compress(b"\xff" * 8)[:20].ljust(20, b"\0"),
    ],
    ids=["version", "no zlib", "cut short"],
)
def test_what_is_not_spdy_is_refused(junk: bytes) -> None:
    with pytest.raises(Invalid):
        list(spdy.Decoder().feed(junk))


def test_a_header_bomb_is_refused() -> None:
    deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
    block = deflate.compress(b"\0" * 10_000_000) + deflate.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(Invalid, match="over"):
        list(spdy.Decoder().feed(struct.pack(">HHI", 0x8003, 1, 10 + len(block)) + b"\0" * 10 + block))


# --- port-forward -----------------------------------------------------------------------------------------------


class Forward:
    """A session, and what it sent to the client."""

    def __init__(self, port: int) -> None:
        self.client = Client()
        self.frames: list[tuple[int, int, bytes, bool]] = []
        self.session = Session(self._send, self._dial)
        self._port = port
        self._news = asyncio.Event()

    async def _send(self, data: bytes) -> None:
        self.frames += self.client.read(data)
        self._news.set()

    async def _dial(self, port: int) -> socket.socket:
        if port != 80:
            raise OSError(111, "Connection refused")
        made = socket.socket()
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self._port))
        return made

    async def open(self, first: int, port: int = 80, request: int = 0) -> None:
        """A pair of streams: the error stream `first`, the data stream after it."""
        for stream, kind in ((first, "error"), (first + 2, "data")):
            headers = {"streamtype": kind, "port": str(port), "requestid": str(request)}
            await self.session.feed(self.client.syn(stream, headers))

    def got(self, stream: int) -> bytes:
        """All data that came on a stream."""
        return b"".join(data for kind, where, data, _ in self.frames if kind == 0 and where == stream)

    def ended(self, stream: int) -> bool:
        """Whether the server said that nothing more comes."""
        return any(kind == 0 and where == stream and fin for kind, where, _, fin in self.frames)

    async def until(self, holds: Any) -> None:
        """Wait for something in what was sent."""
        async with asyncio.timeout(5):
            while not holds():
                self._news.clear()
                await self._news.wait()


async def serve(handle: Any) -> tuple[asyncio.Server, int]:
    """A TCP server in the place of a pod."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers all that came, in capitals, when the client has said all."""
    writer.write((await reader.read()).upper())
    writer.close()


@pytest.fixture
async def forward(request: pytest.FixtureRequest) -> AsyncIterator[Forward]:
    """A session to a server; the marker says which."""
    server, port = await serve(getattr(request, "param", shout))
    made = Forward(port)
    try:
        yield made
    finally:
        await made.session.close()
        server.close()
        await server.wait_closed()


async def test_connections_are_carried_side_by_side_and_half_closed(forward: Forward) -> None:
    for number in range(3):
        await forward.open(1 + 4 * number, request=number)
    for number in range(3):
        await forward.session.feed(forward.client.data(3 + 4 * number, f"hello {number}".encode()))
        await forward.session.feed(forward.client.data(3 + 4 * number, fin=True))
    for number in range(3):
        await forward.until(lambda number=number: forward.ended(1 + 4 * number))
        assert forward.got(3 + 4 * number) == f"HELLO {number}".encode() and forward.ended(3 + 4 * number)
        assert forward.got(1 + 4 * number) == b""


async def test_a_refused_port_is_told_on_the_error_stream(forward: Forward) -> None:
    await forward.open(1, port=81)
    await forward.until(lambda: forward.ended(1))
    assert forward.got(1) == b"failed to connect to localhost:81 inside the pod's network namespace: Connection refused"
    assert forward.ended(3)


async def test_pings_come_back_unchanged(forward: Forward) -> None:
    await forward.session.feed(struct.pack(">HHII", 0x8003, spdy.PING, 4, 7))
    assert forward.frames == [(spdy.PING, 7, struct.pack(">I", 7), False)]


@pytest.mark.parametrize(
    "headers",
    [{"streamtype": "x", "port": "80"}, {"streamtype": "data", "port": "0"}, {"streamtype": "data", "port": "²"}, {}],
)
async def test_wrong_streams_end_the_session(forward: Forward, headers: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        await forward.session.feed(spdy.Encoder().syn(1, {})) if not headers else await _open_with(forward, headers)


async def _open_with(forward: Forward, headers: dict[str, str]) -> None:
    plain = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    await forward.session.feed(spdy.Encoder().syn(1, plain))


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@pytest.mark.parametrize("forward", [_hang_up], indirect=True)
async def test_a_pod_that_hangs_up_does_not_hold_the_session_back(forward: Forward) -> None:
    await forward.open(1)
    async with asyncio.timeout(5):
        for _ in range(QUEUE * 4):
            await forward.session.feed(forward.client.data(3, b"x" * 1000))
            await asyncio.sleep(0)
    await forward.until(lambda: forward.ended(1))
    await forward.session.feed(struct.pack(">HHII", 0x8003, spdy.PING, 4, 1))
    assert forward.frames[-1][0] == spdy.PING


async def _wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@pytest.mark.parametrize("forward", [_wait], indirect=True)
async def test_a_reset_ends_the_connection(forward: Forward) -> None:
    await forward.open(1)
    await forward.session.feed(forward.client.data(3, b"x"))
    await asyncio.sleep(0.02)
    await forward.session.feed(forward.client.reset(3))
    await forward.until(lambda: forward.ended(1))


# --- channels ---------------------------------------------------------------------------------------------------


class Process:
    """Streams of a process that answers its input in capitals and ends when its input does."""

    def __init__(self) -> None:
        self.input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = False

    async def read(self) -> AsyncIterator[tuple[Channel, bytes]]:
        """Its output."""
        yield Channel.STDERR, b"ready"
        while (data := await self.input.get()) is not None:
            yield Channel.STDOUT, data.upper()

    async def write(self, data: bytes) -> None:
        """Its input."""
        await self.input.put(data)

    async def close_stdin(self) -> None:
        """The end of its input."""
        await self.input.put(None)

    async def close(self) -> None:
        """Nobody reads any more."""
        self.closed = True


class Remote:
    """A server of one remote command."""

    def __init__(self, code: int = 0) -> None:
        self.process, self.sizes, self.code = Process(), [], code

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One session."""
        socket_ = await channels.open_socket(request)

        async def resize(width: int, height: int) -> None:
            self.sizes.append((width, height))

        async def result() -> dict[str, object]:
            return channels.exit_status(self.code)

        await channels.serve(socket_, self.process, stdin=True, resize=resize, result=result)
        return socket_


@pytest.fixture
async def remote(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Remote, str]]:
    """A served command and its URL."""
    made, app = Remote(getattr(request, "param", 0)), web.Application()
    app.router.add_get("/", made.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield made, f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def talk(url: str, protocol: str, *sent: bytes | str) -> list[tuple[int, bytes]]:
    """(channel, data) of all that a server says."""
    async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=(protocol,)) as made:
        assert made.protocol == protocol
        for one in sent:
            await (made.send_str(one) if isinstance(one, str) else made.send_bytes(one))
        found = [(message.data[0], message.data[1:]) async for message in made]
        assert made.close_code == 1000
        return found


async def let_go(served: Remote) -> None:
    """Wait until the server has let go of the process."""
    async with asyncio.timeout(5):
        while not served.process.closed:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("protocol", channels.PROTOCOLS)
@pytest.mark.parametrize("remote", [0, 7], indirect=True)
async def test_a_command_from_its_first_byte_to_its_exit_code(remote: tuple[Remote, str], protocol: str) -> None:
    served, url = remote
    size = b"\4" + json.dumps({"Width": 80, "Height": 24}).encode()
    found = await talk(url, protocol, size, b"\4junk", b"\0abc", "\0text", b"\xff\0")
    assert found[0] == (2, b"ready")
    assert b"".join(data for channel, data in found if channel == 1) == b"ABCTEXT"
    assert found[-1][0] == 3 and json.loads(found[-1][1]) == channels.exit_status(served.code)
    assert served.sizes == [(80, 24)]
    await let_go(served)


async def test_a_client_that_leaves_lets_go_of_the_process(remote: tuple[Remote, str]) -> None:
    served, url = remote
    async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=channels.PROTOCOLS) as made:
        await made.receive()
    await let_go(served)


async def test_other_protocols_are_refused(remote: tuple[Remote, str]) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(remote[1], protocols=("base64.channel.k8s.io",))
    assert refused.value.status == 400


def test_statuses() -> None:
    assert channels.exit_status(0) == {"metadata": {}, "status": "Success"}
    failed: Any = channels.exit_status(7)
    assert failed["reason"] == "NonZeroExitCode" and failed["details"]["causes"] == [
        {"reason": "ExitCode", "message": "7"}
    ]
