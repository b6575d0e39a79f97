"""ReplicaSet: as many pods as asked. `plan` decides, `reconcile` carries it out.

Behaviour follows the Kubernetes documentation of ReplicaSet; the order in which pods are given up is upstream's: unassigned
before assigned, pending before running, not ready before ready, younger before older.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from insula import clock
from insula.control.controller import DONE, Context, Controller, Result, Watch, controlled_by, controller_of
from insula.controllers.common import delete_quietly, each, is_active, is_true, owner_reference, record, write_status
from insula.controllers.refs import PODS, REPLICA_SETS
from insula.model.resource import Key, Resource
from insula.model.selector import from_object

BURST = 500


class Plan(Struct, frozen=True):
    """How many pods to make and which to delete."""

    create: int
    delete: list[Resource]


def plan(replicas: Resource, pods: Sequence[Resource]) -> Plan:
    """Compare the wish with the active pods; at most BURST steps at a time."""
    active = [pod for pod in pods if is_active(pod)]
    difference = int(replicas["spec"].get("replicas", 1)) - len(active)
    if difference >= 0:
        return Plan(min(difference, BURST), [])
    return Plan(0, sorted(active, key=_worth)[: min(-difference, BURST)])


def _worth(pod: Resource) -> tuple[Any, ...]:
    status = pod.get("status") or {}
    cost = int((pod["metadata"].get("annotations") or {}).get("controller.kubernetes.io/pod-deletion-cost", 0))
    phase = {"Pending": 0, "Unknown": 1}.get(status.get("phase", "Pending"), 2)
    return (
        bool(pod["spec"].get("nodeName")),
        phase,
        is_true(pod, "Ready"),
        cost,
        _Youngest(pod["metadata"]["creationTimestamp"]),
    )


class _Youngest(str):
    """Sorts times newest first."""

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)


def status_of(replicas: Resource, pods: Sequence[Resource], now: str) -> dict[str, Any]:
    """The status that the pods amount to."""
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
    if conditions := (replicas.get("status") or {}).get("conditions"):
        status["conditions"] = conditions
    return {name: value for name, value in status.items() if value or name in ("replicas", "observedGeneration")}


def ready_for(pod: Resource, now: str) -> float:
    """For how many seconds a pod has been ready."""
    for found in pod["status"].get("conditions") or ():
        if found["type"] == "Ready" and found["status"] == "True":
            since = clock.parse_rfc3339(found.get("lastTransitionTime") or now)
            return (clock.parse_rfc3339(now) - since).total_seconds()
    return -1.0


def pod_of(replicas: Resource) -> Resource:
    """A new pod from the template."""
    template = replicas["spec"]["template"]
    meta = {k: v for k, v in (template.get("metadata") or {}).items() if k in ("labels", "annotations", "finalizers")}
    meta["generateName"] = f"{replicas['metadata']['name'][:242]}-"
    meta["ownerReferences"] = [owner_reference(replicas)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}


async def _claim(context: Context, replicas: Resource) -> list[Resource]:
    """The set's pods: those it controls, and orphans that its selector matches, which it adopts."""
    uid, namespace = replicas["metadata"]["uid"], replicas["metadata"]["namespace"]
    mine = [pod for pod in context.caches.owned(PODS, uid) if (controller_of(pod) or {}).get("uid") == uid]
    if replicas["metadata"].get("deletionTimestamp"):
        return mine
    selector = from_object(replicas["spec"]["selector"])
    for pod in context.caches.list(PODS, namespace):
        orphan = controller_of(pod) is None and is_active(pod)
        if orphan and selector is not None and selector.matches(pod["metadata"].get("labels") or {}):
            references = [*(pod["metadata"].get("ownerReferences") or ()), owner_reference(replicas)]
            patch = {"metadata": {"uid": pod["metadata"]["uid"], "ownerReferences": references}}
            mine.append(await context.client.patch(PODS, pod["metadata"]["name"], patch, namespace))
    return mine


async def reconcile(context: Context, key: Key) -> Result:
    """One step from the pods that are to the pods that are wanted, then the status."""
    replicas = context.caches.get(REPLICA_SETS, key.name, key.namespace)
    if replicas is None:
        return DONE
    pods = await _claim(context, replicas)
    if not replicas["metadata"].get("deletionTimestamp"):
        steps = plan(replicas, pods)
        await _carry_out(context, replicas, steps)
    now = clock.rfc3339(clock.now())
    await write_status(context.client, REPLICA_SETS, replicas, status_of(replicas, pods, now))
    return Result(_recheck(replicas, pods, now))


def _recheck(replicas: Resource, pods: Sequence[Resource], now: str) -> float | None:
    wait_s = int(replicas["spec"].get("minReadySeconds", 0))
    left = [wait_s - ready_for(pod, now) for pod in pods if 0 <= ready_for(pod, now) < wait_s]
    return min(left) + 1 if left else None


async def _carry_out(context: Context, replicas: Resource, steps: Plan) -> None:
    expected = context.expectations
    key = replicas["metadata"]["uid"]
    if not expected.met(key, context.caches.owned(PODS, key)):
        return
    namespace = replicas["metadata"]["namespace"]

    async def create() -> None:
        pod = await context.client.create(PODS, pod_of(replicas), namespace)
        expected.created(key, pod["metadata"]["uid"])
        name = pod["metadata"]["name"]
        await record(context.client, replicas, "SuccessfulCreate", f"Created pod: {name}", source=CONTROLLER.name)

    async def delete(pod: Resource) -> None:
        expected.deleted(key, pod["metadata"]["uid"])
        await delete_quietly(context.client, PODS, pod)
        name = pod["metadata"]["name"]
        await record(context.client, replicas, "SuccessfulDelete", f"Deleted pod: {name}", source=CONTROLLER.name)

    work = [*(create() for _ in range(steps.create)), *(delete(pod) for pod in steps.delete)]
    await each(work, "pods of a replica set")


CONTROLLER = Controller(
    name="replicaset-controller",
    summary="as many pods as a ReplicaSet asks for",
    watches=(Watch(ref=REPLICA_SETS), Watch(ref=PODS, keys=controlled_by("ReplicaSet"))),
    reconcile=reconcile,
    workers=4,
)
