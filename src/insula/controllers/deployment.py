"""Deployment: rolls a set of pods from one template to the next, one ReplicaSet per template. `plan` decides, `reconcile` acts.

Behaviour follows the Kubernetes documentation of Deployment: revisions and the pod-template-hash label, maxSurge rounded up and
maxUnavailable rounded down, proportional scaling left to the next pass, Recreate, pause, rollback by re-applying an older
template, progressDeadlineSeconds and revisionHistoryLimit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from insula import clock
from insula.control.controller import DONE, Context, Controller, Result, Watch, controlled_by, controller_of
from insula.controllers.common import (
    condition,
    delete_quietly,
    each,
    owner_reference,
    record,
    with_condition,
    write_status,
)
from insula.controllers.refs import DEPLOYMENTS, REPLICA_SETS
from insula.errors import AlreadyExists
from insula.model.resource import Key, Resource

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAX = "deployment.kubernetes.io/max-replicas"
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # upstream's safe alphabet: no vowels, so no words


def template_hash(template: Resource) -> str:
    """A short name for a pod template. Equal templates get equal names."""
    plain = msgspec.json.encode(_without_hash(template), order="deterministic")
    number = int.from_bytes(hashlib.blake2b(plain, digest_size=6).digest())
    letters = []
    for _ in range(10):
        number, rest = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[rest])
    return "".join(letters)


def _without_hash(template: Resource) -> Resource:
    meta = dict(template.get("metadata") or {})
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if k != HASH_LABEL}
    meta.pop("creationTimestamp", None)
    meta.pop("labels", None)
    if labels:
        meta["labels"] = labels
    return {"metadata": meta, "spec": template.get("spec") or {}}


def newest(deployment: Resource, sets: Sequence[Resource]) -> Resource | None:
    """The set that has the deployment's present template; the oldest one, should there be two."""
    wanted = _without_hash(deployment["spec"]["template"])
    same = [rs for rs in sets if _without_hash(rs["spec"]["template"]) == wanted]
    return min(same, key=lambda rs: rs["metadata"]["creationTimestamp"]) if same else None


