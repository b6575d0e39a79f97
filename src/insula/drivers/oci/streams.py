"""Live streams of a process that conmon holds: its attach socket, without loss and with backpressure both ways.

The socket is SOCK_SEQPACKET. Each packet that conmon sends is one byte for the stream (2 standard output, 3 standard error)
and up to 8 KiB of data; each packet that it receives, up to 32 KiB, goes to the process's standard input. conmon writes to
every attached client in turn and waits for the slowest: nothing is lost, a slow reader slows the process, as a slow
reader of a pipe does. That waiting would also delay conmon's noticing of the end of the process, so `drain` is called when
it has ended: what is left then (pipe and socket buffers, under a megabyte) is taken into memory at once.

conmon takes the end of any connection for the end of standard input unless it was told to leave that open. So where
an end of file counts (`stdin_once`, exec), `close` keeps the connection, throwing away what comes, until the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from insula.drivers.driver import Channel
from insula.errors import Conflict, HostFault
from insula.host import unixdiag
from insula.host.conmon import short_path

PACKET_BYTES = 8192 + 1
STDIN_PACKET_BYTES = 32768  # larger ones conmon would cut off
BUFFER_BYTES = 256 * 1024
PACKETS_AT_ONCE = 32
CHANNELS = {2: Channel.STDOUT, 3: Channel.STDERR}


async def connect(bundle: Path, *, closes_stdin: bool, stdin: bool, only: bool = False) -> AttachedStreams:
    """Attach. conmon has taken the connection when this returns: no byte that is written from now on is missed. With `only`
    (an exec that is yet to run: nobody else is attached) it is enough that the connection is queued, for conmon looks
    there before it looks for output. Raises Conflict when nobody serves the socket (the process has ended)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with short_path(bundle / "attach") as path:
            await asyncio.wait_for(_connect(sock, path), 10)
        if not only:
            await _accepted(sock)
    except (FileNotFoundError, ConnectionRefusedError) as fault:
        sock.close()
        raise Conflict("The streams cannot be attached: the process has ended.") from fault
    except BaseException:
        sock.close()
        raise
    return AttachedStreams(sock, closes_stdin=closes_stdin, stdin=stdin)


async def _connect(sock: socket.socket, path: str) -> None:
    """A full backlog answers EAGAIN and has no event to wait for (unix(7)), so it is tried again."""
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            await asyncio.sleep(0.002)
        else:
            return


async def _accepted(sock: socket.socket) -> None:
    """conmon takes one new client between two pieces of output, so what is only queued may miss some. The kernel has no event
    for an accept: look again, for a second at most (a conmon that waits for another slow reader takes that long)."""
    for pause_s in (0.0003, 0.0005, 0.001, 0.002, 0.005, *(0.01,) * 99):
        if (state := unixdiag.accepted(sock)) is True:
            return
        await asyncio.sleep(pause_s)
        if state is None and pause_s >= 0.005:  # a kernel that cannot say: time enough for an idle conmon
            return


class AttachedStreams:
    """`Streams` of the driver contract. One task reads, others may write."""

    def __init__(self, sock: socket.socket, *, closes_stdin: bool, stdin: bool) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._closes_stdin = closes_stdin
        self._stdin = stdin
        self._chunks: deque[tuple[Channel, bytes]] = deque()
        self._buffered = 0
        self._changed = asyncio.Event()
        self._reading = self._ended = self._draining = self._closed = False
        self._writing = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None
        self.on_end: Callable[[AttachedStreams], None] = lambda _: None
        self._resume()

    # --- from the process

    async def read(self) -> AsyncIterator[tuple[Channel, bytes]]:
        """Chunks in the order in which they were written, until the process has ended or the streams are closed."""
        while True:
            while self._chunks:
                channel, data = self._take()
                yield channel, data
            if self._ended or self._closed:
                return
            self._changed.clear()
            await self._changed.wait()

    def _take(self) -> tuple[Channel, bytes]:
        """The next chunk, joined with those of the same channel that follow it."""
        channel, data = self._chunks.popleft()
        parts = [data]
        while self._chunks and self._chunks[0][0] == channel:
            parts.append(self._chunks.popleft()[1])
        data = b"".join(parts)
        self._buffered -= len(data)
        self._resume()
        return channel, data

    def drain(self) -> None:
        """The process has ended: take what is left without waiting for our reader."""
        self._draining = True
        self._resume()

    def _resume(self) -> None:
        if not (self._reading or self._ended) and (self._draining or self._buffered < BUFFER_BYTES):
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._receive)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def _receive(self) -> None:
        """Take some packets; more wait for the next turn of the loop."""
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet = self._sock.recv(PACKET_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                packet = b""
            if not packet:
                self._end()
                return
            if not self._closed and (channel := CHANNELS.get(packet[0])):
                self._chunks.append((channel, packet[1:]))
                self._buffered += len(packet) - 1
        self._changed.set()
        if self._buffered >= BUFFER_BYTES and not self._draining:
            self._pause()

    def _end(self) -> None:
        """The connection is over, by either side."""
        if not self._ended:
            self._ended = True
            self._pause()
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            self._made_room()
            self._changed.set()
            self.on_end(self)

    # --- to the process

    async def write(self, data: bytes) -> None:
        """Write to the process's standard input; waits while it does not read. Raises HostFault (broken pipe) after its end."""
        if not self._stdin:
            return
        async with self._writing:
            view = memoryview(data)
            while view:
                await self._send(view[:STDIN_PACKET_BYTES])
                view = view[STDIN_PACKET_BYTES:]

    async def _send(self, packet: memoryview) -> None:
        while True:
            if self._ended or self._closed:
                raise HostFault("The process does not take input any more: it has ended.")
            try:
                self._sock.send(packet)
            except BlockingIOError:
                await self._writable()
            except OSError as fault:
                raise HostFault("The process does not take input any more: it has ended.") from fault
            else:
                return

    async def _writable(self) -> None:
        """Return when the socket takes more, or is over."""
        fd = self._sock.fileno()
        self._room = self._loop.create_future()
        self._loop.add_writer(fd, self._made_room)
        try:
            await self._room
        finally:
            if not self._ended:
                self._loop.remove_writer(fd)

    def _made_room(self) -> None:
        if self._room and not self._room.done():
            self._room.set_result(None)

    async def close_stdin(self) -> None:
        """End of file for the process, after all that was written. Only where the instance was made for it (`stdin_once`
        without a terminal, and any exec without one): elsewhere standard input stays open, as in Docker."""
        if not self._closes_stdin or not self._stdin:
            return
        async with self._writing:
            self._stdin = False
            if not self._ended:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """Let go. The process keeps its standard input."""
        if self._closed:
            return
        self._closed = True
        self._chunks.clear()
        self._buffered = 0
        self._made_room()
        self._changed.set()
        if self._closes_stdin and self._stdin and not self._ended:
            self._resume()
        else:
            self._end()

    def abandon(self) -> None:
        """Close the connection whatever it means to the process: Insula itself ends."""
        self._closed = True
        self._end()
