"""What several controllers say in the same way: owner references, conditions, pod readiness, status writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

from insula import clock
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
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed") and not pod["metadata"].get(
        "deletionTimestamp"
    )


def with_condition(
    conditions: Iterable[dict[str, Any]], type_: str, status: str, reason: str, message: str, now: str, **extra: str
) -> list[dict[str, Any]]:
    """Conditions with one set; its transition time moves only when its status does. Everything else is kept."""
    rest, old = [], None
    for found in conditions:
        if found["type"] == type_:
            old = found
        else:
            rest.append(found)
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
    return [*rest, fresh]


async def write_status(client: Client, ref: Ref, obj: Resource, status: dict[str, Any]) -> bool:
    """Write a status if it differs from the one seen. Guarded by the revision that was read. Says whether it wrote."""
    if obj.get("status") == status:
        return False
    meta = obj["metadata"]
    await client.update(ref, {**obj, "status": status}, meta.get("namespace", ""), sub="status")
    return True


async def delete_quietly(client: Client, ref: Ref, obj: Resource) -> None:
    """Delete exactly this object (by uid); one that is gone already is fine."""
    meta = obj["metadata"]
    try:
        await client.delete(ref, meta["name"], meta.get("namespace", ""), uid=meta["uid"], propagation="Background")
    except NotFound:
        return


async def each(work: Iterable[Awaitable[Any]], what: str) -> None:
    """Do all of it side by side, then raise what failed."""
    results = await asyncio.gather(*work, return_exceptions=True)
    gather(what, [result for result in results if isinstance(result, BaseException)])


async def record(
    client: Client, obj: Resource, reason: str, message: str, *, kind: str = "Normal", source: str
) -> None:
    """Write an Event about an object (core/v1, as `kubectl describe` reads it)."""
    meta = obj["metadata"]
    namespace = meta.get("namespace") or "default"
    now = clock.rfc3339(clock.now())
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{meta['name'][:200]}.", "namespace": namespace},
        "involvedObject": {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "name": meta["name"],
            "namespace": meta.get("namespace", ""),
            "uid": meta.get("uid", ""),
            "resourceVersion": meta.get("resourceVersion", ""),
        },
        "reason": reason,
        "message": message,
        "type": kind,
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": source},
        "reportingComponent": source,
        "reportingInstance": "",
    }
    await client.create(Ref("", "v1", "events"), event, namespace)
