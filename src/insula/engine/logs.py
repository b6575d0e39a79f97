"""Reading what an instance wrote: from the end, between two times, and on as it grows until the instance ends.

Containers' logs are conmon's (`host/conmonlog.py`), with a time and a channel for each piece. A machine's serial log is raw
bytes without times: its pieces carry none, and `since` and `until` do not apply to it.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from insula.clock import parse_rfc3339
from insula.drivers.driver import Channel
from insula.engine.contract import LogLine
from insula.engine.watchfile import FolderWatch, Watches
from insula.errors import Invalid
from insula.host import conmonlog, holes
from insula.tasks import in_thread

_CHUNK = 64 * 1024  # what is parsed in one go: some 20 ms of the event loop
_TAIL_WINDOW = 64 * 1024
_FOREVER_NS = 1 << 62


class LogQuery(Struct, frozen=True, kw_only=True):
    """Which part of a log. Times in nanoseconds since the epoch; `tail` counts lines from the end, None is all."""

    follow: bool = False
    since_ns: int = 0
    until_ns: int = _FOREVER_NS
    tail: int | None = None


def query_of(*, follow: bool, since: str, until: str, tail: int | None) -> LogQuery:
    """From RFC 3339 times or seconds since the epoch (`1700000000.25`). Raises Invalid."""
    return LogQuery(
        follow=follow,
        since_ns=moment_ns(since) if since else 0,
        until_ns=(moment_ns(until) if until else 0) or _FOREVER_NS,
        tail=tail,
    )


def moment_ns(text: str) -> int:
    """Nanoseconds since the epoch of either notation. Raises Invalid."""
    seconds, _, fraction = text.partition(".")
    if seconds.lstrip("-").isdigit() and (not fraction or fraction.isdigit()):
        return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0") or 0)
    try:
        return _rfc3339_ns(text)
    except ValueError:
        raise Invalid(f"{text!r} is not a time: give RFC 3339 or seconds since the epoch", field="since") from None


def _rfc3339_ns(text: str) -> int:
    whole, dot, rest = text.partition(".")
    if not dot:
        return int(parse_rfc3339(text).timestamp()) * 1_000_000_000
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return _whole_seconds(whole + rest[len(digits) :]) * 1_000_000_000 + int(digits[:9].ljust(9, "0"))


@functools.lru_cache(maxsize=1024)
def _whole_seconds(text: str) -> int:
    return int(parse_rfc3339(text).timestamp())


@functools.lru_cache(maxsize=1024)
def _in_utc(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class _Parser(Protocol):
    def feed(self, chunk: bytes) -> Iterator[tuple[int, LogLine]]: ...

    def tail_offset(self, content: bytes, lines: int) -> int: ...


class TimedParser:
    """conmon's format. Times come out in UTC."""

    def __init__(self) -> None:
        self._parser = conmonlog.Parser()

    def feed(self, chunk: bytes) -> Iterator[tuple[int, LogLine]]:
        """Each piece with its time in nanoseconds."""
        for entry in self._parser.feed(chunk):
            try:
                moment = _rfc3339_ns(entry.time)
            except ValueError:
                continue  # a torn line
            time = f"{_in_utc(moment // 1_000_000_000)}.{moment % 1_000_000_000:09d}Z"
            yield moment, LogLine(time=time, channel=Channel(entry.stream), data=entry.data, partial=entry.partial)

    def tail_offset(self, content: bytes, lines: int) -> int:
        """Where the last `lines` lines begin; 0 when there are no more. Partial pieces belong to the line they are part of."""
        if lines == 0:
            return len(content)
        begin = len(content)
        while begin > 0:
            begin = content.rfind(b"\n", 0, begin - 1) + 1
            above = content[content.rfind(b"\n", 0, max(begin - 1, 0)) + 1 : begin]
            entry = conmonlog.parse_line(above)
            if entry is None or not entry.partial:
                lines -= 1
                if lines == 0:
                    return begin
        return 0


class RawParser:
    """Bytes as they are, cut at line feeds."""

    def feed(self, chunk: bytes) -> Iterator[tuple[int, LogLine]]:
        """Each line, or piece of one."""
        for line in chunk.splitlines(keepends=True):
            yield 0, LogLine(time="", channel=Channel.STDOUT, data=line, partial=not line.endswith(b"\n"))

    def tail_offset(self, content: bytes, lines: int) -> int:
        """Where the last `lines` lines begin; 0 when there are no more."""
        position = len(content) - 1 if content.endswith(b"\n") else len(content)
        for _ in range(lines):
            position = content.rfind(b"\n", 0, max(position, 0))
            if position < 0:
                return 0
        return position + 1 if lines else len(content)


