"""Insula's connection to the relay of one machine: processes beside the image's, signals, sizes, questions.

A connection is made when it is needed and may be lost at any time; the machine goes on. What the machine sends is a stranger's:
more than its window, an unknown session or a broken frame ends the connection or is passed over, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import struct
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

from insula import clock
from insula.drivers.driver import Channel, Exit
from insula.drivers.microvm.sandboxed import frames
from insula.drivers.microvm.sandboxed.frames import BadFrame, Reader, pack, pack_number
from insula.errors import DeadlineExceeded, HostFault, Unavailable
from insula.host.conmon import short_path

log = logging.getLogger(__name__)
_CHANNELS = {frames.OUTPUT: Channel.STDOUT, frames.ERRORS: Channel.STDERR}
_KILLED = 128 + 9
_MOST_ANSWERS = 65536
ANSWER_S = 60.0


class Refused(Exception):  # noqa: N818 - the agent's answer, not a fault of ours
    """The agent could not start a process: Docker's exit code, and runc's words."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words


class Session:
    """One process of a machine: `Streams` and `ExecHandle` of the driver contract at once."""

    def __init__(self, link: Link, number: int, *, tty: bool, stdin: bool) -> None:
        self._link = link
        self._number = number
        self._tty = tty
        self._stdin = stdin
        self._chunks: deque[tuple[Channel, bytes]] = deque()
        self._held = 0
        self._credit = frames.WINDOW
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._writing = asyncio.Lock()
        self._closed = False
        self.begun: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.pid = 0

    @property
    def streams(self) -> Session:
        """Its streams; nothing was sent before this object was there."""
        return self

    # --- from the machine

    def take(self, kind: bytes, data: bytes) -> None:
        """One frame. Raises BadFrame."""
        if channel := _CHANNELS.get(kind):
            self._held += len(data)
            if self._held > frames.WINDOW or not data:
                raise BadFrame("more output than it may send")
            if self._closed:
                self._taken(len(data))
            else:
                self._chunks.append((channel, data))
        elif kind == frames.MORE_INPUT:
            self._credit = min(self._credit + frames.number(data), frames.WINDOW)
            self._room.set()
        elif kind == frames.BEGUN and not self.begun.done():
            self.pid = frames.number(data)
            self.begun.set_result(self.pid)
        elif kind == frames.FAILED and not self.begun.done():
            self.begun.set_exception(Refused(frames.number(data) & 0xFF, data[4:].decode(errors="replace")))
            self.begun.exception()  # somebody may have stopped waiting
            self._end(Exit(code=frames.number(data) & 0xFF))
        elif kind == frames.ENDED:
            self._end(Exit(code=frames.number(data) & 0xFF, finished_at=clock.rfc3339_nano(clock.now())))
        self._changed.set()

    def lost(self) -> None:
        """The connection is over, and with it this."""
        if not self.begun.done():
            self.begun.set_exception(Unavailable("the machine has ended"))
            self.begun.exception()  # somebody may have stopped waiting
        self._end(Exit(code=_KILLED, finished_at=clock.rfc3339_nano(clock.now()), message="the machine has ended"))

    def _end(self, done: Exit) -> None:
        if not self._ended.done():
            self._ended.set_result(done)
        self._link.forget(self._number)
        self._room.set()
        self._changed.set()

    def _taken(self, count: int) -> None:
        self._held -= count
        if not self._ended.done():
            self._link.send(pack_number(frames.MORE_OUTPUT, self._number, count))

    # --- Streams

    async def read(self) -> AsyncIterator[tuple[Channel, bytes]]:
        """See the contract."""
        while True:
            while self._chunks:
                channel, data = self._chunks.popleft()
                self._taken(len(data))
                yield channel, data
            if self._ended.done() or self._closed:
                return
            self._changed.clear()
            await self._changed.wait()

    async def write(self, data: bytes) -> None:
        """See the contract. Raises HostFault (broken pipe) after its end."""
        if not self._stdin:
            return
        async with self._writing:
            view = memoryview(data)
            while view:
                count = min(self._credit, len(view), frames.LARGEST)
                if self._ended.done() or self._closed:
                    raise HostFault("The process does not take input any more: it has ended.")
                if not count:
                    self._room.clear()
                    await self._room.wait()
                    continue
                self._credit -= count
                await self._link.send_all(pack(frames.INPUT, self._number, view[:count]))
                view = view[count:]

    async def close_stdin(self) -> None:
        """See the contract. A terminal has no end of file."""
        async with self._writing:
            if self._stdin and not self._tty and not self._ended.done():
                self._link.send(pack(frames.INPUT, self._number))
            self._stdin = False

    async def close(self) -> None:
        """See the contract: it goes on, and what it says is thrown away."""
        self._closed = True
        while self._chunks:
            self._taken(len(self._chunks.popleft()[1]))
        self._room.set()
        self._changed.set()
        await self.close_stdin()

    # --- ExecHandle

    async def resize(self, width: int, height: int) -> None:
        """See the contract."""
        self._link.resize(self._number, width, height)

    async def wait(self) -> Exit:
        """See the contract."""
        return await asyncio.shield(self._ended)

    async def kill(self, signal: int) -> None:
        """See the contract."""
        if not self._ended.done():
            self._link.signal(self._number, signal)


