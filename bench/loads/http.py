"""Requests over kept connections: each connection asks again as soon as it is answered (a closed loop)."""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec
import uvloop

from bench.api import Server
from bench.loads import percentiles, tell
from bench.loads.wire import Connection, request

N = "{n}"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask. `{n}` in path and body becomes a number that counts up from `first`. Ends after `seconds` or `count`."""

    server: Server
    method: str
    path: str
    body: str = ""
    connections: int = 16
    seconds: float = 5.0
    count: int = 0
    first: int = 0
    warm: int = 0


class Measured(msgspec.Struct, frozen=True):
    """How many were answered in how many seconds, the distribution of latencies in seconds, the body bytes of the last answer,
    and how many answers were errors (4xx, 5xx)."""

    count: int
    seconds: float
    latencies: list[float]
    size: int
    errors: int


class Load:
    """The state of one run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.latencies: list[float] = []
        self.size = self.errors = 0
        self._next = settings.first

    def bytes_of(self) -> bytes:
        """The next request."""
        wanted, number = self.settings, str(self._next)
        self._next += 1
        path, body = wanted.path.replace(N, number), wanted.body.replace(N, number)
        return request(wanted.method, path, wanted.server.host, wanted.server.headers(), body.encode())

    async def connect(self) -> Connection:
        """One connection, its TLS handshake done."""
        server = self.settings.server
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(
            Connection, server.host, server.port, ssl=self._tls, server_hostname=server.host
        )
        return made

    async def run(self) -> tuple[float, float]:
        """(seconds, own CPU seconds) of the measured part."""
        self._tls = self.settings.server.tls()
        connections = [await self.connect() for _ in range(self.settings.connections)]
        for _ in range(self.settings.warm):
            await connections[0].ask(self.bytes_of())
        began, cpu = time.perf_counter(), time.process_time()
        end = began + self.settings.seconds if not self.settings.count else float("inf")
        last = self._next + self.settings.count if self.settings.count else sys.maxsize
        await asyncio.gather(*(self._keep_asking(connection, end, last) for connection in connections))
        took = time.perf_counter() - began, time.process_time() - cpu
        for connection in connections:
            connection.close()
        return took

    async def _keep_asking(self, connection: Connection, end: float, last: int) -> None:
        while self._next < last and (began := time.perf_counter()) < end:
            status, self.size = await connection.ask(self.bytes_of())
            self.latencies.append(time.perf_counter() - began)
            self.errors += status >= 400


async def main() -> None:
    """Read the settings, make the load, tell."""
    load = Load(msgspec.json.decode(sys.stdin.buffer.read(), type=Settings))
    seconds, cpu = await load.run()
    found = Measured(len(load.latencies), seconds, percentiles(load.latencies), load.size, load.errors)
    tell(found, cpu, seconds)


if __name__ == "__main__":
    uvloop.run(main())
