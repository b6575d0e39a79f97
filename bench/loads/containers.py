"""Many containers at once through a Docker socket: all are made and started side by side, as fast as the daemon can."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import aiohttp
import msgspec
import uvloop

from bench.loads import tell

DEADLINE_S = 300.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Start `count` containers of `image`, each running `command`."""

    socket: str
    image: str
    command: list[str]
    count: int = 50


class Measured(msgspec.Struct, frozen=True):
    """Seconds until the last one runs."""

    seconds: float
    ids: list[str]


async def _one(session: aiohttp.ClientSession, settings: Settings) -> str:
    body = {"Image": settings.image, "Cmd": settings.command}
    async with session.post("http://docker/containers/create", json=body) as answer:
        answer.raise_for_status()
        made: str = (await answer.json())["Id"]
    async with session.post(f"http://docker/containers/{made}/start") as answer:
        answer.raise_for_status()
    return made


async def main() -> None:
    """Read the settings, make the load, tell."""
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)
    connector = aiohttp.UnixConnector(path=settings.socket, limit=0)
    assert Path(settings.socket).is_socket()
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        async with session.get("http://docker/version") as answer:
            await answer.read()
        began, cpu = time.perf_counter(), time.process_time()
        ids = await asyncio.gather(*(_one(session, settings) for _ in range(settings.count)))
        took = time.perf_counter() - began
        tell(Measured(took, ids), time.process_time() - cpu, took)


if __name__ == "__main__":
    uvloop.run(main())
