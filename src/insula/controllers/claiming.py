"""Which objects belong to an owner with a selector: those it controls and still matches. It lets go of objects whose labels
have been changed away from it (to look at one in quarantine, say), and takes in matching ones that nobody controls.

Source: the Kubernetes documentation of ReplicaSet ("Isolating Pods from a ReplicaSet", "Non-Template Pod acquisitions").
"""

from __future__ import annotations

from collections.abc import Callable

from insula.control.controller import Context, controller_of
from insula.controllers.common import owner_reference
from insula.errors import NotFound
from insula.model.resource import Ref, Resource
from insula.model.selector import from_object

Suits = Callable[[Resource], bool]


async def claim(context: Context, owners: Ref, owner: Resource, ref: Ref, *, adoptable: Suits) -> list[Resource]:
    """The owner's objects of a type, after letting go and taking in. Raises StaleRevision where somebody else was faster."""
    meta = owner["metadata"]
    uid, namespace = meta["uid"], meta["namespace"]
    mine = [obj for obj in context.caches.owned(ref, uid) if (controller_of(obj) or {}).get("uid") == uid]
    selector = from_object(owner["spec"].get("selector"))
    if meta.get("deletionTimestamp") or selector is None:
        return mine
    kept = []
    for obj in mine:
        if selector.matches(obj["metadata"].get("labels") or {}):
            kept.append(obj)
        elif not obj["metadata"].get("deletionTimestamp"):
            await _release(context, ref, obj, uid)
    orphans = [obj for obj in context.caches.owned(ref, "") if obj["metadata"].get("namespace") == namespace]
    wanted = [obj for obj in orphans if selector.matches(obj["metadata"].get("labels") or {}) and _free(obj, adoptable)]
    if wanted and await _may_adopt(context, owners, owner):
        for obj in wanted:
            kept += await _adopt(context, ref, obj, owner)
    return kept


def _free(obj: Resource, adoptable: Suits) -> bool:
    return controller_of(obj) is None and not obj["metadata"].get("deletionTimestamp") and adoptable(obj)


async def _may_adopt(context: Context, owners: Ref, owner: Resource) -> bool:
    """Ask the server itself: a cache may not know yet that the owner is going."""
    meta = owner["metadata"]
    try:
        fresh = (await context.client.get(owners, meta["name"], meta["namespace"]))["metadata"]
    except NotFound:
        return False
    return fresh["uid"] == meta["uid"] and not fresh.get("deletionTimestamp")


async def _adopt(context: Context, ref: Ref, obj: Resource, owner: Resource) -> list[Resource]:
    references = [*(obj["metadata"].get("ownerReferences") or ()), owner_reference(owner)]
    return await _write(context, ref, obj, references)


async def _release(context: Context, ref: Ref, obj: Resource, uid: str) -> None:
    references = [found for found in obj["metadata"]["ownerReferences"] if found["uid"] != uid]
    await _write(context, ref, obj, references)


async def _write(context: Context, ref: Ref, obj: Resource, references: list[Resource]) -> list[Resource]:
    meta = obj["metadata"]
    guard = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
    patch = {"metadata": {**guard, "ownerReferences": references or None}}
    try:
        return [await context.client.patch(ref, meta["name"], patch, meta["namespace"])]
    except NotFound:
        return []
