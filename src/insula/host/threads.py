"""Threads for work that must not sit on the shared pool, and waiting that outlasts a cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

from insula.tasks import in_thread

P = ParamSpec("P")
T = TypeVar("T")


async def in_own_thread(call: Callable[[], T], name: str) -> T:
    """Run blocking work that may wait for a slow client: not on the shared pool, which it would starve."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, fault: BaseException | None) -> None:
        if done.cancelled():
            return
        if fault is not None:
            done.set_exception(fault)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, fault = None, None
        try:
            result = call()
        except BaseException as error:
            fault = error
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, result, fault)

    threading.Thread(target=run, name=f"insula-{name}", daemon=True).start()
    return await done


async def to_end(work: Awaitable[T]) -> T:
    """Wait for work that a cancellation cannot stop (a thread): the caller is cancelled only after it has ended."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, so that it is not reported as forgotten
        raise
    return task.result()


async def change(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`tasks.in_thread` for work that changes something: a cancelled caller goes on only when the change has been made, so
    that its undoing meets no thread still at work."""
    return await to_end(in_thread(call, *args, **kwargs))
