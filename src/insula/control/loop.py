"""Runs controllers: watches fill a queue of keys, workers empty it, a fault in one key never stops another."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from insula.client.cache import Handler
from insula.control.controller import Context, Controller, Result, Watch
from insula.control.queue import Queue
from insula.control.shared import SharedCaches
from insula.errors import InsulaError, StaleRevision
from insula.model.resource import Ref, Resource
from insula.tasks import Tasks

log = logging.getLogger(__name__)
PASS_DEADLINE_S = 120.0
TYPES_AGAIN_S = 5.0


class Manager:
    """All controllers of one process on shared caches. Use `start` and `close`."""

    def __init__(self, context: Context, caches: SharedCaches, controllers: Sequence[Controller]) -> None:
        self._context = context
        self._caches = caches
        self._controllers = controllers
        self._contexts = {one.name: dataclasses.replace(context, source=one.name) for one in controllers}
        self._tasks = Tasks("controllers")
        self._followed: set[Ref] = set()
        self._types = asyncio.Event()
        self.queues: dict[str, Queue[Any]] = {}

    async def start(self) -> None:
        """Fill the caches, then start the workers."""
        for controller in self._controllers:
            self.queues[controller.name] = Queue()
            for watch in controller.watches:
                self._subscribe(controller, watch)
        await self._see_types()
        await self._caches.start()
        for controller in self._controllers:
            for number in range(controller.workers):
                self._tasks.spawn(self._work(controller), f"{controller.name}-{number}")
            if controller.every_s:
                self._tasks.spawn(self._wake_every(controller, controller.every_s), f"{controller.name}-clock")
        self._tasks.spawn(self._follow_types(), "types")

    def types_changed(self) -> None:
        """Custom kinds have come or gone."""
        self._types.set()

    async def close(self) -> None:
        """Stop workers and watches."""
        await self._tasks.close()
        for context in self._contexts.values():
            await context.events.close()
        for queue in self.queues.values():
            queue.close()

    # what wakes keys

    def _subscribe(self, controller: Controller, watch: Watch) -> None:
        self._caches.subscribe(watch.ref, _feeder(self.queues[controller.name], watch, self._caches))

    async def _wake_every(self, controller: Controller, every_s: float) -> None:
        while True:
            self.queues[controller.name].add("")
            await asyncio.sleep(every_s)

    async def _follow_types(self) -> None:
        while True:
            await self._types.wait()
            self._types.clear()
            try:
                await self._see_types()
            except InsulaError as fault:
                log.warning("types could not be read: %s", fault)
                await asyncio.sleep(TYPES_AGAIN_S)
                self._types.set()

    async def _see_types(self) -> None:
        """Show every served type to the controllers that look at all of them; forget types that are gone."""
        curious = [controller for controller in self._controllers if controller.every_type]
        types = await self._context.types() if curious else ()
        served = {info.ref: info for info in types if not info.alternate}
        for ref in self._followed - served.keys():
            self._followed.discard(ref)
            await self._caches.drop(ref)
        for ref in served.keys() - self._followed:
            self._followed.add(ref)
            for controller in curious:
                assert controller.every_type is not None
                watch = controller.every_type(served[ref])
                if watch is not None:
                    self._subscribe(controller, watch)
        self._caches.begin()

    # what works on them

    async def _work(self, controller: Controller) -> None:
        queue = self.queues[controller.name]
        while True:
            key = await queue.take()
            try:
                await self._pass(controller, queue, key)
            finally:
                queue.done(key)

    async def _pass(self, controller: Controller, queue: Queue[Any], key: Any) -> None:
        fields = {"controller": controller.name, "key": str(key)}
        try:
            async with asyncio.timeout(PASS_DEADLINE_S):
                result = await controller.reconcile(self._contexts[controller.name], key)
        except Exception as fault:
            _tell(fault, {**fields, "retry_s": round(queue.failed(key), 2)})
        else:
            queue.succeeded(key)
            self._finish(queue, key, result, fields)

    def _finish(self, queue: Queue[Any], key: Any, result: Result, fields: dict[str, Any]) -> None:
        if result.note:
            log.debug("reconciled: %s", result.note, extra=fields)
        if result.after_s is not None:
            queue.add_after(key, result.after_s)


def _tell(fault: Exception, fields: dict[str, Any]) -> None:
    """A lost race is ordinary, a refusal is a sentence, everything else is a fault of ours."""
    parts = list(_leaves(fault))
    if all(isinstance(part, StaleRevision) for part in parts):
        log.debug("reconcile raced with another writer", extra=fields)
    elif all(isinstance(part, InsulaError) for part in parts):
        log.warning("reconcile refused: %s", "; ".join(dict.fromkeys(map(str, parts))), extra=fields)
    else:
        log.error("reconcile failed", exc_info=fault, extra=fields)


def _leaves(fault: Exception) -> Iterator[Exception]:
    if isinstance(fault, ExceptionGroup):
        for part in fault.exceptions:
            yield from _leaves(part)
    else:
        yield fault


def _feeder(queue: Queue[Any], watch: Watch, caches: SharedCaches) -> Handler:
    def feed(old: Resource | None, new: Resource | None) -> None:
        if not watch.when(old, new):
            return
        for obj in (old, new):
            if obj is not None:
                for key in watch.keys(obj, caches):
                    queue.add(key)

    return feed
