"""The status of a Deployment: counts, and the conditions Available, Progressing and ReplicaFailure. Pure; upstream's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from insula import clock
from insula.controllers.common import condition, with_condition
from insula.controllers.rollout import counted, limits, size_of, wanted_replicas
from insula.model.resource import Resource

DONE, PAUSED, RESUMED = "NewReplicaSetAvailable", "DeploymentPaused", "DeploymentResumed"
OVERDUE = "ProgressDeadlineExceeded"


def status_of(deployment: Resource, new: Resource | None, sets: Sequence[Resource], now: str) -> dict[str, Any]:
    """The status that the sets amount to."""
    old = deployment.get("status") or {}
    available = sum(counted(rs, "availableReplicas") for rs in sets)
    status: dict[str, Any] = {
        "observedGeneration": deployment["metadata"].get("generation", 1),
        "replicas": sum(counted(rs, "replicas") for rs in sets),
        "updatedReplicas": counted(new, "replicas") if new else 0,
        "readyReplicas": sum(counted(rs, "readyReplicas") for rs in sets),
        "availableReplicas": available,
        "unavailableReplicas": max(sum(size_of(rs) for rs in sets) - available, 0),
        "collisionCount": old.get("collisionCount", 0),
    }
    status = {name: value for name, value in status.items() if value or name == "observedGeneration"}
    conditions = _available(deployment, available, old.get("conditions") or (), now)
    conditions = _progressing(deployment, new, status, conditions, now)
    status["conditions"] = _failing(conditions, new, sets, now)
    return status


def _available(deployment: Resource, available: int, conditions: Sequence[Any], now: str) -> list[dict[str, Any]]:
    enough = available >= limits(deployment)[1]
    return with_condition(
        conditions,
        "Available",
        "True" if enough else "False",
        "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
        f"Deployment {'has' if enough else 'does not have'} minimum availability.",
        now,
        lastUpdateTime=now,
    )


def _progressing(
    deployment: Resource, new: Resource | None, status: dict[str, Any], conditions: list[dict[str, Any]], now: str
) -> list[dict[str, Any]]:
    """Where a rollout stands. One that came to its end stays so, whatever becomes of its pods later."""

    def said(truth: str, reason: str, text: str) -> list[dict[str, Any]]:
        return with_condition(conditions, "Progressing", truth, reason, text, now, lastUpdateTime=now)

    found = condition(deployment, "Progressing")
    reason = found["reason"] if found else ""
    if deployment["spec"].get("paused"):
        return said("Unknown", PAUSED, "Deployment is paused") if reason != OVERDUE else conditions
    if reason == PAUSED:
        return said("Unknown", RESUMED, "Deployment is resumed")
    if new is None:
        return conditions
    name, old = new["metadata"]["name"], deployment.get("status") or {}
    if reason == DONE and status.get("replicas", 0) == status.get("updatedReplicas", 0) and _same_set(found, name):
        return conditions
    if complete(deployment, status):
        return said("True", DONE, f'ReplicaSet "{name}" has successfully progressed.')
    if found is None or reason in (DONE, RESUMED) or _moved(status, old):
        moving = said("True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.')
        return [{**one, "lastUpdateTime": now} if one["type"] == "Progressing" else one for one in moving]
    if left_s(deployment, now) == 0:
        return said("False", OVERDUE, f'ReplicaSet "{name}" has timed out progressing.')
    return conditions


def _same_set(found: dict[str, Any] | None, name: str) -> bool:
    return found is not None and f'"{name}"' in found.get("message", "")


def _failing(
    conditions: list[dict[str, Any]], new: Resource | None, sets: Sequence[Resource], now: str
) -> list[dict[str, Any]]:
    """ReplicaFailure of the new set, or of any."""
    for rs in ([new] if new else []) + list(sets):
        found = condition(rs, "ReplicaFailure")
        if found is not None:
            words = found.get("reason", ""), found.get("message", "")
            return with_condition(conditions, "ReplicaFailure", found["status"], *words, now, lastUpdateTime=now)
    return [item for item in conditions if item["type"] != "ReplicaFailure"]


def complete(deployment: Resource, status: dict[str, Any]) -> bool:
    """Whether a rollout is over: all pods are of the new template and available."""
    wanted = wanted_replicas(deployment)
    counts = (status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas"))
    return all(count == wanted for count in counts)


def _moved(status: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether something has got on since the last status: more new, ready or available pods, or fewer old ones."""

    def now_and_then(name: str) -> tuple[int, int]:
        return int(status.get(name, 0)), int(old.get(name, 0))

    (new, new_then), (total, total_then) = now_and_then("updatedReplicas"), now_and_then("replicas")
    grown = any(now > then for now, then in map(now_and_then, ("readyReplicas", "availableReplicas")))
    return new > new_then or total - new < total_then - new_then or grown


def left_s(deployment: Resource, now: str) -> float | None:
    """Seconds until a rollout that does not move is overdue, 0 when it has become so; None when none is under way or when it
    was said already."""
    found = condition(deployment, "Progressing")
    limit = deployment["spec"].get("progressDeadlineSeconds")
    settled = found is None or found["reason"] in (DONE, PAUSED, OVERDUE)
    if found is None or settled or limit is None or deployment["spec"].get("paused"):
        return None
    since = clock.parse_rfc3339(found.get("lastUpdateTime") or found["lastTransitionTime"])
    return max(int(limit) - (clock.parse_rfc3339(now) - since).total_seconds(), 0.0)
