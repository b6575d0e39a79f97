"""Subresources that are deeds, not parts: what a POST to them does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from insula import clock
from insula.errors import Cause, Invalid, NotFound, TooManyRequests
from insula.kinds.kind import Kind
from insula.model.resource import Ref, Resource
from insula.model.selector import from_object
from insula.verbs import faults
from insula.verbs.request import DeleteOptions, Handler, Preconditions, Request

if TYPE_CHECKING:
    from insula.verbs.verbs import Verbs

_PODS = Ref("", "v1", "pods")
_BUDGETS = Ref("policy", "v1", "poddisruptionbudgets")
_BUDGET_ATTEMPTS = 5


def _success() -> Resource:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


async def bind(verbs: Verbs, request: Request, kind: Kind, namespace: str, name: str, body: dict[str, Any]) -> Resource:
    """Assign a pod to a node, once. Raises Conflict when it has one or is ending."""
    target = body.get("target") or {}
    if target.get("kind") not in (None, "", "Node") or not target.get("name"):
        cause = Cause("target.name", "FieldValueRequired", "Required value: the node to bind to")
        raise Invalid(f'Binding "{name}" is invalid: {cause.field}: {cause.message}', causes=[cause], field=cause.field)
    given = body.get("metadata") or {}
    codec = verbs.codec(kind.ref)

    def assign(pod: Resource) -> Resource:
        meta, spec = pod["metadata"], pod["spec"]
        if given.get("uid") not in (None, "", meta["uid"]):
            why = f"Precondition failed: UID in precondition: {given['uid']}, UID in object meta: {meta['uid']}"
            raise faults.stale(kind, name, why)
        if meta.get("deletionTimestamp"):
            raise faults.conflict(kind, name, f"pod {name} is being deleted, cannot be assigned to a host")
        if spec.get("nodeName"):
            raise faults.conflict(kind, name, f'pod {name} is already assigned to node "{spec["nodeName"]}"')
        spec["nodeName"] = target["name"]
        if annotations := given.get("annotations"):
            meta["annotations"] = {**(meta.get("annotations") or {}), **annotations}
        _scheduled(pod)
        return pod

    await verbs.writer.change(request, codec, namespace, name, assign, sub="binding")
    return _success()


def _scheduled(pod: Resource) -> None:
    status = pod.setdefault("status", {})
    rest = [one for one in status.get("conditions") or () if one.get("type") != "PodScheduled"]
    now = clock.rfc3339(clock.now())
    done = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
    status["conditions"] = [*rest, done]


async def bind_named(
    verbs: Verbs, request: Request, _kind: Kind, namespace: str, _name: str, body: dict[str, Any]
) -> Resource:
    """The old form: a Binding object whose name is the pod's."""
    name = (body.get("metadata") or {}).get("name") or ""
    return await bind(verbs, request, verbs.codec(_PODS).kind, namespace, name, body)


async def evict(
    verbs: Verbs, request: Request, kind: Kind, namespace: str, name: str, body: dict[str, Any]
) -> Resource:
    """Delete a pod if the disruption budgets that cover it allow. Raises TooManyRequests."""
    asked = body.get("deleteOptions") or {}
    given = asked.get("preconditions") or {}
    options = DeleteOptions(
        grace_s=asked.get("gracePeriodSeconds"),
        preconditions=Preconditions(uid=given.get("uid") or "", revision=given.get("resourceVersion") or ""),
    )
    pod = await verbs.get(_PODS, name, namespace)
    if not _ended(pod) and not request.dry_run:
        await _spend(verbs, request, pod)
    await verbs.delete(request, kind.ref, name, namespace, options=options)
    return _success()


def _ended(pod: Resource) -> bool:
    phase = (pod.get("status") or {}).get("phase")
    return bool(pod["metadata"].get("deletionTimestamp")) or phase in ("Succeeded", "Failed", "Pending")


async def _spend(verbs: Verbs, request: Request, pod: Resource) -> None:
    """Take one disruption from the budget that covers the pod."""
    namespace, labels = pod["metadata"]["namespace"], pod["metadata"].get("labels") or {}
    covering = []
    for budget in (await verbs.list(_BUDGETS, namespace)).items:
        selector = from_object((budget.get("spec") or {}).get("selector"))
        if selector is not None and selector.matches(labels):
            covering.append(budget)
    if len(covering) > 1:
        raise Invalid(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
        )
    if covering:
        await _take_one(verbs, request, covering[0], pod)


async def _take_one(verbs: Verbs, request: Request, budget: Resource, pod: Resource) -> None:
    name, namespace = budget["metadata"]["name"], budget["metadata"]["namespace"]

    def take(present: Resource) -> Resource:
        status = present.setdefault("status", {})
        allowed = int(status.get("disruptionsAllowed") or 0)
        if allowed <= 0:
            healthy, desired = status.get("currentHealthy") or 0, status.get("desiredHealthy") or 0
            why = f"The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
            raise TooManyRequests(
                "Cannot evict pod as it would violate the pod's disruption budget.",
                causes=[Cause("", "DisruptionBudget", why)],
                retry_after_s=10,
            )
        status["disruptionsAllowed"] = allowed - 1
        status["disruptedPods"] = {
            **(status.get("disruptedPods") or {}),
            pod["metadata"]["name"]: clock.rfc3339(clock.now()),
        }
        return present

    try:
        await verbs.writer.change(request, verbs.codec(_BUDGETS), namespace, name, take, sub="status")
    except NotFound:
        return


HANDLERS: dict[tuple[str, str, str], Handler] = {
    ("", "pods", "binding"): bind,
    ("", "bindings", ""): bind_named,
    ("", "pods", "eviction"): evict,
}
"""By group, plural and subresource ("" for creations of kinds that are not stored)."""