def limits(deployment: Resource) -> tuple[int, int]:
    """(most pods in all, fewest available pods) during a rolling update."""
    replicas = wanted_replicas(deployment)
    rolling = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    surge = _share(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = _share(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return replicas + surge, replicas - min(unavailable, replicas)


def _share(value: Any, total: int, *, up: bool) -> int:
    if isinstance(value, str) and value.endswith("%"):
        exact = int(value[:-1]) * total / 100
        return math.ceil(exact) if up else math.floor(exact)
    return int(value)


def wanted_replicas(deployment: Resource) -> int:
    """How many pods the deployment asks for."""
    return int(deployment["spec"].get("replicas", 1))


class Scaling(Struct, frozen=True):
    """A set and the number of replicas it should be given now."""

    replicas: Resource
    to: int


def plan(deployment: Resource, new: Resource, old: Sequence[Resource]) -> list[Scaling]:
    """The next step of a rollout: which sets to scale."""
    if deployment["spec"].get("paused"):
        return _proportional(deployment, new, old)
    if (deployment["spec"].get("strategy") or {}).get("type") == "Recreate":
        return _recreate(deployment, new, old)
    return _rolling(deployment, new, old)


def _proportional(deployment: Resource, new: Resource, old: Sequence[Resource]) -> list[Scaling]:
    """While paused only the size follows; it is given to the newest set that has pods, else to the new one."""
    having = [rs for rs in (new, *old) if _size(rs) > 0] or [new]
    difference = wanted_replicas(deployment) - sum(_size(rs) for rs in having)
    return [Scaling(having[0], max(_size(having[0]) + difference, 0))] if difference else []


def _recreate(deployment: Resource, new: Resource, old: Sequence[Resource]) -> list[Scaling]:
    shrinking = [Scaling(rs, 0) for rs in old if _size(rs) > 0]
    if shrinking or any(_now(rs, "replicas") for rs in old):
        return shrinking
    wanted = wanted_replicas(deployment)
    return [Scaling(new, wanted)] if _size(new) != wanted else []


def _rolling(deployment: Resource, new: Resource, old: Sequence[Resource]) -> list[Scaling]:
    wanted = wanted_replicas(deployment)
    most, fewest = limits(deployment)
    total = _size(new) + sum(_size(rs) for rs in old)
    if _size(new) > wanted:
        return [Scaling(new, wanted)]
    if _size(new) < wanted and (room := min(most - total, wanted - _size(new))) > 0:
        return [Scaling(new, _size(new) + room)]
    return _shrink(old, new, total, fewest)


def _shrink(old: Sequence[Resource], new: Resource, total: int, fewest: int) -> list[Scaling]:
    """Give up old pods: first those that are not available anyway, then as many as availability allows."""
    missing_new = _size(new) - _now(new, "availableReplicas")
    spare = total - fewest - missing_new
    steps: dict[str, Scaling] = {}
    for healthy in (False, True):
        for rs in sorted(old, key=lambda rs: rs["metadata"]["creationTimestamp"]):
            size = steps[rs["metadata"]["name"]].to if rs["metadata"]["name"] in steps else _size(rs)
            sick = max(size - _now(rs, "availableReplicas"), 0)
            cut = min(size if healthy else sick, max(spare, 0))
            if cut:
                steps[rs["metadata"]["name"]] = Scaling(rs, size - cut)
                spare -= cut
    return list(steps.values())


def _size(replicas: Resource) -> int:
    return int(replicas["spec"].get("replicas", 1))


def _now(replicas: Resource, name: str) -> int:
    return int((replicas.get("status") or {}).get(name, 0))


def revision_of(replicas: Resource) -> int:
    """The rollout revision noted on a set."""
    return int((replicas["metadata"].get("annotations") or {}).get(REVISION, 0))


def set_of(deployment: Resource, revision: int) -> Resource:
    """A new ReplicaSet for the present template, with no replicas yet."""
    meta, spec = deployment["metadata"], deployment["spec"]
    name = template_hash(spec["template"])
    template = msgspec.json.decode(msgspec.json.encode(spec["template"]))
    labels = template.setdefault("metadata", {}).setdefault("labels", {})
    labels[HASH_LABEL] = name
    selector = {**spec["selector"], "matchLabels": {**(spec["selector"].get("matchLabels") or {}), HASH_LABEL: name}}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{meta['name']}-{name}",
            "labels": dict(labels),
            "annotations": {**_copied(meta), REVISION: str(revision), **_bounds(deployment)},
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": {
            "replicas": 0,
            "minReadySeconds": int(spec.get("minReadySeconds", 0)),
            "selector": selector,
            "template": template,
        },
    }


def _copied(meta: Resource) -> dict[str, str]:
    skipped = ("kubectl.kubernetes.io/last-applied-configuration", REVISION, DESIRED, MAX)
    return {k: v for k, v in (meta.get("annotations") or {}).items() if k not in skipped}


def _bounds(deployment: Resource) -> dict[str, str]:
    return {DESIRED: str(wanted_replicas(deployment)), MAX: str(limits(deployment)[0])}


