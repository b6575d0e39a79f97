"""The byte streams of containers: attach, logs, terminal size."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from insula.api.docker.containers_filter import moment_ns
from insula.api.docker.route import Call, Route
from insula.api.docker.streams import (
    Client,
    Session,
    content_type,
    frame,
    hijack,
    join,
    over_websocket,
    parse_detach_keys,
)
from insula.api.web import TakenOver, streaming
from insula.drivers.driver import Channel, Streams
from insula.engine.contract import Instance, LogLine
from insula.engine.logattributes import attributes, details
from insula.errors import Conflict, InsulaError, Invalid

_SETTLE_S = 2.0
_WHOLE = 64 * 1024  # log lines are sent together up to this many bytes


# --- attach -------------------------------------------------------------------------------------------------------


async def attach(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/attach`: takes the connection over."""
    instance, session = await _session(call, framed=True)
    streams = await _streams(call, instance, session)
    try:
        client = hijack(call.request, content_type(tty=instance.config.tty, version=call.version))
    except BaseException:
        if streams is not None:
            await streams.close()
        raise
    try:
        await _serve(call, instance, session, streams, client)
    except ConnectionError:
        pass
    finally:
        client.close()
    return TakenOver()


async def attach_websocket(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/attach/ws`: the same without frames, in messages."""
    instance, session = await _session(call, framed=False)
    streams = await _streams(call, instance, session)
    assert isinstance(call.request, web.Request)
    return await over_websocket(call.request, lambda client: _serve(call, instance, session, streams, client))


async def _streams(call: Call, instance: Instance, session: Session) -> Streams | None:
    """None where nothing live is asked for: such an attachment ends at once."""
    wanted = call.flag("stream") and (session.stdin or session.stdout or session.stderr)
    return await call.door.engine.attach(instance.id) if wanted else None


async def _session(call: Call, *, framed: bool) -> tuple[Instance, Session]:
    keys = parse_detach_keys(call.text("detachKeys"))
    instance = await call.door.engine.get(call.params["id"])
    if instance.state.name == "paused":
        raise Conflict(f"container {instance.id} is paused, unpause the container before attach")
    if instance.state.name == "restarting":
        raise Conflict(f"Container {instance.id} is restarting, wait until the container is running")
    config = instance.config
    session = Session(
        tty=config.tty,
        stdin=call.flag("stdin") and config.open_stdin,
        stdout=call.flag("stdout"),
        stderr=call.flag("stderr"),
        close_stdin=config.stdin_once,
        framed=framed and not config.tty,
        detach_keys=keys,
    )
    return instance, session


async def _serve(call: Call, instance: Instance, session: Session, streams: Streams | None, client: Client) -> None:
    try:
        if call.flag("logs"):
            async for line in call.door.engine.logs(instance.id):
                if session.wants(line.channel):
                    await client.write(frame(line.channel, line.data) if session.framed else line.data)
    except BaseException:
        if streams is not None:
            await streams.close()
        raise
    if streams is not None:
        await join(client, streams, session)


async def resize(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/resize`."""
    width, height = size_of(call)
    instance = await call.door.engine.get(call.params["id"])
    if instance.state.name not in ("running", "paused"):
        raise Conflict(f"container {instance.id} is not running")
    await call.door.engine.resize(instance.id, width, height)
    return web.Response(status=200)


def size_of(call: Call) -> tuple[int, int]:
    """The terminal's size in the query. Raises Invalid."""
    height, width = (_side(call, name, word) for name, word in (("h", "height"), ("w", "width")))
    if not (0 <= width < 65536 and 0 <= height < 65536):
        raise Invalid(f"a terminal cannot be {width} by {height} characters", field="w")
    return width, height


def _side(call: Call, name: str, word: str) -> int:
    text = call.text(name)
    if not text.isascii() or not text.isdigit():
        raise Invalid(f'invalid resize {word} "{text}": invalid syntax', field=name)
    return int(text)


# --- logs ---------------------------------------------------------------------------------------------------------


async def logs(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/logs`."""
    channels = {channel for channel in Channel if call.flag(channel.value)}
    if not channels:
        raise Invalid("Bad parameters: you must choose at least one stream")
    instance = await call.door.engine.get(call.params["id"])
    lines = call.door.engine.logs(
        instance.id,
        follow=call.flag("follow"),
        since=_time(call.text("since")),
        until=_time(call.text("until")),
        tail=_tail(call.text("tail")),
    )
    kind = content_type(tty=instance.config.tty, version=call.version)
    async with streaming(call.request, content_type=kind) as response:
        shaper = LineShaper(
            stamped=call.flag("timestamps"),
            framed=not instance.config.tty,
            details=details(attributes(instance.config, instance.image, instance.id)) if call.flag("details") else None,
        )
        async for chunk in _gathered(lines, channels, shaper):
            await response.write(chunk)
        if call.flag("follow") and not call.text("until"):
            # The output has ended because the container has; who saw that may remove it at once.
            with contextlib.suppress(TimeoutError, InsulaError):
                await asyncio.wait_for(call.door.engine.wait(instance.id), _SETTLE_S)
    return response


def _time(text: str) -> str:
    """As the engine takes it. Clients send 0 for "not at all". Raises Invalid."""
    moment = moment_ns(text)
    return f"{moment // 1_000_000_000}.{moment % 1_000_000_000:09d}" if moment else ""


def _tail(text: str) -> int | None:
    """`all`, a number; anything else means all, as in dockerd."""
    return int(text) if text.isascii() and text.isdigit() else None


async def _gathered(lines: AsyncIterator[LogLine], channels: set[Channel], shaper: LineShaper) -> AsyncIterator[bytes]:
    """Frames of lines, several in one write where they come fast; never held back while the log is silent."""
    pending = bytearray()
    coming: asyncio.Future[LogLine] | None = None
    iterator = aiter(lines)
    try:
        while True:
            coming = asyncio.ensure_future(anext(iterator))
            if pending and not await _soon(coming):
                yield bytes(pending)
                pending.clear()
            try:
                line = await coming
            except StopAsyncIteration:
                break
            if line.channel in channels:
                pending += shaper.shape(line)
            if len(pending) >= _WHOLE:
                yield bytes(pending)
                pending.clear()
        if pending:
            yield bytes(pending)
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.wait([coming])
        await iterator.aclose()  # type: ignore[attr-defined]  # an asynchronous generator


async def _soon(coming: asyncio.Future[LogLine]) -> bool:
    """Whether the next line is there already, or after one turn of the event loop."""
    await asyncio.sleep(0)
    return coming.done()


class LineShaper:
    """Turns log lines into what goes out. A time and details stand before the first piece of each line, never within one."""

    def __init__(self, *, stamped: bool, framed: bool, details: str | None = None) -> None:
        self._stamped = stamped
        self._details = b"" if details is None else f"{details} ".encode()
        self._framed = framed
        self._within: dict[Channel, bool] = {}

    def shape(self, line: LogLine) -> bytes:
        """One piece."""
        data = line.data
        if not self._within.get(line.channel):
            data = self._details + data
            if self._stamped and line.time:
                data = f"{line.time} ".encode() + data
        self._within[line.channel] = line.partial
        return frame(line.channel, data) if self._framed else data


ROUTES = (
    Route("POST", "/containers/{id}/attach", attach, stream=True),
    Route("GET", "/containers/{id}/attach/ws", attach_websocket, stream=True),
    Route("POST", "/containers/{id}/resize", resize),
    Route("GET", "/containers/{id}/logs", logs, stream=True),
)
