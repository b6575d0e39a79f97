"""`docker commit`: an image from an instance's writable layer. The configuration is worked out by a pure function."""

from __future__ import annotations

import contextlib
from typing import Any

from insula.drivers.driver import Capability
from insula.engine.parts import Parts
from insula.engine.resident import Resident
from insula.engine.resolve import arguments
from insula.errors import Conflict, Unsupported
from insula.images.contract import Image, ImageConfig
from insula.model.instance import InstanceConfig


async def commit(
    parts: Parts,
    resident: Resident,
    name: str,
    *,
    message: str,
    author: str,
    pause: bool,
    config: dict[str, Any] | None,
) -> Image:
    """Make an image of it. Raises Unsupported for an instance without an image."""
    entry = resident.entry
    if resident.image is None or not entry.upper:
        raise Unsupported(f"{entry.name} was not made from an image, so it cannot be committed")
    history = {
        "comment": message,
        "author": author,
        "created_by": " ".join(_words(entry.config, resident.image.config)),
    }
    freeze = pause and resident.running and not entry.paused and Capability.PAUSE in resident.driver.capabilities
    async with contextlib.AsyncExitStack() as undo:
        if freeze and await _frozen(resident):
            parts.say(resident, "pause")
            undo.push_async_callback(_thaw, parts, resident)
        return await parts.images.commit(
            entry.upper,
            base=resident.image,
            name=name,
            config={**committed_config(entry.config, resident.image.config), **(config or {})},
            history={key: value for key, value in history.items() if value},
        )


async def _frozen(resident: Resident) -> bool:
    """Whether it was paused: one that ends at that moment needs no pause."""
    try:
        await resident.driver.pause(resident.handle)
    except Conflict:
        return False
    return True


async def _thaw(parts: Parts, resident: Resident) -> None:
    with contextlib.suppress(Conflict):  # killed meanwhile
        await resident.driver.resume(resident.handle)
        parts.say(resident, "unpause")


def _words(config: InstanceConfig, image: ImageConfig) -> tuple[str, ...]:
    return arguments(config, image)


def committed_config(config: InstanceConfig, image: ImageConfig) -> dict[str, Any]:
    """The `config` part of the new image: the old one's, with what the instance was asked in its place."""
    raw = image.raw.get("config") or {}
    merged: dict[str, Any] = dict(raw)
    names = {entry.partition("=")[0] for entry in config.env}
    kept = [entry for entry in image.env if entry.partition("=")[0] not in names]
    merged["Env"] = [*kept, *(entry for entry in config.env if "=" in entry)]
    if config.entrypoint is not None:
        merged["Entrypoint"] = [word for word in config.entrypoint if word] or None
        merged["Cmd"] = list(config.command) if config.command else None
    elif config.command:
        merged["Cmd"] = list(config.command)
    for key, value in (("WorkingDir", config.working_dir), ("User", config.user), ("StopSignal", config.stop_signal)):
        if value:
            merged[key] = value
    if config.labels:
        merged["Labels"] = {**(raw.get("Labels") or {}), **config.labels}
    return merged
