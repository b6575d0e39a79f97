"""Namespace: deletes everything in a namespace that is being deleted, then lets it go (its `kubernetes` finalizer)."""

from __future__ import annotations

from insula import clock
from insula.control.controller import DONE, Context, Controller, Result, Watch
from insula.controllers.common import delete_quietly, each, with_condition, write_status
from insula.controllers.refs import NAMESPACES
from insula.errors import NotFound, Unsupported
from insula.model.resource import Key, Ref, Resource

AGAIN_S = 0.5


async def reconcile(context: Context, key: Key) -> Result:
    """Empty a terminating namespace, type by type; done when nothing is left."""
    namespace = context.caches.get(NAMESPACES, key.name)
    if namespace is None or not namespace["metadata"].get("deletionTimestamp"):
        return DONE
    if "kubernetes" not in (namespace["spec"].get("finalizers") or ()):
        return DONE
    left = await _empty(context, key.name)
    if left:
        await _tell(context, namespace, left)
        return Result(AGAIN_S, f"{sum(left.values())} objects left")
    finalizers = [name for name in namespace["spec"]["finalizers"] if name != "kubernetes"]
    wish = {**namespace, "spec": {**namespace["spec"], "finalizers": finalizers}}
    try:
        await context.client.update(NAMESPACES, wish, sub="finalize")
    except NotFound:
        return DONE
    return Result(note="namespace emptied")


async def _empty(context: Context, name: str) -> dict[str, int]:
    """Ask every object of the namespace to go. Returns how many of each type are still there."""
    left: dict[str, int] = {}
    for ref in (info.ref for info in await context.types() if info.namespaced):
        try:
            found = await context.client.list(ref, name)
        except (NotFound, Unsupported):
            continue
        if found.items:
            left[ref.plural] = len(found.items)
            waiting = [obj for obj in found.items if not obj["metadata"].get("deletionTimestamp")]
            await each((_delete(context, ref, obj) for obj in waiting), f"{ref.plural} of namespace {name}")
    return left


async def _delete(context: Context, ref: Ref, obj: Resource) -> None:
    await delete_quietly(context.client, ref, obj)


async def _tell(context: Context, namespace: Resource, left: dict[str, int]) -> None:
    text = "Some resources are remaining: " + ", ".join(
        f"{plural} has {n} resource instances" for plural, n in left.items()
    )
    status = dict(namespace.get("status") or {})
    now = clock.rfc3339(clock.now())
    found = status.get("conditions") or ()
    status["phase"] = "Terminating"
    status["conditions"] = with_condition(found, "NamespaceContentRemaining", "True", "SomeResourcesRemain", text, now)
    await write_status(context.client, NAMESPACES, namespace, status)


CONTROLLER = Controller(
    name="namespace-controller",
    summary="empties namespaces that are being deleted",
    watches=(Watch(ref=NAMESPACES),),
    reconcile=reconcile,
)
