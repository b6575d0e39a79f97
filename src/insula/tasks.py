"""Supervised tasks: every background coroutine has an owner, a name and a logged end.

`Tasks` is a task group that may be closed from outside and that survives the failure of a member: a fault in one
workload's loop must not end the others. Blocking work goes through `in_thread`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, Self, TypeVar

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_pool = ThreadPoolExecutor(max_workers=16, thread_name_prefix="insula")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work (files, hashing, mounts) on the shared pool of threads."""
    return await asyncio.get_running_loop().run_in_executor(_pool, functools.partial(call, *args, **kwargs))


async def finish(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has really ended; its cancellation is expected, other faults are logged."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (fault := task.exception()):
        log.error("task failed while ending", extra={"task": task.get_name()}, exc_info=fault)


class Tasks:
    """The background tasks of one owner. Use as `async with Tasks("engine") as tasks: tasks.spawn(...)`."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._members: set[asyncio.Task[Any]] = set()
        self._closing = False

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a named task that lives no longer than this group. A fault in it is logged, not spread."""
        if self._closing:
            work.close()
            raise RuntimeError(f"{self.owner} is closing and takes no new task {name}")
        task = asyncio.create_task(work, name=f"{self.owner}/{name}")
        self._members.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._members.discard(task)
        if not task.cancelled() and (fault := task.exception()):
            log.error("background task failed", extra={"task": task.get_name()}, exc_info=fault)

    async def close(self) -> None:
        """Cancel every member and wait for all of them."""
        self._closing = True
        while members := list(self._members):
            for task in members:
                task.cancel()
            await asyncio.wait(members)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
