"""Garbage collection by owner references, as the Kubernetes documentation describes it.

    Background   the owner goes at once; its dependents are deleted when no owner of theirs is left
    Foreground   the owner waits (finalizer `foregroundDeletion`) until the dependents that block it are gone
    Orphan       the dependents lose the reference first (finalizer `orphan`), then the owner goes

An owner counts as gone only when the API itself says so (not found, or another uid under that name), never by a cache alone.
A dependent with an owner that stays is kept; it loses its references to those that go. Events have no owners and are left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Literal

from msgspec import Struct

from insula.control.controller import DONE, Caches, Context, Controller, Keys, Result, TypeInfo, Watch
from insula.controllers.common import Propagation, delete_quietly, each
from insula.controllers.refs import EVENTS
from insula.errors import NotFound
from insula.model.resource import Ref, Resource

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
UNKNOWN_KIND_AGAIN_S = 60.0
State = Literal["alive", "leaving", "gone", "unknown"]


class Node(Struct, frozen=True):
    """One object to look at."""

    ref: Ref
    namespace: str
    name: str
    uid: str


class Owner(Struct, frozen=True):
    """An owner to look at, as a dependent names it."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


# --- what wakes what --------------------------------------------------------------------------------------------


def _watch(info: TypeInfo) -> Watch | None:
    return None if info.ref.plural == EVENTS.plural else Watch(ref=info.ref, keys=_keys(info), when=_matters)


def _matters(old: Resource | None, new: Resource | None) -> bool:
    """Only owners, finalizers and deletion matter here; most changes are of something else."""
    if old is None or new is None:
        return True
    before, now = old["metadata"], new["metadata"]
    names = ("uid", "ownerReferences", "finalizers", "deletionTimestamp")
    return any(before.get(name) != now.get(name) for name in names)


def _keys(info: TypeInfo) -> Keys:
    """Wake an object that has owners or that waits for its dependents; wake the dependents of one that is gone, and the owners
    that it has left."""

    def keys(obj: Resource, caches: Caches) -> Iterable[Hashable]:
        meta = obj["metadata"]
        namespace, uid = meta.get("namespace", ""), meta["uid"]
        if meta.get("ownerReferences") or meta.get("deletionTimestamp"):
            yield Node(info.ref, namespace, meta["name"], uid)
        present = caches.get(info.ref, meta["name"], namespace)
        same = present is not None and present["metadata"]["uid"] == uid
        left = present["metadata"].get("ownerReferences") or () if present is not None and same else ()
        kept = {(owner["uid"], owner.get("blockOwnerDeletion")) for owner in left}
        for owner in meta.get("ownerReferences") or ():
            if (owner["uid"], owner.get("blockOwnerDeletion")) not in kept:
                yield Owner(owner["apiVersion"], owner["kind"], namespace, owner["name"], owner["uid"])
        if not same:
            yield from (_node(ref, dependent) for ref, dependent in dependents(caches, uid))

    return keys


def _node(ref: Ref, obj: Resource) -> Node:
    meta = obj["metadata"]
    return Node(ref, meta.get("namespace", ""), meta["name"], meta["uid"])


def dependents(caches: Caches, uid: str) -> list[tuple[Ref, Resource]]:
    """Every object that names the uid among its owners."""
    return [(ref, obj) for ref in caches.refs for obj in caches.owned(ref, uid)]


# --- one object -------------------------------------------------------------------------------------------------


async def reconcile(context: Context, key: Node | Owner) -> Result:
    """Look at one object: as an owner that waits, else as a dependent."""
    node = await _found(context, key) if isinstance(key, Owner) else key
    obj = context.caches.get(node.ref, node.name, node.namespace) if node else None
    if node is None or obj is None or obj["metadata"]["uid"] != node.uid:
        return DONE
    finalizers = obj["metadata"].get("finalizers") or ()
    if not obj["metadata"].get("deletionTimestamp"):
        return await _collect(context, node, obj)
    if ORPHAN in finalizers:
        return await _orphan(context, node, obj)
    if FOREGROUND in finalizers:
        return await _foreground(context, node, obj)
    return DONE


async def _found(context: Context, owner: Owner) -> Node | None:
    for info in await context.types():
        if (info.ref.api_version, info.kind) == (owner.api_version, owner.kind):
            return Node(info.ref, owner.namespace if info.namespaced else "", owner.name, owner.uid)
    return None


async def _orphan(context: Context, node: Node, obj: Resource) -> Result:
    found = dependents(context.caches, node.uid)
    await each([_disown(context, ref, dependent, {node.uid}) for ref, dependent in found], "orphaning")
    await _drop_finalizer(context, node, obj, ORPHAN)
    return Result(note=f"orphaned {len(found)}")


