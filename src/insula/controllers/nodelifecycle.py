"""Node life cycle: a node whose lease is not renewed is marked Unknown, tainted, its pods not ready, and evicted in time.

Times are upstream's defaults: 50 s without a sign (10 s leases); pods leave when the shortest of their tolerationSeconds for a
NoExecute taint is over. Source: the Kubernetes documentation of taints and tolerations, and of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from insula import clock
from insula.control.controller import DONE, Caches, Context, Controller, Result, Watch
from insula.controllers.common import condition, delete_quietly, each, with_condition, write_status
from insula.controllers.refs import LEASES, NODES, PODS
from insula.model.resource import Key, Resource

GRACE_S = 50.0
UNREACHABLE = "node.kubernetes.io/unreachable"
NOT_READY = "node.kubernetes.io/not-ready"
LEASE_NAMESPACE = "kube-node-lease"
Taint = dict[str, Any]


def silent_for(lease: Resource | None, node: Resource, now: str) -> float | None:
    """Seconds since a node's last sign of life. None for a node without a lease: it lives in this process, and its agent renews
    nothing, so that an idle machine writes nothing."""
    if lease is None:
        return None
    last = lease["spec"].get("renewTime") or node["metadata"]["creationTimestamp"]
    return (clock.parse_rfc3339(now) - clock.parse_rfc3339(last)).total_seconds()


def taints_for(node: Resource, *, silent: bool, now: str) -> list[Taint]:
    """The node's taints as its health demands; other taints are kept. Each NoExecute taint notes since when it holds."""
    found = condition(node, "Ready")
    ready = found["status"] if found else "Unknown"
    key = UNREACHABLE if silent or ready == "Unknown" else NOT_READY if ready == "False" else ""
    present = (node.get("spec") or {}).get("taints") or []
    taints = [taint for taint in present if taint["key"] not in (UNREACHABLE, NOT_READY) or taint["key"] == key]
    for effect in ("NoSchedule", "NoExecute") if key else ():
        if not any((taint["key"], taint["effect"]) == (key, effect) for taint in taints):
            taints.append({"key": key, "effect": effect})
    return [
        {**taint, "timeAdded": now} if taint["effect"] == "NoExecute" and not taint.get("timeAdded") else taint
        for taint in taints
    ]


def stay_s(pod: Resource, taints: Sequence[Taint], now: str) -> float | None:
    """How many more seconds a pod may stay on a node with these NoExecute taints; 0: not at all, None: as long as it likes."""
    limits = [_stay_with(pod, taint, now) for taint in taints]
    return min((limit for limit in limits if limit is not None), default=None)


def _stay_with(pod: Resource, taint: Taint, now: str) -> float | None:
    used = [t for t in pod["spec"].get("tolerations") or () if _tolerates(t, taint)]
    if not used:
        return 0.0
    seconds = [float(t["tolerationSeconds"]) for t in used if t.get("tolerationSeconds") is not None]
    if not seconds:
        return None
    since = clock.parse_rfc3339(taint.get("timeAdded") or now)
    return max(min(seconds) - (clock.parse_rfc3339(now) - since).total_seconds(), 0.0)


def _tolerates(toleration: dict[str, Any], taint: Taint) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    exists = toleration.get("operator") == "Exists"
    if not toleration.get("key"):
        return exists
    return toleration["key"] == taint["key"] and (exists or toleration.get("value", "") == taint.get("value", ""))


async def reconcile(context: Context, key: Key) -> Result:
    """Judge one node and write what follows."""
    node = context.caches.get(NODES, key.name)
    if node is None:
        return DONE
    now = clock.rfc3339(clock.now())
    silent_s = silent_for(context.caches.get(LEASES, key.name, LEASE_NAMESPACE), node, now)
    silent = silent_s is not None and silent_s >= GRACE_S
    if silent:
        node = await _mark_unknown(context, node, now)
    taints = taints_for(node, silent=silent, now=now)
    if taints != ((node.get("spec") or {}).get("taints") or []):
        guard = {"resourceVersion": node["metadata"]["resourceVersion"]}
        await context.client.patch(NODES, key.name, {"metadata": guard, "spec": {"taints": taints or None}})
    # Without taints nobody is driven away: thousands of nodes need not look through all pods.
    pods = context.caches.list(PODS) if taints else ()
    here = [pod for pod in pods if pod["spec"].get("nodeName") == key.name]
    if any(taint["key"] == UNREACHABLE for taint in taints):
        await each([_mark_unready(context, pod, now) for pod in here], f"readiness of pods on {key.name}")
    waits = await _evict(context, here, taints, now)
    if silent_s is not None and not silent:
        waits.append(GRACE_S - silent_s + 1)
    return Result(min(waits, default=None))


async def _mark_unknown(context: Context, node: Resource, now: str) -> Resource:
    status = dict(node.get("status") or {})
    conditions = status.get("conditions") or ()
    for found in list(conditions):
        text = "Kubelet stopped posting node status."
        conditions = with_condition(conditions, found["type"], "Unknown", "NodeStatusUnknown", text, now)
    status["conditions"] = list(conditions)
    if await write_status(context.client, NODES, node, status):
        return await context.client.get(NODES, node["metadata"]["name"])
    return node


async def _mark_unready(context: Context, pod: Resource, now: str) -> None:
    """Nobody knows how it is: it counts as not ready."""
    found = condition(pod, "Ready")
    if found is None or found["status"] != "True":
        return
    status = dict(pod["status"])
    others = [item for item in status["conditions"] if item["type"] != "Ready"]
    unready = {**found, "status": "False", "lastTransitionTime": now, "reason": "NodeNotReady"}
    status["conditions"] = [*others, unready]
    await write_status(context.client, PODS, pod, status)


async def _evict(context: Context, here: Sequence[Resource], taints: Sequence[Taint], now: str) -> list[float]:
    """Delete what may not stay. Returns after how many seconds others will have to go."""
    repelling = [taint for taint in taints if taint["effect"] == "NoExecute"]
    left = [(pod, stay_s(pod, repelling, now)) for pod in here if not pod["metadata"].get("deletionTimestamp")]
    leaving = [pod for pod, seconds in left if seconds == 0]
    for pod in leaving:
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        context.events.record(pod, "TaintManagerEviction", f"Marking for deletion Pod {name}")
    await each([delete_quietly(context.client, PODS, pod) for pod in leaving], "evictions")
    return [seconds + 1 for _, seconds in left if seconds]


def _node_of_lease(lease: Resource, _: Caches) -> Iterable[Key]:
    if lease["metadata"]["namespace"] == LEASE_NAMESPACE:
        yield Key("", lease["metadata"]["name"])


def _tainted_node(pod: Resource, caches: Caches) -> Iterable[Key]:
    """A pod on a node that drives pods away."""
    node = caches.get(NODES, pod["spec"].get("nodeName", ""))
    taints = ((node or {}).get("spec") or {}).get("taints") or ()
    if node is not None and any(taint["effect"] == "NoExecute" for taint in taints):
        yield Key("", node["metadata"]["name"])


CONTROLLER = Controller(
    name="node-lifecycle-controller",
    summary="marks silent nodes and moves their pods away",
    watches=(Watch(ref=NODES), Watch(ref=LEASES, keys=_node_of_lease), Watch(ref=PODS, keys=_tainted_node)),
    reconcile=reconcile,
)
