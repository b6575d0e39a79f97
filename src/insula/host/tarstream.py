"""Archives as streams: from an event loop into a thread, out of a thread to an event loop, and through layers of reading that
decompress, hash and limit. What a tar has in it is read by `tarmembers`.
"""

from __future__ import annotations

import asyncio
import bz2
import hashlib
import lzma
import queue
import tarfile
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import zstandard

from insula.errors import Invalid, TooLarge
from insula.host.threads import in_own_thread

T = TypeVar("T")

CHUNK = 256 * 1024
_QUEUED = 8  # chunks between the event loop and a thread


class Source(Protocol):
    """Anything with a blocking `read`. At the end it returns no bytes; before it may return fewer than asked."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes."""
        ...


def forward_tar(out: Any) -> tarfile.TarFile:
    """A tar that is written forward only to a file-like object, of which only `write` is used, in pieces of `CHUNK` bytes:
    `tarfile` by itself writes 10 KiB at a time and copies what is left each time."""
    made = tarfile.open(  # noqa: SIM115
        fileobj=out, mode="w|", bufsize=CHUNK, format=tarfile.PAX_FORMAT, errors="surrogateescape"
    )
    made.copybufsize = CHUNK  # type: ignore[attr-defined]
    return made


# --- threads and the event loop -----------------------------------------------------------------------------------


async def consume(chunks: AsyncIterator[bytes], call: Callable[[Source], T], name: str = "archive") -> T:
    """Give an asynchronous stream to blocking code in a thread of its own. When either side fails, both end."""
    feed = _Feed(asyncio.get_running_loop())
    pump = asyncio.create_task(feed.pump(chunks), name=f"feed {name}")
    work = asyncio.ensure_future(in_own_thread(lambda: feed.work(call), name))
    try:
        return await asyncio.shield(work)
    finally:
        feed.abort()
        pump.cancel()
        await asyncio.wait([pump, work])
        if not work.cancelled():
            work.exception()


class _Feed:
    """A bounded queue whose reader is a thread and whose writer is a task."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._chunks: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(_QUEUED)
        self._rest = b""
        self._ended = False
        self._finished = False

    async def pump(self, chunks: AsyncIterator[bytes]) -> None:
        try:
            async for chunk in chunks:
                if chunk:
                    await self._room.acquire()
                    self._chunks.put(bytes(chunk))
            self._chunks.put(b"")
        except asyncio.CancelledError:
            self.abort()
            raise
        except BaseException as error:
            self._chunks.put(error)

    def abort(self) -> None:
        self._chunks.put(Invalid("the upload was broken off before its end"))

    def work(self, call: Callable[[Source], T]) -> T:
        return call(self)

    def read(self, size: int, /) -> bytes:
        if not self._rest and not self._ended:
            chunk = self._chunks.get()
            if isinstance(chunk, BaseException):
                raise chunk
            self._ended = not chunk
            self._rest = chunk
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._room.release)
        head, self._rest = self._rest[:size], self._rest[size:]
        return head


class Pipe:
    """The writing end given to `produce`'s thread: a blocking, bounded file."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready = threading.Semaphore(_QUEUED)
        self._closed = False
        self.chunks: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self._pending = bytearray()

    def write(self, data: bytes, /) -> int:
        """Take bytes; waits while the reader is behind. Raises BrokenPipeError when it has gone."""
        self._pending += data
        if len(self._pending) >= CHUNK:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Send what is held back."""
        if self._pending:
            chunk, self._pending = bytes(self._pending), bytearray()
            self._ready.acquire()
            if self._closed:
                raise BrokenPipeError("the reader of this stream has gone")
            self._send(chunk)

    def end(self, fault: BaseException | None) -> None:
        """Say that nothing more comes, and why."""
        self._send(fault)

    def taken(self) -> None:
        """One chunk was read: there is room for one more."""
        self._ready.release()

    def close(self) -> None:
        """The reader has gone; wake the writer."""
        self._closed = True
        self._ready.release()

    def _send(self, item: bytes | BaseException | None) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.chunks.put_nowait, item)


async def produce(call: Callable[[Pipe], object], name: str = "archive") -> AsyncGenerator[bytes, None]:
    """Stream what blocking code writes, from a thread of its own. A fault in it is raised here, after its last bytes."""
    pipe = Pipe(asyncio.get_running_loop())

    def run() -> None:
        try:
            call(pipe)
            pipe.flush()
        except BaseException as error:
            pipe.end(error)
        else:
            pipe.end(None)

    work = asyncio.ensure_future(in_own_thread(run, name))
    try:
        while (item := await pipe.chunks.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            pipe.taken()
            yield item
    finally:
        pipe.close()
        await asyncio.wait([work])


# --- layers of reading --------------------------------------------------------------------------------------------


class Ahead:
    """Reads a source in a thread of its own, a few chunks ahead: unpacking what was read meanwhile takes another core. Close
    it when done."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._chunks: queue.Queue[bytes | BaseException] = queue.Queue(_QUEUED)
        self._closed = threading.Event()
        self._rest = b""
        self._end: bytes | BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="insula-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while (data := self._source.read(CHUNK)) and self._put(data):
                pass
            self._put(b"")
        except BaseException as fault:
            self._put(fault)

    def _put(self, item: bytes | BaseException) -> bool:
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._chunks.put(item, timeout=0.1)
                return True
        return False

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes. Raises what the source raised."""
        if not self._rest:
            if self._end is None:
                item = self._chunks.get()
                if isinstance(item, BaseException) or not item:
                    self._end = item
                else:
                    self._rest = item
            if isinstance(self._end, BaseException):
                raise self._end
        head, self._rest = self._rest[:size], self._rest[size:]
        return head

    def close(self) -> None:
        """End the thread. Repeatable."""
        self._closed.set()
        self._thread.join()


class Hashing:
    """Hashes and counts what passes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes of the source."""
        data = self._source.read(size)
        self._hash.update(data)
        self.size += len(data)
        return data

    @property
    def digest(self) -> str:
        """`sha256:...` of all that has passed."""
        return "sha256:" + self._hash.hexdigest()


class Limited:
    """Refuses to pass more than a number of bytes, and asks `check` again every 64 MiB."""

    def __init__(self, source: Source, limit: int, sentence: str, check: Callable[[], None] | None = None) -> None:
        self._source = source
        self._left = limit
        self._sentence = sentence
        self._check = check
        self._unchecked = 0

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes. Raises TooLarge."""
        data = self._source.read(size)
        self._left -= len(data)
        self._unchecked += len(data)
        if self._left < 0:
            raise TooLarge(self._sentence)
        if self._check and self._unchecked >= 64 * 1024 * 1024:
            self._unchecked = 0
            self._check()
        return data


