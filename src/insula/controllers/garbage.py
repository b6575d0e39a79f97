"""Garbage collection by owner references, as the Kubernetes documentation describes it.

    Background   the owner goes at once; its dependents are deleted when no owner of theirs is left
    Foreground   the owner waits (finalizer `foregroundDeletion`) until the dependents that block it are gone
    Orphan       the dependents lose the reference first (finalizer `orphan`), then the owner goes

An owner counts as gone only when the API itself says so (not found, or another uid under that name), never by a cache alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from msgspec import Struct

from insula.client.contract import Client
from insula.control.controller import DONE, Caches, Context, Controller, Keys, Result, TypeInfo
from insula.controllers.common import delete_quietly, each
from insula.errors import NotFound
from insula.model.resource import Ref, Resource

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"


class Node(Struct, frozen=True):
    """One object to look at."""

    ref: Ref
    namespace: str
    name: str
    uid: str


def _keys(info: TypeInfo) -> Keys:
    """Wake an object that has owners or that waits for its dependents; wake a removed object's dependents."""

    def keys(obj: Resource, caches: Caches) -> Iterable[Hashable]:
        meta = obj["metadata"]
        namespace = meta.get("namespace", "")
        if meta.get("ownerReferences") or meta.get("deletionTimestamp"):
            yield Node(info.ref, namespace, meta["name"], meta["uid"])
        for owner in meta.get("ownerReferences") or ():
            yield from _node_of(owner, namespace, caches)
        if caches.get(info.ref, meta["name"], namespace) is None:
            for ref, dependent in dependents(caches, meta["uid"]):
                found = dependent["metadata"]
                yield Node(ref, found.get("namespace", ""), found["name"], found["uid"])

    return keys


def _node_of(owner: dict[str, Any], namespace: str, caches: Caches) -> Iterable[Node]:
    """The owner itself, when it waits for this dependent."""
    for ref in caches.refs:
        obj = caches.get(ref, owner["name"], namespace) or caches.get(ref, owner["name"])
        if obj and obj["metadata"]["uid"] == owner["uid"] and obj["metadata"].get("deletionTimestamp"):
            yield Node(ref, obj["metadata"].get("namespace", ""), owner["name"], owner["uid"])


def dependents(caches: Caches, uid: str) -> list[tuple[Ref, Resource]]:
    """Every object that names the uid among its owners."""
    return [(ref, obj) for ref in caches.refs for obj in caches.owned(ref, uid)]


async def reconcile(context: Context, node: Node) -> Result:
    """Look at one object: as an owner that waits, then as a dependent."""
    obj = context.caches.get(node.ref, node.name, node.namespace)
    if obj is None or obj["metadata"]["uid"] != node.uid:
        return DONE
    finalizers = obj["metadata"].get("finalizers") or ()
    if obj["metadata"].get("deletionTimestamp"):
        if ORPHAN in finalizers:
            return await _orphan(context, node, obj)
        if FOREGROUND in finalizers:
            return await _foreground(context, node, obj)
        return DONE
    return await _collect(context, node, obj)


async def _orphan(context: Context, node: Node, obj: Resource) -> Result:
    found = dependents(context.caches, node.uid)
    await each((_disown(context.client, ref, dependent, {node.uid}) for ref, dependent in found), "orphaning")
    await _drop_finalizer(context.client, node, obj, ORPHAN)
    return Result(note=f"orphaned {len(found)}")


async def _foreground(context: Context, node: Node, obj: Resource) -> Result:
    found = dependents(context.caches, node.uid)
    waiting = [(ref, dependent) for ref, dependent in found if not dependent["metadata"].get("deletionTimestamp")]
    await each((delete_quietly(context.client, ref, dependent) for ref, dependent in waiting), "dependents")
    if not any(_blocks(dependent, node.uid) for _, dependent in found):
        await _drop_finalizer(context.client, node, obj, FOREGROUND)
        return DONE
    return Result(1.0, f"waits for {len(found)} dependents")


def _blocks(dependent: Resource, uid: str) -> bool:
    owners = dependent["metadata"].get("ownerReferences") or ()
    return any(owner["uid"] == uid and owner.get("blockOwnerDeletion") for owner in owners)


async def _collect(context: Context, node: Node, obj: Resource) -> Result:
    owners = obj["metadata"].get("ownerReferences") or ()
    if not owners:
        return DONE
    kinds = {(info.ref.api_version, info.kind): info for info in await context.types()}
    gone, alive, leaving = set(), False, False
    for owner in owners:
        info = kinds.get((owner["apiVersion"], owner["kind"]))
        if info is None:
            return Result(30.0, f"owner of unknown kind {owner['kind']}")
        state = await _state(context, info, owner, node.namespace)
        if state == "gone":
            gone.add(owner["uid"])
        elif state == "leaving":
            leaving = True
        else:
            alive = True
    if gone and not alive and not leaving:
        await delete_quietly(context.client, node.ref, obj)
        return Result(note="all owners are gone")
    if gone and alive:
        await _disown(context.client, node.ref, obj, gone)
    return DONE


async def _state(context: Context, info: TypeInfo, owner: dict[str, Any], namespace: str) -> str:
    """alive, leaving (deleted in the foreground and waiting for this dependent), or gone."""
    where = namespace if info.namespaced else ""
    cached = context.caches.get(info.ref, owner["name"], where)
    if cached is None or cached["metadata"]["uid"] != owner["uid"]:
        try:
            cached = await context.client.get(info.ref, owner["name"], where)
        except NotFound:
            return "gone"
        if cached["metadata"]["uid"] != owner["uid"]:
            return "gone"
    meta = cached["metadata"]
    return "leaving" if meta.get("deletionTimestamp") and FOREGROUND in (meta.get("finalizers") or ()) else "alive"


async def _disown(client: Client, ref: Ref, obj: Resource, uids: set[str]) -> None:
    meta = obj["metadata"]
    kept = [owner for owner in meta.get("ownerReferences") or () if owner["uid"] not in uids]
    patch = {
        "metadata": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"], "ownerReferences": kept or None}
    }
    try:
        await client.patch(ref, meta["name"], patch, meta.get("namespace", ""))
    except NotFound:
        return


async def _drop_finalizer(client: Client, node: Node, obj: Resource, finalizer: str) -> None:
    meta = obj["metadata"]
    kept = [name for name in meta.get("finalizers") or () if name != finalizer]
    patch = {"metadata": {"uid": node.uid, "resourceVersion": meta["resourceVersion"], "finalizers": kept or None}}
    try:
        await client.patch(node.ref, node.name, patch, node.namespace)
    except NotFound:
        return


CONTROLLER = Controller(
    name="garbage-collector",
    summary="deletes what has lost its owners",
    watches=(),
    every_type=_keys,
    reconcile=reconcile,
    workers=4,
)
