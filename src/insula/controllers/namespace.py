"""Namespace: deletes everything in a namespace that is being deleted, then lets it go (its `kubernetes` finalizer).

Pods go first, so that nothing runs on without the policies and secrets it was made with (as upstream orders it since 1.33).
"""

from __future__ import annotations

from typing import Any

from insula import clock
from insula.control.controller import DONE, Context, Controller, Result, Watch
from insula.controllers.common import delete_quietly, each, with_condition, write_status
from insula.controllers.refs import NAMESPACES, PODS
from insula.errors import InsulaError, NotFound, Unsupported, gather
from insula.model.resource import Key, Ref, Resource

AGAIN_S, LONGEST_S = 0.2, 5.0
FINALIZER = "kubernetes"


async def reconcile(context: Context, key: Key) -> Result:
    """Empty a terminating namespace, type by type; done when nothing is left."""
    namespace = context.caches.get(NAMESPACES, key.name)
    if namespace is None or not namespace["metadata"].get("deletionTimestamp"):
        return DONE
    if FINALIZER not in (namespace["spec"].get("finalizers") or ()):
        return DONE
    left = await _empty(context, key.name)
    if left:
        await _tell(context, namespace, left)
        return Result(_wait_s(namespace), f"{sum(map(len, left.values()))} objects left")
    finalizers = [name for name in namespace["spec"]["finalizers"] if name != FINALIZER]
    wish = {**namespace, "spec": {**namespace["spec"], "finalizers": finalizers}}
    try:
        await context.client.update(NAMESPACES, wish, sub="finalize")
    except NotFound:
        return DONE
    return Result(note="namespace emptied")


def _wait_s(namespace: Resource) -> float:
    """Look again soon at first, more seldom at what takes its time."""
    since = clock.parse_rfc3339(namespace["metadata"]["deletionTimestamp"])
    return min(max(AGAIN_S, (clock.now() - since).total_seconds() / 10), LONGEST_S)


async def _empty(context: Context, name: str) -> dict[str, list[Resource]]:
    """Ask every object of the namespace to go. Returns those of each type that are still there. A type that fails keeps no
    other from being emptied; raises what failed."""
    left = await _empty_type(context, PODS, name)
    if left:
        return {PODS.plural: left}
    found: dict[str, list[Resource]] = {}
    errors: list[BaseException] = []
    for info in await context.types():
        if info.namespaced and not info.alternate:
            try:
                if left := await _empty_type(context, info.ref, name):
                    found[info.ref.plural] = left
            except (InsulaError, ExceptionGroup) as fault:
                errors.append(fault)
    gather(f"namespace {name}", errors)
    return found


async def _empty_type(context: Context, ref: Ref, name: str) -> list[Resource]:
    try:
        found = (await context.client.list(ref, name)).items
    except (NotFound, Unsupported):
        return []
    waiting = [obj for obj in found if not obj["metadata"].get("deletionTimestamp")]
    await each([delete_quietly(context.client, ref, obj) for obj in waiting], f"{ref.plural} of namespace {name}")
    return found


async def _tell(context: Context, namespace: Resource, left: dict[str, list[Resource]]) -> None:
    status = dict(namespace.get("status") or {})
    status["phase"] = "Terminating"
    status["conditions"] = conditions(status.get("conditions") or [], left, clock.rfc3339(clock.now()))
    await write_status(context.client, NAMESPACES, namespace, status)


def conditions(old: list[dict[str, Any]], left: dict[str, list[Resource]], now: str) -> list[dict[str, Any]]:
    """What is left, and which finalizers hold it."""
    amounts = ", ".join(f"{plural} has {len(objects)} resource instances" for plural, objects in left.items())
    text = f"Some resources are remaining: {amounts}"
    found = with_condition(old, "NamespaceContentRemaining", "True", "SomeResourcesRemain", text, now)
    holding: dict[str, int] = {}
    for obj in (obj for objects in left.values() for obj in objects):
        for finalizer in obj["metadata"].get("finalizers") or ():
            holding[finalizer] = holding.get(finalizer, 0) + 1
    if not holding:
        return [item for item in found if item["type"] != "NamespaceFinalizersRemaining"]
    counts = ", ".join(f"{name} in {count} resource instances" for name, count in sorted(holding.items()))
    text = f"Some content in the namespace has finalizers remaining: {counts}"
    return with_condition(found, "NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", text, now)


CONTROLLER = Controller(
    name="namespace-controller",
    summary="empties namespaces that are being deleted",
    watches=(Watch(ref=NAMESPACES),),
    reconcile=reconcile,
)
