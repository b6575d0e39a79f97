"""Attaching to an instance's first process, also before it runs; and the executions beside it.

A client of `docker run` attaches before it starts the container, and must miss no byte. So an attachment may be `Pending`:
its reads and writes wait until `start` has made the process (and not yet run it), joined the attachments, and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from insula.drivers.driver import Channel, Streams
from insula.errors import Unavailable


class Pending:
    """Streams of a process that is not there yet. `join` gives it the real ones, `abandon` ends it without any."""

    def __init__(self, forget: Callable[[Pending], None]) -> None:
        self._real: asyncio.Future[Streams | None] = asyncio.get_running_loop().create_future()
        self._forget = forget
        self._closed = False

    def join(self, real: Streams) -> None:
        """From now on this is `real`."""
        if not self._real.done():
            self._real.set_result(real)

    def abandon(self) -> None:
        """The process will not come: readers see an end."""
        if not self._real.done():
            self._real.set_result(None)

    @property
    def waiting(self) -> bool:
        """Whether it still waits for its process."""
        return not self._real.done()

    async def _streams(self) -> Streams | None:
        # A reader that is cancelled must not cancel the future that others wait for.
        return await asyncio.shield(self._real)

    async def read(self) -> AsyncIterator[tuple[Channel, bytes]]:
        """Chunks, from the process's first byte to its end."""
        real = await self._streams()
        if real is not None:
            async for chunk in real.read():
                yield chunk

    async def write(self, data: bytes) -> None:
        """Waits for the process. Raises Unavailable when it will not come."""
        real = await self._streams()
        if real is None:
            raise Unavailable("the instance did not start, so nothing reads this input")
        await real.write(data)

    async def close_stdin(self) -> None:
        """End of file for the process, once it is there."""
        real = await self._streams()
        if real is not None:
            await real.close_stdin()

    async def close(self) -> None:
        """Let go. Repeatable."""
        if self._closed:
            return
        self._closed = True
        self._forget(self)
        if not self._real.done():
            self._real.set_result(None)
        elif (real := self._real.result()) is not None:
            await real.close()


class Attachments:
    """The attachments of one instance that wait for its next start."""

    def __init__(self) -> None:
        self._waiting: set[Pending] = set()

    def wait_for_start(self) -> Pending:
        """A new attachment for the next start."""
        pending = Pending(self._waiting.discard)
        self._waiting.add(pending)
        return pending

    async def join(self, connect: Callable[[], Awaitable[Streams]]) -> None:
        """Give each its own connection. Called between a driver's `create` and `start`."""
        waiting, self._waiting = self._waiting, set()

        async def one(pending: Pending) -> None:
            real = await connect()
            if pending.waiting:
                pending.join(real)
            else:  # its client left meanwhile
                await real.close()

        results = await asyncio.gather(*(one(each) for each in waiting), return_exceptions=True)
        for fault in results:
            if isinstance(fault, BaseException):
                for pending in waiting:
                    pending.abandon()
                raise fault

    def abandon(self) -> None:
        """There will be no start: end them all."""
        waiting, self._waiting = self._waiting, set()
        for pending in waiting:
            pending.abandon()
