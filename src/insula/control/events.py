"""Events: what happened to an object, in a sentence, for `kubectl describe`.

Telling is never waited for: events are written in the background, and may be lost, as the API says of them. The same sentence
about the same object is counted on the event that is there (so a crash loop is one line), and an object that has much to say is
cut short: 25 at once, then one in five minutes. Source of these limits: client-go's event correlator.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from insula import clock
from insula.client.contract import Client
from insula.errors import InsulaError
from insula.model.resource import Ref, Resource
from insula.tasks import Tasks

log = logging.getLogger(__name__)
EVENTS = Ref("", "v1", "events")
BACKLOG = 1000
REMEMBERED = 4096
SAME_S = 600.0
BURST, REFILL_S = 25.0, 300.0
MESSAGE_LIMIT = 1024


@dataclass
class Allowance:
    """How much an object may still say."""

    left: float
    at_s: float

    def spend(self, now_s: float) -> bool:
        """Take one; False when nothing is left."""
        self.left = min(BURST, self.left + (now_s - self.at_s) / REFILL_S)
        self.at_s = now_s
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass
class Told:
    """An event that was written."""

    namespace: str
    name: str
    count: int
    last_s: float


class Recorder:
    """Writes the events of one component. `close` loses what is not written yet."""

    def __init__(self, client: Client, component: str, *, host: str = "") -> None:
        self._client = client
        self._source = {"component": component, "host": host} if host else {"component": component}
        self._instance = host or component
        self._told: OrderedDict[tuple[str, ...], Told] = OrderedDict()
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()
        self._waiting: asyncio.Queue[tuple[Resource, str, str, str]] = asyncio.Queue(BACKLOG)
        self._tasks = Tasks(f"events-{component}")
        self._running = False

    def record(self, obj: Resource, reason: str, message: str, kind: str = "Normal") -> None:
        """Tell of an object; `kind` is Normal or Warning. Returns at once."""
        if not self._running:
            self._running = True
            self._tasks.spawn(self._write_all(), "write")
        try:
            self._waiting.put_nowait((obj, reason, message[:MESSAGE_LIMIT], kind))
        except asyncio.QueueFull:
            log.info("too many events at once; one is lost", extra={"reason": reason})

    async def flush(self) -> None:
        """Wait until all that was told is written."""
        await self._waiting.join()

    async def close(self) -> None:
        """Stop writing."""
        await self._tasks.close()

    async def _write_all(self) -> None:
        while True:
            told = await self._waiting.get()
            try:
                await self._write(*told)
            except InsulaError as fault:
                log.debug("an event could not be written: %s", fault)
            except Exception:
                log.exception("an event could not be written")
            finally:
                self._waiting.task_done()

    async def _write(self, obj: Resource, reason: str, message: str, kind: str) -> None:
        now_s = asyncio.get_running_loop().time()
        uid = str(obj["metadata"].get("uid", ""))
        if not _kept(self._allowances, uid, Allowance(BURST, now_s)).spend(now_s):
            return
        same = (uid, obj["kind"], obj["metadata"]["name"], reason, message, kind)
        known = self._told.get(same)
        if known is not None and now_s - known.last_s < SAME_S:
            known.count, known.last_s = known.count + 1, now_s
            patch = {"count": known.count, "lastTimestamp": clock.rfc3339(clock.now())}
            try:
                await self._client.patch(EVENTS, known.name, patch, known.namespace)
                return
            except InsulaError:
                self._told.pop(same, None)  # it has been cleared away
        wish = self._event(obj, reason, message, kind)
        namespace = wish["metadata"]["namespace"]
        made = await self._client.create(EVENTS, wish, namespace)
        self._told.pop(same, None)
        _kept(self._told, same, Told(namespace, made["metadata"]["name"], 1, now_s))

    def _event(self, obj: Resource, reason: str, message: str, kind: str) -> Resource:
        meta, now = obj["metadata"], clock.rfc3339(clock.now())
        namespace = meta.get("namespace") or "default"
        about: dict[str, Any] = {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "name": meta["name"],
            "namespace": meta.get("namespace", ""),
            "uid": meta.get("uid", ""),
            "resourceVersion": meta.get("resourceVersion", ""),
        }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta['name'][:200]}.", "namespace": namespace},
            "involvedObject": {name: value for name, value in about.items() if value},
            "reason": reason,
            "message": message,
            "type": kind,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": self._source,
            "reportingComponent": self._source["component"],
            "reportingInstance": self._instance,
        }


def _kept(memory: OrderedDict[Any, Any], key: Any, fresh: Any) -> Any:
    """What is remembered of a key; the oldest memory makes room for a new one."""
    found = memory.setdefault(key, fresh)
    memory.move_to_end(key)
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
    return found
