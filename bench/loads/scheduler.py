"""Insula's scheduler as a process of its own, pointed at any API server; runs until it is ended."""

from __future__ import annotations

import asyncio
import signal
import sys

import msgspec
import uvloop

from bench.api import Server
from insula.client.http import HttpClient
from insula.control.shared import SharedCaches
from insula.scheduler.loop import Scheduler
from insula.tasks import Tasks


async def main() -> None:
    """Read where the server is, schedule until SIGTERM."""
    server = msgspec.json.decode(sys.stdin.buffer.read(), type=Server)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = HttpClient(f"https://{server.host}:{server.port}", ssl_context=server.tls(), token=server.token)
    async with Tasks("bench") as tasks:
        scheduler = Scheduler(client, SharedCaches(client, tasks), machines=False)
        await scheduler.start()
        await stop.wait()
        await scheduler.close()
    await client.close()


if __name__ == "__main__":
    uvloop.run(main())
