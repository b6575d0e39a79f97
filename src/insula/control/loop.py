"""Runs controllers: watches fill a queue of keys, workers empty it, a fault in one key never stops another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from insula.client.cache import Handler
from insula.control.controller import Context, Controller, Keys, Result
from insula.control.queue import Queue
from insula.control.shared import SharedCaches
from insula.errors import InsulaError, StaleRevision
from insula.model.resource import Ref, Resource
from insula.tasks import Tasks

log = logging.getLogger(__name__)


class Manager:
    """All controllers of one process on shared caches. Use `start` and `close`."""

    def __init__(self, context: Context, caches: SharedCaches, controllers: Sequence[Controller]) -> None:
        self._context = context
        self._caches = caches
        self._controllers = controllers
        self._tasks = Tasks("controllers")
        self._followed: set[Ref] = set()
        self.queues: dict[str, Queue[Any]] = {}

    async def start(self) -> None:
        """Fill the caches, then start the workers."""
        for controller in self._controllers:
            queue = self.queues[controller.name] = Queue()
            for watch in controller.watches:
                self._caches.subscribe(watch.ref, _feeder(queue, watch.keys, self._caches))
        await self._follow_types()
        for controller in self._controllers:
            for number in range(controller.workers):
                self._tasks.spawn(self._work(controller), f"{controller.name}-{number}")
            if controller.resync_s:
                self._tasks.spawn(self._resync(controller, controller.resync_s), f"{controller.name}-resync")

    async def _follow_types(self) -> None:
        """Show every served type to the controllers that look at all of them; again when custom kinds come."""
        curious = [controller for controller in self._controllers if controller.every_type]
        if curious:
            for info in await self._context.types():
                if info.ref not in self._followed:
                    self._followed.add(info.ref)
                    for controller in curious:
                        assert controller.every_type is not None
                        keys = controller.every_type(info)
                        self._caches.subscribe(info.ref, _feeder(self.queues[controller.name], keys, self._caches))
        await self._caches.start()

    def types_changed(self) -> None:
        """Custom kinds have come: look at them as well."""
        self._tasks.spawn(self._follow_types(), "follow-types")

    async def close(self) -> None:
        """Stop workers and watches."""
        await self._tasks.close()
        for queue in self.queues.values():
            queue.close()

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
            result = await controller.reconcile(self._context, key)
        except StaleRevision:
            queue.failed(key)
        except InsulaError as fault:
            log.warning("reconcile refused: %s", fault, extra={**fields, "retry_s": queue.failed(key)})
        except Exception:
            log.exception("reconcile failed", extra={**fields, "retry_s": queue.failed(key)})
        else:
            queue.succeeded(key)
            self._finish(queue, key, result, fields)

    def _finish(self, queue: Queue[Any], key: Any, result: Result, fields: dict[str, Any]) -> None:
        if result.note:
            log.debug("reconciled: %s", result.note, extra=fields)
        if result.after_s is not None:
            queue.add_after(key, result.after_s)

    async def _resync(self, controller: Controller, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            primary = controller.watches[0]
            for obj in self._caches.list(primary.ref):
                for key in primary.keys(obj, self._caches):
                    self.queues[controller.name].add(key)


def _feeder(queue: Queue[Any], keys: Keys, caches: SharedCaches) -> Handler:
    def feed(old: Resource | None, new: Resource | None) -> None:
        for obj in (old, new):
            if obj is not None:
                for key in keys(obj, caches):
                    queue.add(key)

    return feed