def status_of(deployment: Resource, new: Resource | None, sets: Sequence[Resource], now: str) -> dict[str, Any]:
    """The status that the sets amount to, with Available and Progressing."""
    old = deployment.get("status") or {}
    wanted = wanted_replicas(deployment)
    total, available = (sum(_now(rs, name) for rs in sets) for name in ("replicas", "availableReplicas"))
    status: dict[str, Any] = {
        "observedGeneration": deployment["metadata"].get("generation", 1),
        "replicas": total,
        "updatedReplicas": _now(new, "replicas") if new else 0,
        "readyReplicas": sum(_now(rs, "readyReplicas") for rs in sets),
        "availableReplicas": available,
        "unavailableReplicas": max(sum(_size(rs) for rs in sets) - available, 0),
    }
    status = {k: v for k, v in status.items() if v or k == "observedGeneration"}
    conditions = list(old.get("conditions") or ())
    enough = available >= limits(deployment)[1]
    conditions = with_condition(
        conditions,
        "Available",
        "True" if enough else "False",
        "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
        f"Deployment {'has' if enough else 'does not have'} minimum availability.",
        now,
        lastUpdateTime=now,
    )
    status["conditions"] = _progress(deployment, new, status, old, conditions, wanted, now)
    if "collisionCount" in old:
        status["collisionCount"] = old["collisionCount"]
    return status


def _progress(
    deployment: Resource,
    new: Resource | None,
    status: dict[str, Any],
    old: dict[str, Any],
    conditions: list[dict[str, Any]],
    wanted: int,
    now: str,
) -> list[dict[str, Any]]:
    if deployment["spec"].get("paused"):
        return with_condition(
            conditions, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", now, lastUpdateTime=now
        )
    if new is None:
        return conditions
    name = new["metadata"]["name"]
    if complete(status, wanted):
        text = f'ReplicaSet "{name}" has successfully progressed.'
        return with_condition(
            conditions, "Progressing", "True", "NewReplicaSetAvailable", text, now, lastUpdateTime=now
        )
    if overdue(deployment, now) and not _moved(status, old):
        text = f'ReplicaSet "{name}" has timed out progressing.'
        return with_condition(
            conditions, "Progressing", "False", "ProgressDeadlineExceeded", text, now, lastUpdateTime=now
        )
    found = condition(deployment, "Progressing")
    if _moved(status, old) or found is None or found["reason"] in ("NewReplicaSetAvailable", "DeploymentPaused"):
        conditions = [item for item in conditions if item["type"] != "Progressing"]
        text = f'ReplicaSet "{name}" is progressing.'
        return with_condition(conditions, "Progressing", "True", "ReplicaSetUpdated", text, now, lastUpdateTime=now)
    return conditions


