"""The user's terminal in raw mode, or whatever else standard input is, as a source of bytes for a serial line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Iterator

from insula.host.threads import in_own_thread

ESCAPE = b"\x1d"  # Ctrl-]
_CHUNK = 4096
_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def raw(fd: int) -> Iterator[bool]:
    """Put a terminal into raw mode and back, whatever happens in between; False and nothing else for a pipe or a file."""
    if not os.isatty(fd):
        yield False
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield True
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def ending_politely(task: asyncio.Task[object]) -> Iterator[None]:
    """Let a signal that ends this process end the block first, so that the terminal is put back. Raises SystemExit with the
    code that a shell gives to such a signal."""
    loop, came = asyncio.get_running_loop(), list[int]()

    def end(number: int) -> None:
        came.append(number)
        task.cancel()

    for number in _ENDING:
        loop.add_signal_handler(number, end, number)
    try:
        yield
    except asyncio.CancelledError:
        if came:
            raise SystemExit(128 + came[0]) from None
        raise
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)


async def keys(fd: int) -> AsyncGenerator[bytes, None]:
    """What is typed, until its end. Reads on a thread, for regular files know no readiness. Close it (`aclosing`), which
    waits until the thread reads no more."""
    waker, wake = os.pipe()

    def read() -> bytes:
        ready, _, _ = select.select([fd, waker], [], [])
        return b"" if waker in ready else os.read(fd, _CHUNK)

    reading: asyncio.Future[bytes] | None = None
    try:
        while True:
            reading = asyncio.ensure_future(in_own_thread(read, "keys"))
            data = await asyncio.shield(reading)
            if not data:
                return
            yield data
    finally:
        os.close(wake)
        if reading is not None and not reading.done():
            await asyncio.wait([reading])
        os.close(waker)


def until_escape(data: bytes) -> tuple[bytes, bool]:
    """What to send of what was typed, and whether Ctrl-] was in it."""
    before, found, _ = data.partition(ESCAPE)
    return before, bool(found)


def write_out(data: bytes) -> None:
    """All of it to standard output, past Python's buffers: a prompt has no line end."""
    sys.stdout.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]
