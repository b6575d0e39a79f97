"""Every driver under the same tests: life, signals, waiting, recovery from the handle alone, repeatable delete."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.driver_support import CASES, Case, collect, open_case
from insula.drivers import available
from insula.drivers.driver import Capability, Driver, Handle, Phase
from insula.errors import Conflict

pytestmark = pytest.mark.root


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.vm] if name == "microvm" else []) for name in sorted(CASES)]
)
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    async for case in open_case(request.param, tmp_path):
        yield case


@pytest.fixture
def driver(case: Case) -> Driver:
    return case.driver()


def needs(driver: Driver, capability: Capability) -> None:
    if capability not in driver.capabilities:
        pytest.skip(f"{driver.name} has no {capability.value}")


async def started(driver: Driver, case: Case) -> Handle:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    await case.ready(handle)
    return handle


def test_every_case_is_a_registered_driver() -> None:
    assert set(CASES) <= set(available())


async def test_a_probe_finds_it_available(driver: Driver) -> None:
    found = await driver.probe()
    assert found.available
    assert found.version


async def test_a_life(case: Case, driver: Driver) -> None:
    handle = await driver.create(case.forever())
    assert (await driver.recover(handle)).phase is Phase.CREATED
    pid = await driver.start(handle)
    status = await driver.recover(handle)
    assert (status.phase, status.pid) == (Phase.RUNNING, pid)
    assert Path(f"/proc/{pid}").exists()
    await case.ready(handle)
    done = await driver.stop(handle, signal.SIGTERM, 10)
    assert done.code == 0
    assert done.finished_at
    status = await driver.recover(handle)
    assert status.phase is Phase.EXITED
    assert status.exit
    assert status.exit.code == 0
    await driver.delete(handle)
    assert (await driver.recover(handle)).phase is Phase.GONE
    assert case.leftovers() == []


@pytest.mark.parametrize("code", [0, 1, 42, 255])
async def test_the_exit_code_comes_through(case: Case, driver: Driver, code: int) -> None:
    if case.name == "microvm" and code in (0, 1):
        pytest.skip("others begin a machine with these")
    handle = await driver.create(case.ends(code))
    await driver.start(handle)
    assert (await driver.wait(handle)).code == code
    await driver.delete(handle)


async def test_wait_answers_many_and_again(case: Case, driver: Driver) -> None:
    handle = await started(driver, case)
    waits = [asyncio.ensure_future(driver.wait(handle)) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert not any(wait.done() for wait in waits)
    await driver.kill(handle, signal.SIGKILL)
    assert {done.code for done in await asyncio.gather(*waits)} == {137}
    assert (await driver.wait(handle)).code == 137
    await driver.delete(handle)


async def test_a_cancelled_wait_leaves_it_running(case: Case, driver: Driver) -> None:
    handle = await started(driver, case)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(driver.wait(handle), 0.05)
    assert (await driver.recover(handle)).phase is Phase.RUNNING
    await driver.delete(handle)


async def test_stop_kills_what_does_not_listen(case: Case, driver: Driver) -> None:
    handle = await driver.create(case.stubborn())
    await driver.start(handle)
    await case.ready(handle)
    began = time.monotonic()
    assert (await driver.stop(handle, signal.SIGTERM, 0.3)).code == 137
    assert 0.25 < time.monotonic() - began < 5
    await driver.delete(handle)


async def test_stop_of_an_ended_one_says_how_it_ended(case: Case, driver: Driver) -> None:
    handle = await driver.create(case.ends(7))
    await driver.start(handle)
    await driver.wait(handle)
    assert (await driver.stop(handle, signal.SIGTERM, 1)).code == 7
    with pytest.raises(Conflict):
        await driver.kill(handle, signal.SIGTERM)
    await driver.delete(handle)


async def test_another_driver_takes_over_from_the_handle(case: Case, driver: Driver) -> None:
    handle = await driver.create(case.forever())
    assert (await case.driver().recover(handle)).phase is Phase.CREATED
    await case.driver().start(handle)
    assert (await case.driver().recover(handle)).phase is Phase.RUNNING
    wait = asyncio.ensure_future(case.driver().wait(handle))
    await case.ready(handle)
    assert (await case.driver().stop(handle, signal.SIGTERM, 10)).code == 0
    assert (await wait).code == 0
    await case.driver().delete(handle)


async def test_an_end_while_nobody_watched_is_known(case: Case, driver: Driver) -> None:
    handle = await driver.create(case.ends(9))
    await driver.start(handle)
    await driver.close()
    later = case.driver()
    for _ in range(200):
        if (await later.recover(handle)).phase is Phase.EXITED:
            break
        await asyncio.sleep(0.02)
    status = await later.recover(handle)
    assert status.exit
    assert status.exit.code == 9
    await later.delete(handle)


async def test_create_can_be_repeated_after_a_crash(case: Case, driver: Driver) -> None:
    spec = case.forever()
    lost = await driver.create(spec)
    again = await case.driver().create(spec)
    assert (await driver.recover(lost)).phase in (Phase.EXITED, Phase.GONE, Phase.CREATED)
    await driver.start(again)
    assert (await driver.recover(again)).phase is Phase.RUNNING
    await driver.delete(again)


async def test_delete_is_repeatable_and_ends_what_runs(case: Case, driver: Driver) -> None:
    created, running = await driver.create(case.forever()), await started(driver, case)
    for handle in (created, running):
        await driver.delete(handle)
        await driver.delete(handle)
    assert case.leftovers() == []


async def test_pause_and_resume(case: Case, driver: Driver) -> None:
    needs(driver, Capability.PAUSE)
    handle = await started(driver, case)
    await driver.pause(handle)
    assert (await driver.recover(handle)).phase is Phase.PAUSED
    await driver.resume(handle)
    assert (await driver.recover(handle)).phase is Phase.RUNNING
    await driver.pause(handle)
    assert (await driver.stop(handle, signal.SIGKILL, 5)).code == 137
    await driver.delete(handle)


async def test_attached_streams_end_with_it(case: Case, driver: Driver) -> None:
    needs(driver, Capability.ATTACH)
    handle = await driver.create(case.says("hello"))
    streams = await driver.attach(handle)
    await driver.start(handle)
    assert b"hello" in (await collect(streams))[0]
    await streams.close()
    await driver.wait(handle)
    await driver.delete(handle)


async def test_stats_and_pids(case: Case, driver: Driver) -> None:
    handle = await started(driver, case)
    if Capability.STATS in driver.capabilities:
        stats = await driver.stats(handle)
        assert stats.cpu_total_ns > 0
    if Capability.TOP in driver.capabilities:
        assert (await driver.recover(handle)).pid in await driver.pids(handle)
    await driver.delete(handle)