async def _foreground(context: Context, node: Node, obj: Resource) -> Result:
    """An owner that waits: each dependent is looked at, and it goes when none is left that blocks it."""
    found = dependents(context.caches, node.uid)
    waiting = [(ref, dependent) for ref, dependent in found if not dependent["metadata"].get("deletionTimestamp")]
    await each([_collect(context, _node(ref, one), one) for ref, one in waiting], "dependents")
    blocking = [one for _, one in found if _blocks(one, node.uid)]
    if blocking:
        return Result(note=f"waits for {len(blocking)} dependents")
    await _drop_finalizer(context, node, obj, FOREGROUND)
    return DONE


def _blocks(dependent: Resource, uid: str) -> bool:
    owners = dependent["metadata"].get("ownerReferences") or ()
    return any(owner["uid"] == uid and owner.get("blockOwnerDeletion") for owner in owners)


async def _collect(context: Context, node: Node, obj: Resource) -> Result:
    """A dependent: deleted when no owner is left, or with the owners that take their dependents with them."""
    owners = obj["metadata"].get("ownerReferences") or ()
    if not owners:
        return DONE
    states = {owner["uid"]: await _state(context, owner, node.namespace) for owner in owners}
    if "unknown" in states.values():
        return Result(UNKNOWN_KIND_AGAIN_S, "an owner's kind is not known here")
    going = {uid for uid, state in states.items() if state != "alive"}
    if going and len(going) < len(states):
        await _disown(context, node.ref, obj, going)
        return Result(note="some owners are gone")
    if not going:
        return DONE
    if "leaving" in states.values():
        return await _follow(context, node, obj)
    await delete_quietly(context.client, node.ref, obj, _policy(obj))
    return Result(note="all owners are gone")


def _policy(obj: Resource) -> Propagation:
    """What the object's own finalizers already ask for."""
    finalizers = obj["metadata"].get("finalizers") or ()
    return "Orphan" if ORPHAN in finalizers else "Foreground" if FOREGROUND in finalizers else "Background"


async def _follow(context: Context, node: Node, obj: Resource) -> Result:
    """Its owner is deleted in the foreground: so is it, if something depends on it in turn. In a circle it stops blocking."""
    below = [dependent for _, dependent in dependents(context.caches, node.uid)]
    if any(FOREGROUND in (one["metadata"].get("finalizers") or ()) for one in below if _leaving(one)):
        await _unblock(context, node, obj)
    await delete_quietly(context.client, node.ref, obj, "Foreground" if below else "Background")
    return Result(note="follows its owner")


def _leaving(obj: Resource) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


async def _state(context: Context, owner: dict[str, Any], namespace: str) -> State:
    """alive, leaving (deleted in the foreground and waiting for its dependents), gone, or of an unknown kind. A namespaced owner
    of an object without a namespace cannot be found; it counts as alive, and nothing is deleted for it."""
    info = next(
        (i for i in await context.types() if (i.ref.api_version, i.kind) == (owner["apiVersion"], owner["kind"])), None
    )
    if info is None:
        return "unknown"
    if info.namespaced and not namespace:
        return "alive"
    where = namespace if info.namespaced else ""
    found = context.caches.get(info.ref, owner["name"], where)
    if found is None or found["metadata"]["uid"] != owner["uid"]:
        try:
            found = await context.client.get(info.ref, owner["name"], where)
        except NotFound:
            return "gone"
        if found["metadata"]["uid"] != owner["uid"]:
            return "gone"
    meta = found["metadata"]
    return "leaving" if meta.get("deletionTimestamp") and FOREGROUND in (meta.get("finalizers") or ()) else "alive"


# --- writes, each guarded by what was read ----------------------------------------------------------------------


async def _disown(context: Context, ref: Ref, obj: Resource, uids: set[str]) -> None:
    owners = obj["metadata"].get("ownerReferences") or ()
    await _patch(context, ref, obj, {"ownerReferences": [o for o in owners if o["uid"] not in uids] or None})


async def _unblock(context: Context, node: Node, obj: Resource) -> None:
    owners = obj["metadata"].get("ownerReferences") or ()
    if any(owner.get("blockOwnerDeletion") for owner in owners):
        freed = [{**owner, "blockOwnerDeletion": False} for owner in owners]
        await _patch(context, node.ref, obj, {"ownerReferences": freed})


async def _drop_finalizer(context: Context, node: Node, obj: Resource, finalizer: str) -> None:
    kept = [name for name in obj["metadata"].get("finalizers") or () if name != finalizer]
    await _patch(context, node.ref, obj, {"finalizers": kept or None})


async def _patch(context: Context, ref: Ref, obj: Resource, change: dict[str, Any]) -> None:
    meta = obj["metadata"]
    guard = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
    try:
        await context.client.patch(ref, meta["name"], {"metadata": {**guard, **change}}, meta.get("namespace", ""))
    except NotFound:
        return


CONTROLLER = Controller(
    name="garbage-collector",
    summary="deletes what has lost its owners",
    watches=(),
    every_type=_watch,
    reconcile=reconcile,
    workers=4,
)