class Joined:
    """Bytes that were read ahead, then the rest."""

    def __init__(self, head: bytes, rest: Source) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes."""
        if not self._head:
            return self._rest.read(size)
        head, self._head = self._head[:size], self._head[size:]
        return head


class _Gzip:
    """A decompressor of gzip in the shape of the standard library's bz2 and lzma ones; large steps, GIL released."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Zstd:
    """Likewise for zstd, whose library bounds the window instead of the step (64 KiB in gives at most 64 blocks out)."""

    _STEP = 4 * 1024

    def __init__(self) -> None:
        # 128 MiB of window: what `zstd --long` makes and Docker accepts.
        self._inner = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        self._input = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data + self._input

    @property
    def needs_input(self) -> bool:
        return not self._input

    def decompress(self, data: bytes, max_length: int) -> bytes:
        self._input += data
        out = []
        while self._input and max_length > 0 and not self._inner.eof:
            step, self._input = self._input[: self._STEP], self._input[self._STEP :]
            piece = self._inner.decompress(step)
            max_length -= len(piece)
            out.append(piece)
        return b"".join(out)


_COMPRESSIONS: tuple[tuple[str, bytes, Callable[[], Any]], ...] = (
    ("gzip", b"\x1f\x8b", _Gzip),
    ("zstd", b"\x28\xb5\x2f\xfd", _Zstd),
    ("bzip2", b"BZh", bz2.BZ2Decompressor),
    ("xz", b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(memlimit=256 * 1024 * 1024)),
)


def compression_of(head: bytes) -> str:
    """`gzip`, `zstd`, `bzip2`, `xz` by the first six bytes, or empty."""
    return next((name for name, magic, _ in _COMPRESSIONS if head.startswith(magic)), "")


class Plain:
    """A stream decompressed by its own first bytes; what is not compressed passes. Members may follow one another."""

    def __init__(self, source: Source) -> None:
        head = b""
        while len(head) < 6 and (more := source.read(6 - len(head))):
            head += more
        self.compression = compression_of(head)
        self._source: Source = Joined(head, source)
        self._make = next((make for name, _, make in _COMPRESSIONS if name == self.compression), None)
        self._inner = self._make() if self._make else None
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes of plain content. Raises Invalid (damaged, cut short)."""
        if self._make is None:
            return self._source.read(size)
        if not self._rest:
            self._rest = self._fill(max(size, CHUNK))
        head, self._rest = self._rest[:size], self._rest[size:]
        return head

    def _fill(self, size: int) -> bytes:
        while True:
            if self._inner is None:
                return b""
            if self._inner.eof:
                self._next_member(self._inner.unused_data)
                continue
            data = self._source.read(64 * 1024) if self._inner.needs_input else b""
            if not data and self._inner.needs_input:
                raise Invalid(f"the {self.compression} stream ends too early: it is cut short")
            try:
                plain: bytes = self._inner.decompress(data, size)
            except (zlib.error, OSError, EOFError, lzma.LZMAError, zstandard.ZstdError, ValueError) as error:
                raise Invalid(f"the {self.compression} stream is damaged: {error}") from None
            if plain:
                return plain

    def _next_member(self, unused: bytes) -> None:
        """After a member: another of the same kind, or padding, which is ignored as gzip(1) does."""
        head = unused
        while len(head) < 6 and (more := self._source.read(64 * 1024)):
            head += more
        if self._make is not None and compression_of(head) == self.compression:
            self._inner = self._make()
            self._source = Joined(head, self._source)
        else:
            self._inner = None
            while self._source.read(CHUNK):
                pass