class Link:
    """The connection. Use `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._sessions: dict[int, Session] = {}
        self._answers: dict[int, asyncio.Queue[bytes | None]] = {}
        self.image = Session(self, 0, tty=False, stdin=False)
        self._sessions[0] = self.image
        self._task = asyncio.create_task(self._follow(reader), name="microvm/link")

    @classmethod
    async def connect(cls, path: Path) -> Link:
        """Raises Unavailable when nobody serves the socket: the machine has ended."""
        try:
            with short_path(path) as short:
                reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(short), 10)
        except (OSError, TimeoutError) as fault:
            raise Unavailable("the machine has ended") from fault
        return cls(reader, writer)

    @property
    def open(self) -> bool:
        """Whether it can still be used."""
        return not self._task.done()

    async def close(self) -> None:
        """Let go: processes beside the image's lose their streams and go on."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        frames_of = Reader(frames.LARGEST)
        try:
            while data := await reader.read(65536):
                for kind, session, body in frames_of.feed(data):
                    self._take(kind, session, body)
        except (OSError, BadFrame) as fault:
            log.warning("the connection to a machine is given up", exc_info=fault)
        finally:
            for each in tuple(self._sessions.values()):
                each.lost()
            for answers in self._answers.values():
                answers.put_nowait(None)
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def _take(self, kind: bytes, number: int, body: bytes) -> None:
        if kind == frames.LIST and (answers := self._answers.get(number)):
            answers.put_nowait(body or None)
        elif session := self._sessions.get(number):
            session.take(kind, body)

    def forget(self, number: int) -> None:
        """A session is over."""
        self._sessions.pop(number, None)

    # --- to the machine

    def send(self, frame: bytes) -> None:
        """Send a small frame; a connection that is over takes it too."""
        if self.open and not self._writer.is_closing():
            self._writer.write(frame)

    async def send_all(self, frame: bytes) -> None:
        """Send a frame, and wait while the relay does not take more."""
        self.send(frame)
        with contextlib.suppress(OSError):
            await self._writer.drain()

    def signal(self, session: int, number: int) -> None:
        """Signal a process."""
        self.send(pack_number(frames.SIGNAL, session, number))

    def resize(self, session: int, width: int, height: int) -> None:
        """Set the size of a process's terminal."""
        self.send(pack(frames.RESIZE, session, struct.pack("<HH", min(width, 0xFFFF), min(height, 0xFFFF))))

    def _unused(self) -> int:
        while (number := 1 + secrets.randbelow(0xFFFF)) in self._sessions or number in self._answers:
            pass
        return number

    async def start(self, body: bytes, *, tty: bool, stdin: bool) -> Session:
        """Run a process beside the image's. Raises Refused, Unavailable, DeadlineExceeded."""
        number = self._unused()
        session = Session(self, number, tty=tty, stdin=stdin)
        self._sessions[number] = session
        await self.send_all(pack(frames.RUN, number, body))
        if not self.open:
            session.lost()
        try:
            await asyncio.wait_for(session.begun, ANSWER_S)
        except TimeoutError as fault:
            self.send(pack(frames.CLOSE, number))
            self.forget(number)
            raise DeadlineExceeded(f"The machine did not answer within {ANSWER_S:g} s.") from fault
        return session

    async def list(self) -> list[bytes]:
        """What the agent tells of every process. Raises Unavailable, DeadlineExceeded."""
        number = self._unused()
        answers = self._answers[number] = asyncio.Queue()
        found: list[bytes] = []
        try:
            self.send(pack(frames.LIST, number))
            async with asyncio.timeout(ANSWER_S):
                while self.open and (answer := await answers.get()) is not None and len(found) < _MOST_ANSWERS:
                    found.append(answer)
        except TimeoutError as fault:
            raise DeadlineExceeded(f"The machine did not answer within {ANSWER_S:g} s.") from fault
        finally:
            del self._answers[number]
        if not self.open:
            raise Unavailable("the machine has ended")
        return found
