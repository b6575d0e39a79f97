"""Containers: making them, and what moves them through their life."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal, cast

import msgspec
from aiohttp import web

from insula.api.docker.containers_adapt import adapt
from insula.api.docker.containers_create import (
    Surroundings,
    host_warnings,
    instance_config,
    linked,
    neighbours,
)
from insula.api.docker.containers_limits import resources_of, restart_of
from insula.api.docker.containers_mounts import volume_specs
from insula.api.docker.door import Door
from insula.api.docker.images_words import foreign_warnings
from insula.api.docker.route import Call, Route
from insula.api.docker.shape import shape
from insula.api.docker.words import ContainerWords, UpdateWords
from insula.api.web import encode, json_response, streaming
from insula.engine.contract import Instance, State
from insula.errors import Conflict, InsulaError, Invalid, NotFound
from insula.tasks import finish

NO_CONTENT = 204
NOT_MODIFIED = 304
Condition = Literal["not-running", "next-exit", "removed"]
_CONDITIONS = ("not-running", "next-exit", "removed")


async def create(call: Call) -> web.StreamResponse:
    """`POST /containers/create`."""
    raw = await call.body()
    if not raw:
        raise Invalid("config cannot be empty in order to create a container")
    words = shape(raw, ContainerWords)
    if not words.image:
        raise Invalid("invalid JSON: Image: a container needs an image", field="Image")
    host, warnings = adapt(words.host_config, call.door.limits)
    words = _of_version(msgspec.structs.replace(words, host_config=host), call.version)
    platform = call.text("platform") if call.version >= (1, 41) else ""
    try:
        instance = await _create(call, words, raw, platform)
    except NotFound as fault:
        if fault.kind == "image":
            raise
        # To clients, 404 at this place means that the image must be pulled.
        raise Invalid(fault.message, hint=fault.hint) from fault
    warnings += host_warnings(words, call.door.limits)
    if not platform and instance.image is not None:
        warnings += foreign_warnings(instance.image, os.uname().machine)
    return json_response({"Id": instance.id, "Warnings": warnings}, 201)


def _of_version(words: ContainerWords, version: tuple[int, int]) -> ContainerWords:
    """Without what clients of an older version of the API do not mean when they send it."""
    if words.healthcheck is None or version >= (1, 44):
        return words
    return msgspec.structs.replace(words, healthcheck=msgspec.structs.replace(words.healthcheck, start_interval=0))


async def _create(call: Call, words: ContainerWords, raw: dict[str, Any], platform: str) -> Instance:
    engine = call.door.engine
    around = await _look_around(call.door, words)
    config = instance_config(call.text("name"), platform, words, raw, around)  # what is wrong in itself is told first
    image = await engine.images.get(words.image, platform=platform)
    if words.host_config.publish_all_ports:
        around = msgspec.structs.replace(around, image_ports=image.config.exposed_ports)
        config = instance_config(call.text("name"), platform, words, raw, around)
    for name, options in volume_specs(words):
        await engine.volumes.create(name, labels=options.labels, options=options.driver_config.options)
    instance = await engine.create(config)
    if words.tty and any(words.host_config.console_size):
        height, width = console_size(words.host_config.console_size)
        await engine.resize(instance.id, width, height)  # the terminal has this size from its first moment
    return instance


def console_size(size: Sequence[int]) -> tuple[int, int]:
    """Height and width, in the order of the wire. Raises Invalid."""
    if not size:
        return 0, 0
    if len(size) != 2 or not all(0 <= each < 65536 for each in size):
        raise Invalid("invalid JSON: ConsoleSize: expected two small numbers, height and width", field="ConsoleSize")
    return size[0], size[1]


async def _look_around(door: Door, words: ContainerWords) -> Surroundings:
    driver = await door.driver_of(words.host_config.runtime)
    instances = {name: await door.engine.get(name) for name in neighbours(words)}
    for name in linked(words):
        try:
            instances[name] = await door.engine.get(name)
        except NotFound as fault:
            raise Invalid(f"could not get container for {name}: {fault.message}", field="HostConfig.Links") from fault
    return Surroundings(driver=driver, instances=instances)


# --- life ---------------------------------------------------------------------------------------------------------


async def start(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/start`; 304 when it runs already."""
    if call.text("checkpoint"):
        raise Invalid("starting from a checkpoint is not supported", field="checkpoint")
    engine, id = call.door.engine, call.params["id"]
    state = (await engine.get(id)).state
    if state.name == "running" and state.pid:  # without a process it is just ending, and the start follows that
        return web.Response(status=NOT_MODIFIED)
    await engine.start(id)
    return web.Response(status=NO_CONTENT)


