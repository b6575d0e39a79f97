"""A machine's serial line on the user's terminal, and its screen on a local port: both over the KubeVirt door's WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from aiohttp import ClientWebSocketResponse, WSMsgType

from insula.cli import machines, terminal
from insula.cli.doors import Door
from insula.errors import InsulaError
from insula.host.threads import in_own_thread

STDIN = 0
_CHUNK = 32 * 1024


class Quiet:
    """Knows how long the line has been silent."""

    def __init__(self) -> None:
        self._heard = asyncio.Event()

    def heard(self) -> None:
        """Something came."""
        self._heard.set()

    async def for_seconds(self, patience_s: float) -> None:
        """Return when nothing has come for so long."""
        with contextlib.suppress(TimeoutError):
            while True:
                self._heard.clear()
                async with asyncio.timeout(patience_s):
                    await self._heard.wait()


async def attach(door: Door, path: str, linger_s: float) -> str:
    """Join the terminal (or the pipe) and the line until Ctrl-], the line's end, or the pipe's end and then `linger_s` of
    silence. Returns why it ended: left, input or line."""
    task = asyncio.current_task()
    assert task is not None
    async with door.socket(path, machines.PROTOCOL) as line:
        with terminal.ending_politely(task), terminal.raw(STDIN) as is_terminal:
            quiet = Quiet()
            outward = asyncio.create_task(_show(line, quiet), name="console-out")
            inward = asyncio.create_task(_type(line, is_terminal, quiet, linger_s), name="console-in")
            try:
                done, _ = await asyncio.wait((outward, inward), return_when=asyncio.FIRST_COMPLETED)
                return inward.result() if inward in done else "line"
            finally:
                for each in (outward, inward):
                    each.cancel()
                await asyncio.wait((outward, inward))


async def _show(line: ClientWebSocketResponse, quiet: Quiet) -> None:
    async for message in line:
        if message.type is WSMsgType.BINARY:
            quiet.heard()
            await in_own_thread(lambda data=message.data: terminal.write_out(data), "console-out")  # type: ignore[misc]


async def _type(line: ClientWebSocketResponse, is_terminal: bool, quiet: Quiet, linger_s: float) -> str:
    async with aclosing(terminal.keys(STDIN)) as typed:
        async for data in typed:
            left = False
            if is_terminal:
                data, left = terminal.until_escape(data)
            with contextlib.suppress(ConnectionError):  # `_show` is about to see its end
                await line.send_bytes(data)
            if left:
                return "left"
    if not is_terminal:
        await quiet.for_seconds(linger_s)
    return "input"


@asynccontextmanager
async def vnc_listener(door: Door, path: str, address: str, port: int) -> AsyncIterator[int]:
    """Serve a machine's screen on a local port (0 takes a free one), for the length of the block."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _screen(door, path, reader, writer)
        except InsulaError as fault:
            print(f"insula: {fault}", file=sys.stderr)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, address, port)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _screen(door: Door, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with door.socket(path, machines.PROTOCOL) as screen:

        async def upward() -> None:
            while data := await reader.read(_CHUNK):
                await screen.send_bytes(data)
            await screen.close()

        sending = asyncio.create_task(upward(), name="vnc-up")
        try:
            async for message in screen:
                if message.type is WSMsgType.BINARY:
                    writer.write(message.data)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            sending.cancel()
            await asyncio.wait((sending,))
