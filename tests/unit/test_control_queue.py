"""The work queue, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from insula.control.queue import Queue

pytestmark = pytest.mark.looptime


async def test_a_key_waits_only_once() -> None:
    queue: Queue[str] = Queue()
    for _ in range(3):
        queue.add("a")
    queue.add("b")
    assert len(queue) == 2
    assert [await queue.take(), await queue.take()] == ["a", "b"]


async def test_a_key_that_is_worked_on_is_not_taken_by_another_worker() -> None:
    queue: Queue[str] = Queue()
    queue.add("a")
    key = await queue.take()
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0 and not queue.idle
    queue.done(key)
    assert len(queue) == 1
    assert await queue.take() == "a"
    queue.done("a")
    assert queue.idle


async def test_waking_later_keeps_the_earliest_plan() -> None:
    queue: Queue[str] = Queue()
    loop = asyncio.get_running_loop()
    queue.add_after("a", 10)
    queue.add_after("a", 2)
    queue.add_after("a", 30)
    began = loop.time()
    assert await queue.take() == "a"
    assert loop.time() - began == pytest.approx(2, abs=0.01)
    queue.close()


async def test_a_wake_now_replaces_the_plan() -> None:
    queue: Queue[str] = Queue()
    queue.add_after("a", 10)
    queue.add("a")
    queue.done(await queue.take())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(100):
            await queue.take()


async def test_failures_back_off_doubling_up_to_the_cap_and_a_success_forgets_them() -> None:
    queue: Queue[str] = Queue(base_s=1.0, cap_s=5.0)
    waits = [queue.failed("a") for _ in range(5)]
    for wait, least in zip(waits, (1, 2, 4, 5, 5), strict=True):
        assert least <= wait <= least * 1.1
    assert queue.failed("b") < 1.2
    queue.succeeded("a")
    assert queue.failed("a") < 1.2
    queue.close()


async def test_what_is_forgotten_is_owed_no_wake() -> None:
    queue: Queue[str] = Queue()
    queue.add("a")
    queue.add_after("b", 1)
    queue.failed("c")
    for key in "abc":
        queue.forget(key)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1000):
            await queue.take()


async def test_a_cancelled_worker_passes_its_wake_on() -> None:
    queue: Queue[str] = Queue()
    first, second = (asyncio.create_task(queue.take()) for _ in range(2))
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    async with asyncio.timeout(1):
        assert await second == "a"
    with pytest.raises(asyncio.CancelledError):
        await first