class Follower:
    """One reader of one log file. Its blocking reads run in threads."""

    def __init__(self, path: Path, query: LogQuery, watches: Watches, *, timed: bool, ended: asyncio.Event) -> None:
        self._path = path
        self._query = query
        self._watches = watches
        self._parser: _Parser = TimedParser() if timed else RawParser()
        self._timed = timed
        self._ended = ended
        self._tail = query.tail
        self._file = -1
        self._position = 0

    async def read(self) -> AsyncIterator[LogLine]:
        """The asked part, oldest first. Ends when the instance has ended and all it wrote was given, or at `until`."""
        try:
            if not self._query.follow:
                async for line in self._to_the_end():
                    yield line
                return
            with self._watches.folder(self._path.parent) as watch:
                async for line in self._as_it_grows(watch):
                    yield line
        finally:
            self._close()

    async def _as_it_grows(self, watch: FolderWatch) -> AsyncIterator[LogLine]:
        while True:
            ended = self._ended.is_set()
            async for line in self._to_the_end():
                yield line
            if ended or self._past_until():
                return
            await self._change(watch)

    def _past_until(self) -> bool:
        return self._query.until_ns != _FOREVER_NS and datetime.now(UTC).timestamp() * 1e9 > self._query.until_ns

    async def _change(self, watch: FolderWatch) -> None:
        """Until the log grew, the instance ended or `until` passed."""
        left = None
        if self._query.until_ns != _FOREVER_NS:
            left = max(0.0, self._query.until_ns / 1e9 - datetime.now(UTC).timestamp()) + 0.001
        waits = [asyncio.ensure_future(watch.changed()), asyncio.ensure_future(self._ended.wait())]
        try:
            await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _to_the_end(self) -> AsyncIterator[LogLine]:
        query = self._query
        while chunk := await in_thread(self._next_chunk):
            for moment, line in self._parser.feed(chunk):
                if not self._timed or query.since_ns <= moment <= query.until_ns:
                    yield line

    def _next_chunk(self) -> bytes:
        if self._file < 0:
            try:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return b""
            self._position = self._line_from(0)
            if self._tail is not None:
                self._position = self._find_tail(self._tail, self._position)
                self._tail = None  # of a file that takes the place of this one, all is wanted
        chunk = os.pread(self._file, _CHUNK, self._position)
        if not chunk:
            return self._next_file() if self._was_replaced() else b""
        if holes.data_from(self._file, self._position) != self._position:  # its head was taken away under us
            self._parser = TimedParser() if self._timed else RawParser()
            self._position = self._line_from(self._position)
            return self._next_chunk()
        self._position += len(chunk)
        return chunk

    def _next_file(self) -> bytes:
        self._close()
        self._position = 0
        return self._next_chunk()

    def _line_from(self, offset: int) -> int:
        """Where the first whole line begins in what is left of the log from `offset` on."""
        begin = holes.data_from(self._file, offset)
        if begin == offset:
            return offset
        torn = begin
        while chunk := os.pread(self._file, _CHUNK, torn):
            end = chunk.find(b"\n")
            if end >= 0:
                return torn + end + 1
            torn += len(chunk)
        return torn

    def _was_replaced(self) -> bool:
        """Whether the name now means another file, or this one was cut short: a rotation."""
        mine = os.fstat(self._file)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) != (mine.st_dev, mine.st_ino) or named.st_size < self._position

    def _find_tail(self, lines: int, first: int) -> int:
        """Read backwards in growing windows, at most to the offset `first`, until one holds more lines than wanted."""
        size = os.fstat(self._file).st_size
        window = _TAIL_WINDOW
        while True:
            begin = max(first, size - window)
            content = os.pread(self._file, max(0, size - begin), begin)
            skipped = 0 if begin == first else content.find(b"\n") + 1
            content = content[skipped:]
            # With more lines than wanted in the window, the first of them, perhaps a torn one, does not count.
            if begin == first or self._parser.tail_offset(content, lines + 1) > 0:
                return begin + skipped + self._parser.tail_offset(content, lines)
            window *= 4

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
