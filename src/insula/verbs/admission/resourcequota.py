"""ResourceQuota: what a namespace may hold in all, held against what it holds at the moment of the write.

Usage is counted from the objects themselves, under a lock per namespace that lasts until the write has happened: two writers
at once cannot both take the last place. Counted are objects (`pods`, `services`, `count/deployments.apps`...), requests and
limits of pods, and the storage of claims; scopes other than Terminating, BestEffort and their opposites match nothing.
Source: kube-apiserver's plugin ResourceQuota and the evaluators behind it.
"""

from __future__ import annotations

import asyncio
from fractions import Fraction

from insula.kinds.kind import Kind
from insula.model.quantity import parse_quantity
from insula.model.resource import Ref, Resource
from insula.verbs import faults
from insula.verbs.admission.limitranger import _sum
from insula.verbs.admission.serviceaccount import PODS
from insula.verbs.request import Admission, Attempt

_QUOTAS = Ref("", "v1", "resourcequotas")
_CLAIMS = Ref("", "v1", "persistentvolumeclaims")
_COUNTED = frozenset(
    {
        "pods",
        "services",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
    }
)
Usage = dict[str, Fraction]


def usage_of(kind: Kind, obj: Resource) -> Usage:
    """What one object counts for, by the names that quotas use."""
    used: Usage = {f"count/{faults.resource_of(kind)}": Fraction(1)}
    if kind.ref.group == "" and kind.ref.plural in _COUNTED and not (kind.ref == PODS and _is_over(obj)):
        used[kind.ref.plural] = Fraction(1)
    if kind.ref == PODS and not _is_over(obj):
        for name, value in _sum(obj, "requests").items():
            used[f"requests.{name}"] = value
            used[name] = value
        for name, value in _sum(obj, "limits").items():
            used[f"limits.{name}"] = value
    elif kind.ref == _CLAIMS:
        requests = ((obj.get("spec") or {}).get("resources") or {}).get("requests") or {}
        used["requests.storage"] = parse_quantity(requests.get("storage", 0))
    elif kind.ref == Ref("", "v1", "services"):
        type_ = (obj.get("spec") or {}).get("type", "ClusterIP")
        used["services.loadbalancers"] = Fraction(type_ == "LoadBalancer")
        used["services.nodeports"] = Fraction(
            len((obj.get("spec") or {}).get("ports") or ()) if type_ in ("NodePort", "LoadBalancer") else 0
        )
    return used


def _is_over(pod: Resource) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _is_best_effort(pod: Resource) -> bool:
    return not any(name in ("cpu", "memory") for many in ("requests", "limits") for name in _sum(pod, many))


def _in_scope(quota: Resource, kind: Kind, obj: Resource) -> bool:
    scopes = (quota.get("spec") or {}).get("scopes") or []
    if not scopes:
        return not (quota.get("spec") or {}).get("scopeSelector")
    if kind.ref != PODS:
        return False
    terminating = (obj.get("spec") or {}).get("activeDeadlineSeconds") is not None
    holds = {
        "Terminating": terminating,
        "NotTerminating": not terminating,
        "BestEffort": _is_best_effort(obj),
        "NotBestEffort": not _is_best_effort(obj),
    }
    return all(holds.get(scope, False) for scope in scopes)


class ResourceQuota(Admission):
    """Refuses what would exceed a quota."""

    name = "ResourceQuota"

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._held: dict[int, asyncio.Lock] = {}

    async def validate(self, attempt: Attempt) -> None:
        """Creations, and updates that make a claim or a pod count for more."""
        if attempt.verb not in ("create", "update") or attempt.sub not in ("", "resize") or not attempt.kind.namespaced:
            return
        if attempt.verb == "update" and attempt.kind.ref not in (PODS, _CLAIMS):
            return
        if not await attempt.verbs.look_all(_QUOTAS, attempt.namespace):
            return
        lock = self._locks.setdefault(attempt.namespace, asyncio.Lock())
        await lock.acquire()
        self._held[id(attempt)] = lock
        for quota in await attempt.verbs.look_all(_QUOTAS, attempt.namespace):
            if _in_scope(quota, attempt.kind, attempt.obj):
                await self._check(attempt, quota)

    async def finish(self, attempt: Attempt) -> None:
        """Let the next writer of the namespace go on."""
        lock = self._held.pop(id(attempt), None)
        if lock is not None:
            lock.release()

    @staticmethod
    async def _check(attempt: Attempt, quota: Resource) -> None:
        hard = {name: parse_quantity(value) for name, value in ((quota.get("spec") or {}).get("hard") or {}).items()}
        wanted = usage_of(attempt.kind, attempt.obj)
        before = usage_of(attempt.kind, attempt.old) if attempt.old else {}
        more = {name: value - before.get(name, Fraction(0)) for name, value in wanted.items() if name in hard}
        _check_named(attempt, quota, hard, wanted)
        more = {name: value for name, value in more.items() if value > 0}
        if not more:
            return
        used = await _used(attempt, quota, more)
        over = sorted(name for name in more if used.get(name, Fraction(0)) + more[name] > hard[name])
        if over:
            told = [
                f"{word}: {_list(over, values)}"
                for word, values in (("requested", more), ("used", used), ("limited", hard))
            ]
            why = f"exceeded quota: {quota['metadata']['name']}, {', '.join(told)}"
            raise faults.forbidden(attempt.kind, attempt.name, why)


def _check_named(attempt: Attempt, quota: Resource, hard: Usage, wanted: Usage) -> None:
    """Where a quota bounds CPU or memory every pod must say how much it takes."""
    if attempt.kind.ref != PODS:
        return
    words = ("cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory")
    missing = sorted(name for name in words if name in hard and name not in wanted)
    if missing:
        why = f"failed quota: {quota['metadata']['name']}: must specify {','.join(missing)} for: "
        names = ",".join(one.get("name", "") for one in (attempt.obj.get("spec") or {}).get("containers") or ())
        raise faults.forbidden(attempt.kind, attempt.name, why + names)


async def _used(attempt: Attempt, quota: Resource, names: Usage) -> Usage:
    total: Usage = {}
    for obj in (await attempt.verbs.list(attempt.kind.ref, attempt.namespace)).items:
        if _in_scope(quota, attempt.kind, obj):
            for name, value in usage_of(attempt.kind, obj).items():
                if name in names:
                    total[name] = total.get(name, Fraction(0)) + value
    return total


def _list(names: list[str], values: Usage) -> str:
    return ",".join(f"{name}={_number(values.get(name, Fraction(0)))}" for name in names)


def _number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{-(-value.numerator * 1000 // value.denominator)}m"
