"""The scheduler's loop: Pods and VirtualMachineInstances without a node are given one.

A Pod is bound through its `binding` subresource. A machine has no such subresource: its node is written to
`status.nodeName` together with phase Scheduled, by the scheduler alone.
What cannot be placed waits; it is tried again when a node changes, when something leaves a node, and at growing intervals.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from insula import clock
from insula.client.contract import Client
from insula.control.queue import Queue
from insula.control.shared import SharedCaches
from insula.errors import Conflict, InsulaError, NotFound
from insula.model.resource import Key, Ref, Resource
from insula.scheduler.columns import Columns
from insula.scheduler.needs import Needs, needs_of_machine, needs_of_pod
from insula.scheduler.place import Placement, place
from insula.tasks import Tasks

log = logging.getLogger(__name__)
PODS = Ref("", "v1", "pods")
NODES = Ref("", "v1", "nodes")
EVENTS = Ref("", "v1", "events")
MACHINES = Ref("kubevirt.io", "v1", "virtualmachineinstances")
NAME = "default-scheduler"
ENDED = ("Succeeded", "Failed")


class Scheduler:
    """Places workloads. Use `start` and `close`."""

    def __init__(self, client: Client, caches: SharedCaches, *, machines: bool = True) -> None:
        self._client = client
        self._caches = caches
        self._columns = Columns()
        self._queue: Queue[tuple[Ref, Key]] = Queue(base_s=1.0, cap_s=60.0)
        self._tasks = Tasks("scheduler")
        self._waiting: dict[tuple[Ref, Key], str] = {}
        self._readers: dict[Ref, Callable[[Resource], Needs]] = {PODS: needs_of_pod}
        if machines:
            self._readers[MACHINES] = needs_of_machine

    async def start(self) -> None:
        """Read what is there, then place what has no node."""
        self._caches.subscribe(NODES, self._node)
        for ref in self._readers:
            self._caches.subscribe(ref, self._workload(ref))
        await self._caches.start()
        self._tasks.spawn(self._run(), "place")

    async def close(self) -> None:
        """Stop placing."""
        await self._tasks.close()
        self._queue.close()

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
        for ref, read in self._readers.items():
            for obj in self._caches.list(ref):
                if node_of(obj) == name and not _ended(obj):
                    self._columns.put(obj["metadata"]["uid"], row, read(obj))

    def _workload(self, ref: Ref) -> Callable[[Resource | None, Resource | None], None]:
        read = self._readers[ref]

        def changed(old: Resource | None, new: Resource | None) -> None:
            obj = new or old
            assert obj is not None
            meta = obj["metadata"]
            key = (ref, Key(meta["namespace"], meta["name"]))
            if new is None or _ended(new):
                self._waiting.pop(key, None)
                if meta["uid"] in self._columns.placed:
                    self._columns.take_away(meta["uid"])
                    self._wake()
            elif node_of(new):
                self._waiting.pop(key, None)
                row = self._columns.rows.get(node_of(new))
                if row is not None and meta["uid"] not in self._columns.placed:
                    self._columns.put(meta["uid"], row, read(new))
            elif wants_placing(new) and key not in self._waiting:
                self._queue.add(key)

        return changed

    def _wake(self) -> None:
        for key in self._waiting:
            self._queue.add(key)

    async def _run(self) -> None:
        while True:
            item = await self._queue.take()
            try:
                await self._one(*item)
                self._queue.succeeded(item)
            except (Conflict, NotFound):
                log.debug("workload changed while it was placed", extra={"key": str(item)})
            except InsulaError as fault:
                log.warning("placing failed: %s", fault, extra={"key": str(item), "retry_s": self._queue.failed(item)})
            except Exception:
                log.exception("placing failed", extra={"key": str(item), "retry_s": self._queue.failed(item)})
            finally:
                self._queue.done(item)
                await asyncio.sleep(0)

    async def _one(self, ref: Ref, key: Key) -> None:
        obj = self._caches.get(ref, key.name, key.namespace)
        if obj is None or node_of(obj) or not wants_placing(obj):
            return
        uid, needs = obj["metadata"]["uid"], self._readers[ref](obj)
        placement = place(self._columns, needs)
        if not placement.node:
            await self._refuse(ref, key, obj, placement)
            return
        self._columns.put(uid, placement.row, needs)
        try:
            await self._bind(ref, key, obj, placement.node)
        except BaseException:
            self._columns.take_away(uid)
            raise
        self._waiting.pop((ref, key), None)
        text = f"Successfully assigned {key.namespace}/{key.name} to {placement.node}"
        await self._record(obj, "Scheduled", text, "Normal")

    async def _bind(self, ref: Ref, key: Key, obj: Resource, node: str) -> None:
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

    async def _refuse(self, ref: Ref, key: Key, obj: Resource, placement: Placement) -> None:
        """Say why it waits: once per reason, as a condition and an event; look again later even if nothing changes."""
        if self._waiting.get((ref, key)) != placement.reason:
            self._waiting[(ref, key)] = placement.reason
            condition = {
                "type": "PodScheduled" if ref == PODS else "Ready",
                "status": "False",
                "reason": "Unschedulable",
                "message": placement.reason,
                "lastTransitionTime": clock.rfc3339(clock.now()),
            }
            others = [c for c in (obj.get("status") or {}).get("conditions") or () if c["type"] != condition["type"]]
            status: dict[str, Any] = {**(obj.get("status") or {}), "conditions": [*others, condition]}
            status.setdefault("phase", "Pending")
            await self._client.update(ref, {**obj, "status": status}, key.namespace, sub="status")
            await self._record(obj, "FailedScheduling", placement.reason, "Warning")
        self._queue.failed((ref, key))

    async def _record(self, obj: Resource, reason: str, message: str, kind: str) -> None:
        meta = obj["metadata"]
        moment = clock.now()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta['name'][:200]}.", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": obj["apiVersion"],
                "kind": obj["kind"],
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
                "resourceVersion": meta["resourceVersion"],
            },
            "reason": reason,
            "message": message,
            "type": kind,
            "action": "Binding" if kind == "Normal" else "Scheduling",
            "eventTime": clock.rfc3339_micro(moment),
            "reportingComponent": NAME,
            "reportingInstance": NAME,
            "source": {"component": NAME},
            "firstTimestamp": clock.rfc3339(moment),
            "lastTimestamp": clock.rfc3339(moment),
            "count": 1,
        }
        await self._client.create(EVENTS, event, meta["namespace"])


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


def _placing_parts(node: Resource) -> tuple[Any, ...]:
    status = node.get("status") or {}
    return (node["metadata"].get("labels"), node.get("spec"), status.get("allocatable"))
