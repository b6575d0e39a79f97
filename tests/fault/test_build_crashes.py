"""kill -9 at every thing that a build tells of. Afterwards nothing half made is left, and what was finished is in the cache."""

from __future__ import annotations

import asyncio
import signal

import pytest

from fault.engine_crash_child import build
from fault.test_engine_crashes import child
from host.engine_support import Home, home, opened
from insula.engine.node import NodeEngine

pytestmark = [pytest.mark.root, pytest.mark.may_block]
_FIRST, _LAST = 8, 28  # the first ones only announce the steps


@pytest.fixture
async def place():
    with home() as made:
        yield made
        assert made.traces() == {}


def half_done(place: Home) -> list[str]:
    """What lies where only builds under way have something."""
    data = place.paths.data
    folders = (data / "tmp", data / "rootfs", place.paths.building)
    names = [str(each) for folder in folders if folder.is_dir() for each in folder.iterdir()]
    return names + [str(each) for each in (data / "buildcache").rglob("*.new")]


async def settled(engine: NodeEngine, place: Home) -> None:
    """What is left is removed in the background."""
    async with asyncio.timeout(15):
        while await engine.list() or half_done(place):
            await asyncio.sleep(0.02)


async def check(engine: NodeEngine, place: Home) -> None:
    await settled(engine, place)
    image = await build(engine, 10_000)
    assert (await engine.images.get("built")).id == image
    assert await build(engine, 10_000) == image  # all of it is in the cache now
    await settled(engine, place)


@pytest.mark.parametrize("event", range(_FIRST, _LAST, 2))
async def test_a_build_cut_short(place: Home, event: int) -> None:
    with child("build", place, str(event)) as process:
        out, _ = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == -signal.SIGKILL and "built" not in out
    async with opened(place) as engine:
        await check(engine, place)


async def test_a_cancelled_build_leaves_nothing(place: Home) -> None:
    async with opened(place) as engine:
        for delay_s in (0.01, 0.1, 0.2, 0.3):
            work = asyncio.create_task(build(engine, 10_000))
            await asyncio.sleep(delay_s)
            work.cancel()
            await asyncio.wait([work])
        await check(engine, place)
