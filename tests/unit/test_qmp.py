"""The monitor against a server that speaks QMP: answers, refusals, deadlines, and what happens when it hangs up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from insula.errors import DeadlineExceeded, Unavailable
from insula.host import qmp
from insula.host.qmp import Monitor, Refused

Handler = Callable[["Server", dict[str, Any]], Awaitable[None]]


class Server:
    """One QMP server; `handler` answers every command after the negotiation."""

    def __init__(self, path: str, handler: Handler, *, greet: bool = True) -> None:
        self.path, self.handler, self.greet = path, handler, greet
        self.writers: list[asyncio.StreamWriter] = []

    async def send(self, message: dict[str, Any]) -> None:
        self.writers[-1].write(json.dumps(message).encode() + b"\r\n")
        await self.writers[-1].drain()

    def hang_up(self) -> None:
        self.writers[-1].close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        if self.greet:
            version = {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}
            await self.send({"QMP": {"version": version, "capabilities": []}})
        while chunk := await reader.read(65536):
            message = json.loads(chunk)  # the client sends one command at a time, and ends it with nothing
            if message["execute"] == "qmp_capabilities":
                await self.send({"return": {}})
            else:
                await self.handler(self, message)
        writer.close()


async def echo(server: Server, message: dict[str, Any]) -> None:
    match message["execute"]:
        case "silence":
            return
        case "fail":
            error = {"class": "DeviceNotFound", "desc": "no such device"}
            await server.send({"error": error, "id": message["id"]})
        case "leave":
            await server.send({"event": "SHUTDOWN", "data": {"guest": True}, "timestamp": {}})
            server.hang_up()
        case "many":
            for number in range(qmp.EVENTS_KEPT + 10):
                await server.send({"event": "TICK", "data": {"n": number}, "timestamp": {}})
            await server.send({"return": {}, "id": message["id"]})
        case _:
            await server.send({"return": message.get("arguments", {}), "id": message["id"]})


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(str(tmp_path / "qmp"), echo)
    listener = await asyncio.start_unix_server(made.serve, made.path)
    yield made
    listener.close()
    for writer in made.writers:
        writer.close()
    await asyncio.sleep(0)


async def test_commands_and_refusals(server: Server) -> None:
    monitor = await Monitor.connect(server.path)
    assert await monitor.execute("set", read_only=True) == {"read-only": True}
    with pytest.raises(Refused, match="QEMU refused fail: no such device") as caught:
        await monitor.execute("fail")
    assert caught.value.error_class == "DeviceNotFound"
    assert await monitor.execute("again") == {}
    await monitor.close()
    await monitor.close()
    with pytest.raises(Unavailable):
        await monitor.execute("again")


async def test_a_missing_answer_meets_its_deadline_and_the_next_command_works(server: Server) -> None:
    monitor = await Monitor.connect(server.path)
    with pytest.raises(DeadlineExceeded, match="silence"):
        await monitor.execute("silence", deadline_s=0.05)
    assert await monitor.execute("again", a=1) == {"a": 1}
    await monitor.close()


async def test_events_reach_every_reader_and_end_with_an_error(server: Server) -> None:
    monitor = await Monitor.connect(server.path)
    one, two = monitor.subscribe(), monitor.subscribe()
    with pytest.raises(Unavailable):
        await monitor.execute("leave")
    for reader in (one, two):
        event = await reader.next()
        assert (event.name, event.data) == ("SHUTDOWN", {"guest": True})
        with pytest.raises(Unavailable):
            await asyncio.wait_for(reader.next(), 1)
        with pytest.raises(Unavailable):
            await reader.next()
    await asyncio.wait_for(monitor.gone(), 1)
    assert not monitor.alive
    with pytest.raises(Unavailable):
        await monitor.subscribe().next()
    await monitor.close()


async def test_a_reader_that_does_not_read_is_dropped_with_an_error(server: Server) -> None:
    monitor = await Monitor.connect(server.path)
    slow = monitor.subscribe()
    await monitor.execute("many")
    seen = 0
    with pytest.raises(Unavailable):
        async for _ in slow:
            seen += 1
    assert seen == qmp.EVENTS_KEPT
    assert monitor.alive
    await monitor.close()


async def test_nobody_there_and_nobody_greeting(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await Monitor.connect(str(tmp_path / "nothing"))
    server.greet = False
    with pytest.raises(DeadlineExceeded):
        await Monitor.connect(server.path, deadline_s=0.05)