def complete(status: dict[str, Any], wanted: int) -> bool:
    """Whether a rollout is over: all pods are of the new template and available."""
    counts = (status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas"))
    return all(count == wanted for count in counts)


def _moved(status: dict[str, Any], old: dict[str, Any]) -> bool:
    names = ("updatedReplicas", "readyReplicas", "availableReplicas", "replicas")
    return any(status.get(name, 0) != old.get(name, 0) for name in names)


def overdue(deployment: Resource, now: str) -> bool:
    """Whether nothing has moved for progressDeadlineSeconds."""
    found = condition(deployment, "Progressing")
    if found is None or found["reason"] in ("NewReplicaSetAvailable", "DeploymentPaused"):
        return False
    since = clock.parse_rfc3339(found.get("lastUpdateTime") or found["lastTransitionTime"])
    limit_s = int(deployment["spec"].get("progressDeadlineSeconds", 600))
    return (clock.parse_rfc3339(now) - since).total_seconds() >= limit_s


async def reconcile(context: Context, key: Key) -> Result:
    """Make sure that the set for the present template is there, scale one step, write the status, drop old history."""
    deployment = context.caches.get(DEPLOYMENTS, key.name, key.namespace)
    if deployment is None or deployment["metadata"].get("deletionTimestamp"):
        return DONE
    uid = deployment["metadata"]["uid"]
    sets = [rs for rs in context.caches.owned(REPLICA_SETS, uid) if (controller_of(rs) or {}).get("uid") == uid]
    if not context.expectations.met(uid, sets):
        return DONE
    new = newest(deployment, sets)
    old = sorted((rs for rs in sets if rs is not new), key=revision_of, reverse=True)
    if new is None and not deployment["spec"].get("paused"):
        new = await _make(context, deployment, old)
        sets = [*sets, new]
    if new is not None:
        new = await _annotate(context, deployment, new, old)
        sets = [new, *old]
        await _scale(context, deployment, plan(deployment, new, old))
    deployment = await _note_revision(context, deployment, new)
    status = status_of(deployment, new, sets, clock.rfc3339(clock.now()))
    await write_status(context.client, DEPLOYMENTS, deployment, status)
    if new is not None and complete(status, wanted_replicas(deployment)):
        await _clean(context, deployment, old)
        return DONE
    return Result(float(deployment["spec"].get("progressDeadlineSeconds", 600)))


async def _make(context: Context, deployment: Resource, old: Sequence[Resource]) -> Resource:
    revision = max((revision_of(rs) for rs in old), default=0) + 1
    wish = set_of(deployment, revision)
    namespace = deployment["metadata"]["namespace"]
    try:
        made = await context.client.create(REPLICA_SETS, wish, namespace)
    except AlreadyExists:
        made = await context.client.get(REPLICA_SETS, wish["metadata"]["name"], namespace)
        if (controller_of(made) or {}).get("uid") != deployment["metadata"]["uid"]:
            raise
    context.expectations.created(deployment["metadata"]["uid"], made["metadata"]["uid"])
    return made


async def _annotate(context: Context, deployment: Resource, new: Resource, old: Sequence[Resource]) -> Resource:
    """A set that becomes new again (a rollback) gets the next revision; the bounds follow the deployment."""
    revision = max(revision_of(new), max((revision_of(rs) for rs in old), default=0) + 1)
    wanted = {REVISION: str(revision), **_bounds(deployment)}
    have = new["metadata"].get("annotations") or {}
    if all(have.get(name) == value for name, value in wanted.items()):
        return new
    meta = new["metadata"]
    return await context.client.patch(
        REPLICA_SETS, meta["name"], {"metadata": {"annotations": wanted}}, meta["namespace"]
    )


async def _note_revision(context: Context, deployment: Resource, new: Resource | None) -> Resource:
    meta = deployment["metadata"]
    if new is None or (meta.get("annotations") or {}).get(REVISION) == str(revision_of(new)):
        return deployment
    patch = {"metadata": {"annotations": {REVISION: str(revision_of(new))}}}
    return await context.client.patch(DEPLOYMENTS, meta["name"], patch, meta["namespace"])


async def _scale(context: Context, deployment: Resource, steps: Sequence[Scaling]) -> None:
    async def one(step: Scaling) -> None:
        meta, before = step.replicas["metadata"], _size(step.replicas)
        patch = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "spec": {"replicas": step.to}}
        await context.client.patch(REPLICA_SETS, meta["name"], patch, meta["namespace"])
        verb = "up" if step.to > before else "down"
        text = f"Scaled {verb} replica set {meta['name']} from {before} to {step.to}"
        await record(context.client, deployment, "ScalingReplicaSet", text, source=CONTROLLER.name)

    await each((one(step) for step in steps), "scaling of replica sets")


async def _clean(context: Context, deployment: Resource, old: Sequence[Resource]) -> None:
    keep = int(deployment["spec"].get("revisionHistoryLimit", 10))
    idle = [
        rs for rs in old if _size(rs) == 0 and _now(rs, "replicas") == 0 and not rs["metadata"].get("deletionTimestamp")
    ]
    surplus = sorted(idle, key=revision_of, reverse=True)[keep:]
    await each((delete_quietly(context.client, REPLICA_SETS, rs) for rs in surplus), "old replica sets")


CONTROLLER = Controller(
    name="deployment-controller",
    summary="rolls a Deployment from one template to the next",
    watches=(Watch(ref=DEPLOYMENTS), Watch(ref=REPLICA_SETS, keys=controlled_by("Deployment"))),
    reconcile=reconcile,
    workers=4,
)
