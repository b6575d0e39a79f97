"""Ordered lists of steps, and the points at which a test may kill us.

A `Plan` is rows of steps: rows run one after the other, the steps of a row at the same time. Each step is idempotent. A
step of a set-up pushes its undo on the work's stack; a tear-down runs every step whatever fails and gathers the faults.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, ParamSpec, TypeVar

from msgspec import Struct

from insula.errors import gather

log = logging.getLogger(__name__)
W = TypeVar("W")
P = ParamSpec("P")

_CRASH_AT = os.environ.get("INSULA_CRASH_AT")


def reached(name: str) -> None:
    """A crash point: with `INSULA_CRASH_AT=name` in the environment the process kills itself here, as `kill -9` would."""
    if _CRASH_AT is not None and name == _CRASH_AT:
        os.kill(os.getpid(), signal.SIGKILL)


class Undo:
    """What takes back a set-up that failed: newest first, all of it, whatever fails on the way."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], Awaitable[object]]] = []

    def push(self, call: Callable[P, Awaitable[object]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Remember one step back. Push it before the step forward: a step that fails half way is taken back too."""
        self._calls.append(functools.partial(call, *args, **kwargs))

    async def run(self) -> None:
        """Take everything back. Faults are logged: the fault that led here is the one to tell."""
        while self._calls:
            try:
                await self._calls.pop()()
            except Exception as fault:
                log.warning("an undo failed", exc_info=fault)


class Step(Struct, Generic[W], frozen=True):
    """One step of the work `W`. Its crash points are `NAME:before` and `NAME`."""

    name: str
    run: Callable[[W], Awaitable[None]]


Plan = Sequence[Sequence[Step[W]]]


async def _one(step: Step[W], work: W) -> None:
    reached(f"{step.name}:before")
    await step.run(work)
    reached(step.name)


async def _row(row: Sequence[Step[W]], work: W) -> list[BaseException]:
    if len(row) == 1:
        results: list[BaseException | None] = []
        try:
            await _one(row[0], work)
        except Exception as fault:
            results.append(fault)
    else:
        results = await asyncio.gather(*(_one(step, work) for step in row), return_exceptions=True)
    return [result for result in results if result is not None]


async def set_up(plan: Plan[W], work: W) -> None:
    """Run a plan; stop at the first row with a fault and raise it. The caller holds the stack of undos."""
    for row in plan:
        faults = await _row(row, work)
        for fault in faults[1:]:
            log.warning("a second step failed in the same row", exc_info=fault)
        if faults:
            raise faults[0]


async def tear_down(plan: Plan[W], work: W, message: str) -> None:
    """Run every step of a plan, then raise what failed, if anything did."""
    faults: list[BaseException] = []
    for row in plan:
        faults += await _row(row, work)
    gather(message, faults)


def names(plan: Plan[W]) -> list[str]:
    """The plan's step names in order; tests walk them to crash at each."""
    return [step.name for row in plan for step in row]