async def stop(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/stop`; 304 when it does not run."""
    engine, id = call.door.engine, call.params["id"]
    if (await engine.get(id)).state.name in ("created", "exited", "dead"):
        return web.Response(status=NOT_MODIFIED)
    await engine.stop(id, timeout_s=_timeout_s(call), signal=call.text("signal"))
    return web.Response(status=NO_CONTENT)


async def restart(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/restart`."""
    await call.door.engine.restart(call.params["id"], timeout_s=_timeout_s(call))
    return web.Response(status=NO_CONTENT)


def _timeout_s(call: Call) -> float | None:
    """A negative number waits for ever."""
    seconds = call.number("t")
    return None if seconds is None else float(seconds)


async def kill(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/kill`."""
    await call.door.engine.kill(call.params["id"], call.text("signal") or "KILL")
    return web.Response(status=NO_CONTENT)


async def pause(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/pause`."""
    await call.door.engine.pause(call.params["id"])
    return web.Response(status=NO_CONTENT)


async def unpause(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/unpause`."""
    await call.door.engine.unpause(call.params["id"])
    return web.Response(status=NO_CONTENT)


async def remove(call: Call) -> web.StreamResponse:
    """`DELETE /containers/{id}`."""
    if call.flag("link"):
        raise Invalid("Conflict, cannot remove the default link name of the container", field="link")
    await call.door.engine.remove(call.params["id"], force=call.flag("force"), volumes=call.flag("v"))
    return web.Response(status=NO_CONTENT)


async def rename(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/rename`."""
    name = call.text("name")
    if not name:
        raise Invalid("Neither old nor new names may be empty", field="name")
    await call.door.engine.rename(call.params["id"], name)
    return web.Response(status=NO_CONTENT)


async def update(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/update`: what is named changes, the rest stays."""
    words, warnings = adapt(await call.read(UpdateWords), call.door.limits, update=True)
    engine, id = call.door.engine, call.params["id"]
    instance = await engine.get(id)
    resources = resources_of(words)
    if not words.memory_swap:
        resources = msgspec.structs.replace(resources, memory_swap_bytes=None)
    _check_conflicts(instance, words)
    policy = None
    if words.restart_policy.name:
        policy = restart_of(words.restart_policy)
    await engine.update(id, resources=resources, restart=policy)
    return json_response({"Warnings": warnings or None})


def _check_conflicts(instance: Instance, words: UpdateWords) -> None:
    """What cannot change beside what the container has already. Raises Conflict with the Docker Engine's sentences."""
    has = instance.config.resources
    own = not has.nano_cpus  # quota and period were asked for as such
    for wrong, sentence in (
        (
            words.nano_cpus and own and has.cpu_period_us,
            "Nano CPUs cannot be updated as CPU Period has already been set",
        ),
        (words.nano_cpus and own and has.cpu_quota_us, "Nano CPUs cannot be updated as CPU Quota has already been set"),
        (words.cpu_period and has.nano_cpus, "CPU Period cannot be updated as NanoCPUs has already been set"),
        (words.cpu_quota and has.nano_cpus, "CPU Quota cannot be updated as NanoCPUs has already been set"),
    ):
        if wrong:
            raise _not_updated(instance, f"Conflicting options: {sentence}")
    if words.memory and not words.memory_swap and words.memory > (has.memory_swap_bytes or 0):
        raise _not_updated(
            instance,
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
        )


def _not_updated(instance: Instance, sentence: str) -> Conflict:
    return Conflict(f"Cannot update container {instance.id}: {sentence}")


# --- waiting ------------------------------------------------------------------------------------------------------


async def wait(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/wait`: the head goes out as soon as the wait has begun, for the client starts the container
    only then."""
    condition = call.text("condition") or "not-running"
    if condition not in _CONDITIONS:
        raise Invalid(f'invalid condition: "{condition}"', field="condition")
    engine = call.door.engine
    id = (await engine.get(call.params["id"])).id
    async with AsyncExitStack() as undo:
        waiting = asyncio.create_task(engine.wait(id, cast(Condition, condition)), name="docker/wait")
        undo.push_async_callback(finish, waiting)
        await asyncio.sleep(0)  # lets the wait begin
        async with streaming(call.request, content_type="application/json") as response:
            await response.write(encode(await _ending(waiting)) + b"\n")
        return response


async def _ending(waiting: asyncio.Task[State]) -> dict[str, object]:
    """`Error` is for a wait that failed; a container that could not be started is told by its start."""
    try:
        state = await waiting
    except InsulaError as fault:
        return {"StatusCode": -1, "Error": {"Message": fault.message}}
    return {"StatusCode": state.exit_code}


ROUTES = (
    Route("POST", "/containers/create", create),
    Route("POST", "/containers/{id}/start", start),
    Route("POST", "/containers/{id}/stop", stop),
    Route("POST", "/containers/{id}/restart", restart),
    Route("POST", "/containers/{id}/kill", kill),
    Route("POST", "/containers/{id}/pause", pause),
    Route("POST", "/containers/{id}/unpause", unpause),
    Route("POST", "/containers/{id}/wait", wait, stream=True),
    Route("POST", "/containers/{id}/rename", rename),
    Route("POST", "/containers/{id}/update", update),
    Route("DELETE", "/containers/{id}", remove),
)
