"""Exec: more processes beside a container's first one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import Any

from aiohttp import web

from insula.api.docker.containers import console_size
from insula.api.docker.containers_streams import size_of
from insula.api.docker.door import Door, ExecWords
from insula.api.docker.route import Call, Route
from insula.api.docker.streams import Session, content_type, frame, hijack, join, parse_detach_keys
from insula.api.docker.words import ExecCreateWords, ExecStartWords
from insula.api.web import TakenOver, json_response
from insula.drivers.driver import Channel
from insula.engine.contract import Exec
from insula.errors import Conflict, InsulaError, Invalid
from insula.model.instance import Process

_EXIT_S = 2.0


async def create(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/exec`."""
    words = await call.read(ExecCreateWords)
    command = (words.cmd,) if isinstance(words.cmd, str) else tuple(words.cmd)
    if not command:
        raise Invalid("No exec command specified", field="Cmd")
    parse_detach_keys(words.detach_keys)
    height, width = console_size(words.console_size)
    process = Process(
        args=command,
        env=tuple(words.env),
        cwd=words.working_dir,
        tty=words.tty,
        open_stdin=words.attach_stdin,
        privileged=words.privileged,
        width=width,
        height=height,
    )
    made = await call.door.engine.exec_create(call.params["id"], process, user=words.user)
    call.door.remember_exec(
        made.id,
        ExecWords(
            stdin=words.attach_stdin,
            stdout=words.attach_stdout,
            stderr=words.attach_stderr,
            user=words.user,
            detach_keys=words.detach_keys,
        ),
    )
    return json_response({"Id": made.id}, 201)


async def start(call: Call) -> web.StreamResponse:
    """`POST /exec/{id}/start`: takes the connection over, unless detached."""
    words = await call.read(ExecStartWords)
    engine = call.door.engine
    made = await engine.exec_get(call.params["id"])
    if made.running or made.exit_code is not None:
        raise Conflict(f"Error: Exec command {made.id} {'is already running' if made.running else 'has already run'}")
    said = call.door.exec_words(made.id)
    tty = made.process.tty
    if words.detach:
        streams = await engine.exec_start(made.id)
        await streams.close()
        return web.Response(status=200)
    kind = content_type(tty=words.tty, version=call.version)
    session = Session(
        tty=tty,
        stdin=said.stdin,
        stdout=said.stdout,
        stderr=said.stderr,
        close_stdin=True,
        framed=not words.tty,
        detach_keys=parse_detach_keys(said.detach_keys),
    )
    instance = await engine.get(made.instance)
    if instance.state.name != "running":
        raise Conflict(f"container {instance.id} is not running")
    # The head goes out before the process exists, as with dockerd: docker-py loses output that comes together with it.
    client = hijack(call.request, kind)
    try:
        streams = await engine.exec_start(made.id)
        if await join(client, streams, session):
            await _settle(call.door, made.id)
    except InsulaError as fault:
        text = f"{fault.message}\r\n".encode()
        await client.write(frame(Channel.STDOUT, text) if session.framed else text)
    except ConnectionError:
        pass
    finally:
        client.close()
    return TakenOver()


async def _settle(door: Door, exec_id: str) -> None:
    """Clients ask for the exit code as soon as the stream ends, so it ends when that is known; not much later for a process that
    closed its output and goes on."""
    with contextlib.suppress(TimeoutError, InsulaError):
        await asyncio.wait_for(door.engine.exec_wait(exec_id), _EXIT_S)


async def resize(call: Call) -> web.StreamResponse:
    """`POST /exec/{id}/resize`."""
    width, height = size_of(call)
    await call.door.engine.exec_resize(call.params["id"], width, height)
    return web.Response(status=200)


async def inspect(call: Call) -> web.StreamResponse:
    """`GET /exec/{id}/json`."""
    made = await call.door.engine.exec_get(call.params["id"])
    return json_response(exec_words(made, call.door.exec_words(made.id)))


def exec_words(made: Exec, said: ExecWords) -> dict[str, Any]:
    """As dockerd shows an exec."""
    program, *arguments = made.process.args
    keys = parse_detach_keys(said.detach_keys) if said.detach_keys else b""
    return {
        "ID": made.id,
        "Running": made.running,
        "ExitCode": made.exit_code,
        "ProcessConfig": {
            "tty": made.process.tty,
            "entrypoint": program,
            "arguments": arguments,
            "privileged": made.process.privileged,
            **({"user": said.user} if said.user else {}),
        },
        "OpenStdin": said.stdin,
        "OpenStderr": said.stderr,
        "OpenStdout": said.stdout,
        "CanRemove": False,
        "ContainerID": made.instance,
        "DetachKeys": base64.b64encode(keys).decode(),
        "Pid": made.pid,
    }


ROUTES = (
    Route("POST", "/containers/{id}/exec", create),
    Route("POST", "/exec/{id}/start", start, stream=True),
    Route("POST", "/exec/{id}/resize", resize),
    Route("GET", "/exec/{id}/json", inspect),
)
