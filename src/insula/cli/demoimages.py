"""The two demo images, made on this machine without a network and given to the daemon through its Docker door."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from insula.cli.doors import Door
from insula.cli.paths import Paths
from insula.errors import NotFound
from insula.images import demo, machine
from insula.images.store import NodeImages

MACHINE = "insula/linux:latest"


async def present(door: Door, name: str) -> bool:
    """Whether the daemon has an image."""
    try:
        await door.call("GET", f"/images/{name}/json")
    except NotFound:
        return False
    return True


async def add_busybox(door: Door) -> bool:
    """Add `insula/busybox` and, where the name is free, `busybox`. Says whether anything was to be done."""
    if await present(door, demo.NAME):
        return False
    free = not await present(door, demo.SHORT_NAME)
    with tempfile.TemporaryDirectory() as folder:
        images = await NodeImages.open(Path(folder))
        try:
            await images.add_demo()
            await load(door, images.save([demo.NAME, demo.SHORT_NAME] if free else [demo.NAME]))
        finally:
            await images.close()
    return True


async def add_machine(door: Door, paths: Paths, tell: Callable[[str], None]) -> bool:
    """Add `insula/linux`, built from the distribution's kernel. Says whether anything was to be done."""
    if await present(door, MACHINE):
        return False
    tell("building the machine image insula/linux from the distribution's kernel")
    built = await machine.build(paths.data / "cache")
    with tempfile.TemporaryDirectory() as folder:
        images = await NodeImages.open(Path(folder))
        try:
            await images.add_files_image(MACHINE, machine.image_files(built), machine.CONFIG)
            await load(door, images.save([MACHINE]))
        finally:
            await images.close()
    return True


async def load(door: Door, archive: AsyncIterator[bytes]) -> None:
    """Send an image archive."""
    async for _ in door.lines("POST", "/images/load?quiet=1", archive, "application/x-tar"):
        continue
