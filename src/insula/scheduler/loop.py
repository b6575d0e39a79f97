"""The scheduler's loop: Pods and VirtualMachineInstances without a node are given one.

A Pod is bound through its `binding` subresource. A machine has no such subresource: its node is written to
`status.nodeName` together with phase Scheduled, by the scheduler alone.
Decisions are made one after another, each seeing those before it; the writes that follow from them run side by side.
What cannot be placed waits; it is tried again when it changes, when a node changes, when something leaves a node, and at growing
intervals.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from insula import clock
from insula.client.contract import Client
from insula.control.events import Recorder
from insula.control.queue import Queue
from insula.control.shared import SharedCaches
from insula.errors import InsulaError, NotFound
from insula.model.resource import Key, Ref, Resource
from insula.model.selector import from_object
from insula.scheduler.columns import Columns
from insula.scheduler.needs import Needs, SelectNamespaces, needs_of_machine, needs_of_pod
from insula.scheduler.place import Placement, place
from insula.tasks import Tasks

log = logging.getLogger(__name__)
PODS = Ref("", "v1", "pods")
NODES = Ref("", "v1", "nodes")
NAMESPACES = Ref("", "v1", "namespaces")
MACHINES = Ref("kubevirt.io", "v1", "virtualmachineinstances")
NAME = "default-scheduler"
ENDED = ("Succeeded", "Failed")
AT_ONCE = 128
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0
Item = tuple[Ref, Key]
Read = Callable[[Resource, SelectNamespaces], Needs]


class Scheduler:
    """Places workloads. Use `start` and `close`."""

    def __init__(self, client: Client, caches: SharedCaches, *, machines: bool = True) -> None:
        self._client = client
        self._caches = caches
        self._columns = Columns()
        self._queue: Queue[Item] = Queue(base_s=FIRST_WAIT_S, cap_s=LONGEST_WAIT_S)
        self._tasks = Tasks("scheduler")
        self._events = Recorder(client, NAME)
        self._waiting: dict[Item, str] = {}
        self._assumed: set[str] = set()  # uids whose placement is decided and does not show in the caches yet
        self._limit = asyncio.Semaphore(AT_ONCE)
        self._rewake: asyncio.TimerHandle | None = None
        self._readers: dict[Ref, Read] = {PODS: needs_of_pod}
        if machines:
            self._readers[MACHINES] = needs_of_machine

    async def start(self) -> None:
        """Read what is there, then place what has no node."""
        self._caches.informer(NAMESPACES)
        self._caches.subscribe(NODES, self._node)
        for ref in self._readers:
            self._caches.subscribe(ref, self._workload(ref))
        await self._caches.start()
        self._tasks.spawn(self._run(), "place")

    async def close(self) -> None:
        """Stop placing."""
        await self._tasks.close()
        await self._events.close()
        self._queue.close()
        if self._rewake is not None:
            self._rewake.cancel()

    # what is seen

    def _node(self, old: Resource | None, new: Resource | None) -> None:
        if new is None:
            assert old is not None
            self._columns.remove_node(old["metadata"]["name"])
            return
        known = new["metadata"]["name"] in self._columns.rows
        row = self._columns.set_node(new)
        if not known:
            self._recount(row, new["metadata"]["name"])
        if old is None or _placing_parts(old) != _placing_parts(new):
            self._wake()

    def _recount(self, row: int, name: str) -> None:
        """A node seen after workloads that already sit on it."""
        for ref in self._readers:
            for obj in self._caches.list(ref):
                if node_of(obj) == name and not _ended(obj):
                    self._columns.put(obj["metadata"]["uid"], row, self._read(ref, obj))

    def _read(self, ref: Ref, obj: Resource) -> Needs:
        return self._readers[ref](obj, self._select)

    def _select(self, selector: Mapping[str, Any]) -> Iterable[str]:
        wanted = from_object(selector)
        for namespace in self._caches.list(NAMESPACES):
            if wanted is not None and wanted.matches(namespace["metadata"].get("labels") or {}):
                yield namespace["metadata"]["name"]

    def _workload(self, ref: Ref) -> Callable[[Resource | None, Resource | None], None]:
        def changed(old: Resource | None, new: Resource | None) -> None:
            obj = new or old
            assert obj is not None
            item = (ref, Key(obj["metadata"]["namespace"], obj["metadata"]["name"]))
            if old is not None and new is not None and old["metadata"]["uid"] != new["metadata"]["uid"]:
                self._gone(item, old["metadata"]["uid"])
                old = None
            if new is None or _ended(new):
                self._gone(item, obj["metadata"]["uid"])
            elif node_of(new):
                self._settled(item, old, new)
            elif wants_placing(new):
                self._wanting(item, old, new)
            else:
                self._waiting.pop(item, None)

        return changed

    def _gone(self, item: Item, uid: str) -> None:
        self._waiting.pop(item, None)
        self._assumed.discard(uid)
        self._queue.forget(item)
        if uid in self._columns.placed:
            self._columns.take_away(uid)
            self._wake()

    def _settled(self, item: Item, old: Resource | None, new: Resource) -> None:
        """It has a node, by us or by somebody else; counted there, with what it asks for now."""
        uid = new["metadata"]["uid"]
        self._waiting.pop(item, None)
        self._assumed.discard(uid)
        self._queue.forget(item)
        row = self._columns.rows.get(node_of(new))
        if row is None:
            return
        present = self._columns.placed.get(uid)
        if present is None or present[0] != row or old is None or _asking_parts(old) != _asking_parts(new):
            self._columns.put(uid, row, self._read(item[0], new))

    def _wanting(self, item: Item, old: Resource | None, new: Resource) -> None:
        """It has no node. One that waits is looked at again only when it asks for something else now."""
        if item not in self._waiting or old is None or _asking_parts(old) != _asking_parts(new):
            self._waiting.pop(item, None)
            self._queue.add(item)

    def _wake(self) -> None:
        """Something has become free: look again at what waits. The more waits, the longer such causes are gathered."""
        if self._waiting and self._rewake is None:
            delay_s = min(len(self._waiting) / 1000, 1.0)
            self._rewake = asyncio.get_running_loop().call_later(delay_s, self._wake_now)

    def _wake_now(self) -> None:
        self._rewake = None
        for item in self._waiting:
            self._queue.add(item)

    # what is decided

    async def _run(self) -> None:
        while True:
            item = await self._queue.take()
            try:
                self._decide(item)
            except Exception:
                log.exception("placing failed", extra={"key": str(item), "retry_s": self._queue.failed(item)})
            finally:
                self._queue.done(item)
            await self._limit.acquire()  # not more decisions than writes can follow
            self._limit.release()
            await asyncio.sleep(0)

    def _decide(self, item: Item) -> None:
        ref, key = item
        obj = self._caches.get(ref, key.name, key.namespace)
        if obj is None or node_of(obj) or not wants_placing(obj) or obj["metadata"]["uid"] in self._assumed:
            self._waiting.pop(item, None)
            return
        uid, needs = obj["metadata"]["uid"], self._read(ref, obj)
        placement = place(self._columns, needs)
        if placement.node:
            self._columns.put(uid, placement.row, needs)
            self._assumed.add(uid)
            self._spawn(item, self._bind(item, obj, placement.node))
        else:
            self._refuse(item, obj, placement)

    # what is written

    def _spawn(self, item: Item, work: Coroutine[Any, Any, None]) -> None:
        async def limited() -> None:
            async with self._limit:
                try:
                    await work
                except NotFound:
                    log.debug("workload went while it was placed", extra={"key": str(item)})
                except InsulaError as fault:
                    wait_s = self._queue.failed(item)
                    log.debug("placing is tried again: %s", fault, extra={"key": str(item), "retry_s": wait_s})

        self._tasks.spawn(limited(), f"place-{item[1].name}")

    async def _bind(self, item: Item, obj: Resource, node: str) -> None:
        try:
            await self._write_node(item, obj, node)
        except BaseException:
            self._retract(item, obj["metadata"]["uid"])
            raise
        self._queue.succeeded(item)
        key = item[1]
        self._events.record(obj, "Scheduled", f"Successfully assigned {key.namespace}/{key.name} to {node}")

    def _retract(self, item: Item, uid: str) -> None:
        """The placement did not come about; where it sits by somebody else's doing is what counts."""
        self._assumed.discard(uid)
        self._columns.take_away(uid)
        ref, key = item
        obj = self._caches.get(ref, key.name, key.namespace)
        if obj is not None and obj["metadata"]["uid"] == uid and node_of(obj) and not _ended(obj):
            self._settled(item, None, obj)

    async def _write_node(self, item: Item, obj: Resource, node: str) -> None:
        ref, key = item
        if ref == PODS:
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": key.name, "namespace": key.namespace, "uid": obj["metadata"]["uid"]},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            }
            await self._client.create(PODS, binding, key.namespace, name=key.name, sub="binding")
            return
        status = {**(obj.get("status") or {}), "nodeName": node, "phase": "Scheduled"}
        await self._client.update(ref, {**obj, "status": status}, key.namespace, sub="status")

    def _refuse(self, item: Item, obj: Resource, placement: Placement) -> None:
        """It waits: why is said once per reason. It is looked at again later even if nothing changes."""
        said = self._waiting.get(item)
        self._waiting[item] = placement.reason
        self._queue.failed(item)
        if said != placement.reason:
            self._spawn(item, self._say_why(item, obj, placement.reason))

    async def _say_why(self, item: Item, obj: Resource, reason: str) -> None:
        """As a condition and an event."""
        try:
            await self._write_condition(item, obj, reason)
        except InsulaError:
            if item in self._waiting:
                self._waiting[item] = ""
            raise
        self._events.record(obj, "FailedScheduling", reason, "Warning")

    async def _write_condition(self, item: Item, obj: Resource, reason: str) -> None:
        ref, key = item
        condition = {
            "type": "PodScheduled" if ref == PODS else "Ready",
            "status": "False",
            "reason": "Unschedulable",
            "message": reason,
            "lastTransitionTime": clock.rfc3339(clock.now()),
        }
        if ref == PODS:
            patch = {"metadata": {"uid": obj["metadata"]["uid"]}, "status": {"conditions": [condition]}}
            await self._client.patch(ref, key.name, patch, key.namespace, type="strategic", sub="status")
            return
        others = [c for c in (obj.get("status") or {}).get("conditions") or () if c["type"] != condition["type"]]
        status = {"phase": "Pending", **(obj.get("status") or {}), "conditions": [*others, condition]}
        await self._client.update(ref, {**obj, "status": status}, key.namespace, sub="status")


def node_of(obj: Resource) -> str:
    """The node that a workload is on, or ""."""
    if obj["kind"] == "Pod":
        return str(obj["spec"].get("nodeName", ""))
    return str((obj.get("status") or {}).get("nodeName", ""))


def wants_placing(obj: Resource) -> bool:
    """Whether it is this scheduler's to place, now."""
    mine = obj["spec"].get("schedulerName", NAME) == NAME
    return mine and not obj["spec"].get("schedulingGates") and not obj["metadata"].get("deletionTimestamp")


def _ended(obj: Resource) -> bool:
    return (obj.get("status") or {}).get("phase") in ENDED


def _asking_parts(obj: Resource) -> tuple[Any, ...]:
    """What decides where a workload may go."""
    return obj["metadata"].get("labels"), obj["spec"], obj["metadata"].get("deletionTimestamp")


def _placing_parts(node: Resource) -> tuple[Any, ...]:
    status = node.get("status") or {}
    return (node["metadata"].get("labels"), node.get("spec"), status.get("allocatable"))
