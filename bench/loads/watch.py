"""Many watchers of one object that is changed again and again: how long until each of them has heard of a change."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
import uvloop

from bench.api import Server
from bench.loads import percentiles, tell
from bench.loads.wire import Connection, Stream, request

DEADLINE_S = 60.0
One = TypeVar("One", Connection, Stream)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`watch` is the path of the watch, `change` the object's path, whose annotation is patched `changes` times."""

    server: Server
    watch: str
    change: str
    watchers: int = 1000
    changes: int = 20


class Measured(msgspec.Struct, frozen=True):
    """Seconds from sending a change to its arrival: at each watcher, and at the last one. `seconds` is the whole time."""

    each: list[float]
    last: list[float]
    seconds: float


class Load:
    """The state of one run: one change at a time, the next when all have heard of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.each: list[float] = []
        self.last: list[float] = []
        self._sent = 0.0
        self._missing = 0
        self._all = asyncio.Event()

    def seen(self, count: int) -> None:
        """A watcher has heard of the change."""
        self.each.append(time.perf_counter() - self._sent)
        self._missing -= count
        if self._missing <= 0:
            self._all.set()

    async def _connect(self, make: Callable[[], One]) -> One:
        server = self.settings.server
        _, made = await asyncio.get_running_loop().create_connection(
            make, server.host, server.port, ssl=self._tls, server_hostname=server.host
        )
        return made

    def _stream(self) -> Stream:
        server = self.settings.server
        ask = request("GET", self.settings.watch, server.host, server.headers())
        return Stream(ask, self.seen, b'"type":"MODIFIED"')

    async def run(self) -> tuple[float, float]:
        """(seconds, own CPU seconds) of the changes."""
        self._tls = self.settings.server.tls()
        streams: list[Stream] = []
        for start in range(0, self.settings.watchers, 20):
            size = min(20, self.settings.watchers - start)
            streams += await asyncio.gather(*(self._connect(self._stream) for _ in range(size)))
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(stream.open for stream in streams))
        writer = await self._connect(Connection)
        await self._change(writer, -1)  # the first one warms up
        self.each.clear()
        self.last.clear()
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(self.settings.changes):
            await self._change(writer, number)
        took = time.perf_counter() - began, time.process_time() - cpu
        for stream in streams:
            if stream.transport:
                stream.transport.abort()
        writer.close()
        return took

    async def _change(self, writer: Connection, number: int) -> None:
        server = self.settings.server
        body = msgspec.json.encode({"metadata": {"annotations": {"n": f"{number}-{time.time_ns()}"}}})
        ask = request("PATCH", self.settings.change, server.host, server.headers(), body)
        self._all.clear()
        self._missing = self.settings.watchers
        self._sent = time.perf_counter()
        status, _ = await writer.ask(ask)
        if status >= 400:
            raise ConnectionError(f"PATCH {self.settings.change}: {status}")
        async with asyncio.timeout(DEADLINE_S):
            await self._all.wait()
        self.last.append(time.perf_counter() - self._sent)


async def main() -> None:
    """Read the settings, make the load, tell."""
    load = Load(msgspec.json.decode(sys.stdin.buffer.read(), type=Settings))
    seconds, cpu = await load.run()
    tell(Measured(percentiles(load.each), load.last, seconds), cpu, seconds)


if __name__ == "__main__":
    uvloop.run(main())
