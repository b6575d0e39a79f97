"""What several controllers say in the same way: owner references, conditions, pod readiness, status writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

from insula.client.contract import Client
from insula.errors import NotFound, gather
from insula.model.resource import Ref, Resource


def owner_reference(owner: Resource) -> dict[str, Any]:
    """A reference that makes `owner` the controller of an object."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def condition(obj: Resource, type_: str) -> dict[str, Any] | None:
    """One condition of a status, or None."""
    for found in (obj.get("status") or {}).get("conditions") or ():
        if found["type"] == type_:
            result: dict[str, Any] = found
            return result
    return None


def is_true(obj: Resource, type_: str) -> bool:
    """Whether a condition is there and True."""
    found = condition(obj, type_)
    return found is not None and found["status"] == "True"


def is_active(pod: Resource) -> bool:
    """A pod that still counts: neither ended nor being deleted."""
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return not ended and not pod["metadata"].get("deletionTimestamp")


def with_condition(
    conditions: Iterable[dict[str, Any]], type_: str, status: str, reason: str, message: str, now: str, **extra: str
) -> list[dict[str, Any]]:
    """Conditions with one set, at its place; its transition time moves only when its status does. Everything else is kept."""
    result = list(conditions)
    place = next((number for number, found in enumerate(result) if found["type"] == type_), len(result))
    old = result[place] if place < len(result) else None
    same = old is not None and old["status"] == status
    since = old["lastTransitionTime"] if old is not None and same and "lastTransitionTime" in old else now
    fresh = {
        "type": type_,
        "status": status,
        "lastTransitionTime": since,
        "reason": reason,
        "message": message,
        **extra,
    }
    if old is not None and all(old.get(k) == v for k, v in fresh.items() if k != "lastUpdateTime"):
        fresh = old
    result[place : place + 1] = [fresh]
    return result


async def write_status(client: Client, ref: Ref, obj: Resource, status: dict[str, Any]) -> bool:
    """Write a status if it differs from the one seen. Guarded by the revision that was read. Says whether it wrote."""
    if obj.get("status") == status:
        return False
    meta = obj["metadata"]
    await client.update(ref, {**obj, "status": status}, meta.get("namespace", ""), sub="status")
    return True


Propagation = Literal["Background", "Foreground", "Orphan"]


async def delete_quietly(
    client: Client, ref: Ref, obj: Resource, propagation: Propagation | None = "Background"
) -> None:
    """Delete exactly this object (by uid); one that is gone already is fine."""
    meta = obj["metadata"]
    try:
        await client.delete(ref, meta["name"], meta.get("namespace", ""), uid=meta["uid"], propagation=propagation)
    except NotFound:
        return


async def each(work: Iterable[Awaitable[Any]], what: str) -> None:
    """Do all of it side by side, then raise what failed."""
    results = await asyncio.gather(*work, return_exceptions=True)
    gather(what, [result for result in results if isinstance(result, BaseException)])


async def slow_start(count: int, make: Callable[[], Awaitable[None]]) -> None:
    """Make `count` things, one, then two, four and so on at a time, so that a quota that refuses the first is not asked a
    hundred times. Raises what failed in the first batch that did."""
    batch = 1
    while count > 0:
        now = min(batch, count)
        await each([make() for _ in range(now)], "creations")
        count, batch = count - now, batch * 2
