"""Node life cycle: a node whose lease is not renewed is marked Unknown, tainted, and its pods are evicted in time.

Times are upstream's defaults: 50 s without a sign (10 s leases); pods leave when their tolerationSeconds are over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from insula import clock
from insula.control.controller import DONE, Caches, Context, Controller, Result, Watch
from insula.controllers.common import delete_quietly, each, with_condition, write_status
from insula.controllers.refs import LEASES, NODES, PODS
from insula.model.resource import Key, Resource

GRACE_S = 50.0
UNREACHABLE = "node.kubernetes.io/unreachable"
NOT_READY = "node.kubernetes.io/not-ready"


def silent_for(lease: Resource | None, node: Resource, now: str) -> float:
    """Seconds since a node's last sign of life. A node without a lease lives in this process and is never silent: its agent
    renews nothing, so that an idle machine writes nothing."""
    if lease is None:
        return 0.0
    last = lease["spec"].get("renewTime") or node["metadata"]["creationTimestamp"]
    return (clock.parse_rfc3339(now) - clock.parse_rfc3339(last)).total_seconds()


def taints_for(node: Resource, *, silent: bool, now: str) -> list[dict[str, Any]]:
    """The node's taints as its health demands; other taints are kept."""
    ready = next(
        (c["status"] for c in (node.get("status") or {}).get("conditions") or () if c["type"] == "Ready"), "Unknown"
    )
    key = UNREACHABLE if silent or ready == "Unknown" else NOT_READY if ready == "False" else ""
    present = (node.get("spec") or {}).get("taints") or []
    kept = [taint for taint in present if taint["key"] not in (UNREACHABLE, NOT_READY)]
    if not key:
        return kept
    mine = [taint for taint in present if taint["key"] == key]
    return [
        *kept,
        *(mine or [{"key": key, "effect": "NoSchedule"}, {"key": key, "effect": "NoExecute", "timeAdded": now}]),
    ]


async def reconcile(context: Context, key: Key) -> Result:
    """Judge one node and write what follows."""
    node = context.caches.get(NODES, key.name)
    if node is None:
        return DONE
    now = clock.rfc3339(clock.now())
    silent_s = silent_for(context.caches.get(LEASES, key.name, "kube-node-lease"), node, now)
    silent = silent_s >= GRACE_S
    if silent:
        node = await _mark_unknown(context, node, now)
    taints = taints_for(node, silent=silent, now=now)
    if taints != ((node.get("spec") or {}).get("taints") or []):
        patch = {
            "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
            "spec": {"taints": taints or None},
        }
        await context.client.patch(NODES, key.name, patch)
    await _evict(context, key.name, taints, now)
    return Result(max(GRACE_S - silent_s, 0) + 1 if not silent else 10.0)


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


async def _evict(context: Context, node: str, taints: list[dict[str, Any]], now: str) -> None:
    repelling = [taint for taint in taints if taint["effect"] == "NoExecute"]
    if not repelling:
        return
    here = [pod for pod in context.caches.list(PODS) if pod["spec"].get("nodeName") == node]
    leaving = [
        pod for pod in here if not pod["metadata"].get("deletionTimestamp") and not _may_stay(pod, repelling, now)
    ]
    await each((delete_quietly(context.client, PODS, pod) for pod in leaving), f"pods of node {node}")


def _may_stay(pod: Resource, taints: list[dict[str, Any]], now: str) -> bool:
    tolerations = pod["spec"].get("tolerations") or ()
    return all(any(_tolerates(toleration, taint, now) for toleration in tolerations) for taint in taints)


def _tolerates(toleration: dict[str, Any], taint: dict[str, Any], now: str) -> bool:
    if toleration.get("effect", "") not in ("", taint["effect"]) or toleration.get("key", "") not in ("", taint["key"]):
        return False
    if toleration.get("operator", "Equal") == "Equal" and toleration.get("value", "") != taint.get("value", ""):
        return False
    seconds = toleration.get("tolerationSeconds")
    since = clock.parse_rfc3339(taint.get("timeAdded") or now)
    return seconds is None or (clock.parse_rfc3339(now) - since).total_seconds() < seconds


def _node_of_lease(lease: Resource, _: Caches) -> Iterable[Key]:
    if lease["metadata"]["namespace"] == "kube-node-lease":
        yield Key("", lease["metadata"]["name"])


def _no_keys(_pod: Resource, _: Caches) -> Iterable[Key]:
    return ()


CONTROLLER = Controller(
    name="node-lifecycle-controller",
    summary="marks silent nodes and moves their pods away",
    watches=(Watch(ref=NODES), Watch(ref=LEASES, keys=_node_of_lease), Watch(ref=PODS, keys=_no_keys)),
    reconcile=reconcile,
)
