"""A pause in the first moments of a container's life, on a busy machine: version 1 freezers can stick half-way then."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from host.engine_support import Home, config, home, opened
from insula.engine.node import NodeEngine

pytestmark = pytest.mark.root
AT_ONCE, ROUNDS = 4, 2


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


@pytest.fixture
def busy() -> Iterator[None]:
    """As many spinning processes as processors."""
    spin = [sys.executable, "-c", "while True: pass"]
    spinners = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    yield
    for each in spinners:
        each.kill()
        each.wait()


async def one(engine: NodeEngine, name: str, moment_s: float) -> None:
    await engine.create(config("sh", "-c", "while :; do /bin/true; done", name=name))
    await engine.start(name)
    await asyncio.sleep(moment_s)
    await engine.pause(name)
    before = (await engine.stats(name)).cpu_total_ns
    await asyncio.sleep(0.02)
    assert (await engine.get(name)).state.name == "paused"
    assert (await engine.stats(name)).cpu_total_ns == before
    await engine.unpause(name)
    await engine.pause(name)
    await engine.remove(name, force=True)


@pytest.mark.may_block
async def test_a_pause_right_after_the_start(place: Home, busy: None) -> None:
    async with opened(place) as engine:
        began = time.monotonic()
        for round_ in range(ROUNDS):
            async with asyncio.timeout(30):
                await asyncio.gather(*(one(engine, f"p{n}", round_ * n * 0.004) for n in range(AT_ONCE)))
        assert time.monotonic() - began < 60
        assert await engine.list() == []
