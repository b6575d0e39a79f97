"""ReplicaSet: as many pods as asked. `plan` decides, `reconcile` carries it out.

Behaviour follows the Kubernetes documentation of ReplicaSet; the order in which pods are given up is upstream's: unassigned
before assigned, pending before running, not ready before ready, cheaper before dearer (`pod-deletion-cost`), from crowded nodes
before others, ready for a shorter time, restarted more often, younger before older.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from insula import clock
from insula.control.controller import DONE, Context, Controller, Result, Watch, controlled_or_wanted_by
from insula.controllers.claiming import claim
from insula.controllers.common import (
    delete_quietly,
    each,
    is_active,
    is_true,
    owner_reference,
    slow_start,
    with_condition,
    write_status,
)
from insula.controllers.refs import PODS, REPLICA_SETS
from insula.errors import InsulaError
from insula.model.resource import Key, Resource

BURST = 500
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


class Plan(Struct, frozen=True):
    """How many pods to make and which to delete."""

    create: int
    delete: list[Resource]


def plan(replicas: Resource, pods: Sequence[Resource], now: str) -> Plan:
    """Compare the wish with the active pods; at most BURST steps at a time."""
    active = [pod for pod in pods if is_active(pod)]
    difference = int(replicas["spec"].get("replicas", 1)) - len(active)
    if difference >= 0:
        return Plan(min(difference, BURST), [])
    crowd = Counter(pod["spec"].get("nodeName", "") for pod in active)
    ranked = sorted(active, key=lambda pod: _worth(pod, crowd, now))
    return Plan(0, ranked[: min(-difference, BURST)])


def _worth(pod: Resource, crowd: Counter[str], now: str) -> tuple[Any, ...]:
    """Sorts pods that are given up first to the front."""
    meta, status, node = pod["metadata"], pod.get("status") or {}, pod["spec"].get("nodeName", "")
    restarts = max((c.get("restartCount", 0) for c in status.get("containerStatuses") or ()), default=0)
    return (
        bool(node),
        {"Pending": 0, "Unknown": 1}.get(status.get("phase", "Pending"), 2),
        is_true(pod, "Ready"),
        _cost(meta),
        -crowd[node],
        ready_for(pod, now),
        -restarts,
        -clock.parse_rfc3339(meta["creationTimestamp"]).timestamp(),
        meta["name"],
    )


def _cost(meta: Resource) -> int:
    """What the user says that deleting a pod costs; what is not a number costs nothing."""
    try:
        return int((meta.get("annotations") or {}).get(DELETION_COST, 0))
    except ValueError:
        return 0


def ready_for(pod: Resource, now: str) -> float:
    """For how many seconds a pod has been ready; -1 for one that is not."""
    for found in (pod.get("status") or {}).get("conditions") or ():
        if found["type"] == "Ready" and found["status"] == "True":
            since = clock.parse_rfc3339(found.get("lastTransitionTime") or now)
            return (clock.parse_rfc3339(now) - since).total_seconds()
    return -1.0


def status_of(replicas: Resource, pods: Sequence[Resource], now: str, failure: str = "") -> dict[str, Any]:
    """The status that the pods amount to. `failure` says why pods could not be made or deleted."""
    active = [pod for pod in pods if is_active(pod)]
    ready = [pod for pod in active if is_true(pod, "Ready")]
    wait_s = int(replicas["spec"].get("minReadySeconds", 0))
    labels = (replicas["spec"].get("template", {}).get("metadata", {}).get("labels") or {}).items()
    status: dict[str, Any] = {
        "replicas": len(active),
        "fullyLabeledReplicas": sum(labels <= (pod["metadata"].get("labels") or {}).items() for pod in active),
        "readyReplicas": len(ready),
        "availableReplicas": sum(ready_for(pod, now) >= wait_s for pod in ready),
        "observedGeneration": replicas["metadata"].get("generation", 1),
    }
    conditions = [
        c for c in (replicas.get("status") or {}).get("conditions") or () if failure or c["type"] != "ReplicaFailure"
    ]
    if failure:
        conditions = with_condition(conditions, "ReplicaFailure", "True", "FailedCreate", failure, now)
    if conditions:
        status["conditions"] = conditions
    return {name: value for name, value in status.items() if value or name in ("replicas", "observedGeneration")}


def pod_of(replicas: Resource) -> Resource:
    """A new pod from the template."""
    template = replicas["spec"]["template"]
    meta = {k: v for k, v in (template.get("metadata") or {}).items() if k in ("labels", "annotations", "finalizers")}
    meta["generateName"] = f"{replicas['metadata']['name'][:242]}-"
    meta["ownerReferences"] = [owner_reference(replicas)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}


async def reconcile(context: Context, key: Key) -> Result:
    """One step from the pods that are to the pods that are wanted, then the status."""
    replicas = context.caches.get(REPLICA_SETS, key.name, key.namespace)
    if replicas is None:
        return DONE
    uid = replicas["metadata"]["uid"]
    pods = await claim(context, REPLICA_SETS, replicas, PODS, adoptable=is_active)
    seen = context.expectations.met(uid, context.caches.owned(PODS, uid), context.caches.revision(PODS))
    now = clock.rfc3339(clock.now())
    fault: Exception | None = None
    if seen and not replicas["metadata"].get("deletionTimestamp"):
        try:
            await _carry_out(context, replicas, plan(replicas, pods, now))
        except (InsulaError, ExceptionGroup) as failed:
            fault = failed
    status = status_of(replicas, pods, now, _sentence(fault))
    await write_status(context.client, REPLICA_SETS, replicas, status)
    if fault is not None:
        raise fault
    return Result(_recheck(replicas, pods, now))


def _sentence(fault: Exception | None) -> str:
    while isinstance(fault, ExceptionGroup):
        fault = fault.exceptions[0]
    return str(fault) if fault is not None else ""


def _recheck(replicas: Resource, pods: Sequence[Resource], now: str) -> float | None:
    wait_s = int(replicas["spec"].get("minReadySeconds", 0))
    left = [wait_s - ready_for(pod, now) for pod in pods if 0 <= ready_for(pod, now) < wait_s]
    return min(left) + 1 if left else None


async def _carry_out(context: Context, replicas: Resource, steps: Plan) -> None:
    expected, uid = context.expectations, replicas["metadata"]["uid"]

    async def create() -> None:
        try:
            pod = await context.client.create(PODS, pod_of(replicas), replicas["metadata"]["namespace"])
        except InsulaError as fault:
            context.events.record(replicas, "FailedCreate", f"Error creating: {fault}", "Warning")
            raise
        expected.wrote(uid, pod)
        context.events.record(replicas, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")

    async def delete(pod: Resource) -> None:
        expected.deleted(uid, pod["metadata"]["uid"])
        try:
            await delete_quietly(context.client, PODS, pod)
        except InsulaError as fault:
            expected.failed(uid, pod["metadata"]["uid"])
            context.events.record(replicas, "FailedDelete", f"Error deleting: {fault}", "Warning")
            raise
        context.events.record(replicas, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")

    await slow_start(steps.create, create)
    await each([delete(pod) for pod in steps.delete], "pods of a replica set")


CONTROLLER = Controller(
    name="replicaset-controller",
    summary="as many pods as a ReplicaSet asks for",
    watches=(Watch(ref=REPLICA_SETS), Watch(ref=PODS, keys=controlled_or_wanted_by("ReplicaSet", REPLICA_SETS))),
    reconcile=reconcile,
    workers=4,
)
