"""What a deletion does to an object, decided without touching the store.

An object goes at once, or it is marked with deletionTimestamp and goes when the last of its finalizers is removed and its
grace period is over (pods: the agent ends it with a second deletion of zero grace). Source: kube-apiserver `BeforeDelete`.
"""

from __future__ import annotations

from datetime import timedelta

from msgspec import Struct

from insula import clock
from insula.errors import Invalid
from insula.kinds.kind import Kind
from insula.model.resource import Resource
from insula.verbs import faults
from insula.verbs.request import DeleteOptions, Preconditions

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_ORPHANED_BY_DEFAULT = {("", "replicationcontrollers"), ("batch", "jobs")}
JOB_WARNING = (
    "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set "
    "propagationPolicy=Orphan to suppress this warning"
)


class Deletion(Struct, frozen=True):
    """`marked` is the object as it is to be stored, None when it is to be removed now. `unchanged`: nothing to write."""

    marked: Resource | None
    unchanged: bool = False


def check_preconditions(kind: Kind, obj: Resource, asked: Preconditions) -> None:
    """Raise StaleRevision where the object is not the one that the client means."""
    meta = obj["metadata"]
    if asked.uid and asked.uid != meta.get("uid"):
        why = f"Precondition failed: UID in precondition: {asked.uid}, UID in object meta: {meta.get('uid')}"
        raise faults.stale(kind, meta["name"], why)
    if asked.revision and asked.revision != meta.get("resourceVersion"):
        why = (
            f"Precondition failed: ResourceVersion in precondition: {asked.revision}, ResourceVersion in object meta: "
            f"{meta.get('resourceVersion')}"
        )
        raise faults.stale(kind, meta["name"], why)


def _is(kind: Kind, plural: str) -> bool:
    return kind.ref.group == "" and kind.ref.plural == plural


def grace_of(kind: Kind, obj: Resource, options: DeleteOptions) -> int:
    """Seconds that the object has to end by itself; 0 for all but pods that a node runs."""
    if not _is(kind, "pods"):
        return 0
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    asked = options.grace_s
    if asked is None:
        asked = spec.get("terminationGracePeriodSeconds", 30)
    return 1 if asked < 0 else int(asked)


def finalizers_after(kind: Kind, obj: Resource, options: DeleteOptions) -> list[str]:
    """The finalizers with those that the propagation policy asks for."""
    have = list(obj["metadata"].get("finalizers") or ())
    policy = options.propagation
    if policy is None:
        if FOREGROUND in have or ORPHAN in have:
            return have
        if (kind.ref.group, kind.ref.plural) not in _ORPHANED_BY_DEFAULT:
            return have
        policy = "Orphan"
    kept = [one for one in have if one not in (FOREGROUND, ORPHAN)]
    wanted = {"Foreground": [FOREGROUND], "Orphan": [ORPHAN]}.get(policy, [])
    return kept + wanted


def plan(kind: Kind, obj: Resource, options: DeleteOptions) -> Deletion:
    """Decide on a deletion of `obj`, which may be changed. Raises Invalid, StaleRevision."""
    check_preconditions(kind, obj, options.preconditions)
    if options.propagation not in (None, "Background", "Foreground", "Orphan"):
        raise Invalid(
            f'propagationPolicy: Unsupported value: "{options.propagation}": supported values: "Background", "Foreground", '
            '"Orphan"',
            field="propagationPolicy",
        )
    meta = obj["metadata"]
    before = (meta.get("deletionTimestamp"), meta.get("deletionGracePeriodSeconds"), list(meta.get("finalizers") or ()))
    grace = grace_of(kind, obj, options)
    finalizers = finalizers_after(kind, obj, options)
    held = bool(finalizers) or (_is(kind, "namespaces") and bool((obj.get("spec") or {}).get("finalizers")))
    left = meta.get("deletionGracePeriodSeconds")
    if meta.get("deletionTimestamp") and left is not None:
        grace = min(grace, int(left))
    if grace == 0 and not held:
        return Deletion(None)
    _mark(kind, obj, grace, finalizers)
    after = (meta["deletionTimestamp"], meta["deletionGracePeriodSeconds"], list(meta.get("finalizers") or ()))
    return Deletion(obj, unchanged=after == before)


def _mark(kind: Kind, obj: Resource, grace_s: int, finalizers: list[str]) -> None:
    meta = obj["metadata"]
    if finalizers:
        meta["finalizers"] = finalizers
    else:
        meta.pop("finalizers", None)
    first = not meta.get("deletionTimestamp")
    if first or grace_s < int(meta.get("deletionGracePeriodSeconds") or 0):
        meta["deletionTimestamp"] = clock.rfc3339(clock.now() + timedelta(seconds=grace_s))
        meta["deletionGracePeriodSeconds"] = grace_s
    meta.setdefault("deletionGracePeriodSeconds", 0)
    if first and meta.get("generation"):
        meta["generation"] += 1
    if first and _is(kind, "namespaces"):
        obj.setdefault("status", {})["phase"] = "Terminating"


def is_over(kind: Kind, obj: Resource) -> bool:
    """Whether an object that was marked has nothing left to wait for."""
    meta = obj["metadata"]
    if not meta.get("deletionTimestamp") or meta.get("finalizers") or meta.get("deletionGracePeriodSeconds"):
        return False
    return not (_is(kind, "namespaces") and (obj.get("spec") or {}).get("finalizers"))
