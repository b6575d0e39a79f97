"""Deployment: rolls a set of pods from one template to the next, one ReplicaSet per template. `rollout` decides, this acts.

Behaviour follows the Kubernetes documentation of Deployment: revisions and the pod-template-hash label, rolling updates and
Recreate, pause, rollback by re-applying an older template, progressDeadlineSeconds and revisionHistoryLimit.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from insula import clock
from insula.control.controller import (
    DONE,
    Caches,
    Context,
    Controller,
    Result,
    Watch,
    controlled_or_wanted_by,
    controller_of,
)
from insula.controllers import rollout
from insula.controllers.claiming import claim
from insula.controllers.common import delete_quietly, each, write_status
from insula.controllers.refs import DEPLOYMENTS, PODS, REPLICA_SETS
from insula.controllers.rollout import REVISION, Scaling, counted, revision_of, size_of
from insula.controllers.rolloutstatus import complete, left_s, status_of
from insula.errors import AlreadyExists
from insula.model.resource import Key, Resource


async def reconcile(context: Context, key: Key) -> Result:
    """Make sure that the set for the present template is there, scale one step, write the status, drop old history."""
    deployment = context.caches.get(DEPLOYMENTS, key.name, key.namespace)
    if deployment is None:
        return DONE
    uid = deployment["metadata"]["uid"]
    sets = await claim(context, DEPLOYMENTS, deployment, REPLICA_SETS, adoptable=lambda _: True)
    if not context.expectations.met(uid, sets, context.caches.revision(REPLICA_SETS)):
        return DONE
    new = rollout.newest(deployment, sets)
    old = sorted((rs for rs in sets if rs is not new), key=revision_of, reverse=True)
    if not deployment["metadata"].get("deletionTimestamp"):
        new = await _roll(context, deployment, new, old)
        deployment = await _note_revision(context, deployment, new)
    now = clock.rfc3339(clock.now())
    status = status_of(deployment, new, [*([new] if new else []), *old], now)
    await write_status(context.client, DEPLOYMENTS, deployment, status)
    if complete(deployment, status) or deployment["spec"].get("paused"):
        await _clean(context, deployment, old)
    left = left_s({**deployment, "status": status}, now)
    return Result(left + 1 if left else None)


async def _roll(
    context: Context, deployment: Resource, new: Resource | None, old: Sequence[Resource]
) -> Resource | None:
    """One step: the new set exists and says what it is for; sets are scaled."""
    if new is None and not deployment["spec"].get("paused"):
        new = await _make(context, deployment, old)
        if new is None:
            return None
    if new is not None:
        new = await _annotate(context, deployment, new, old)
    lingering = any(_pods_of(context.caches, rs) for rs in old)
    await _scale(context, deployment, rollout.plan(deployment, new, old, old_pods=lingering))
    return new


def _pods_of(caches: Caches, replicas: Resource) -> list[Resource]:
    """A set's pods that may still run: also those that are ending."""
    found = caches.owned(PODS, replicas["metadata"]["uid"])
    return [pod for pod in found if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]


async def _make(context: Context, deployment: Resource, old: Sequence[Resource]) -> Resource | None:
    """The set for the present template. None when its name was taken by a stranger: the next pass takes another name."""
    wish = rollout.set_of(deployment, rollout.next_revision(old))
    uid, namespace = deployment["metadata"]["uid"], deployment["metadata"]["namespace"]
    try:
        made = await context.client.create(REPLICA_SETS, wish, namespace)
    except AlreadyExists:
        made = await context.client.get(REPLICA_SETS, wish["metadata"]["name"], namespace)
        if (controller_of(made) or {}).get("uid") != uid or not rollout.has_template(deployment, made):
            await _count_collision(context, deployment)
            return None
    context.expectations.wrote(uid, made)
    return made


async def _count_collision(context: Context, deployment: Resource) -> None:
    status = dict(deployment.get("status") or {})
    status["collisionCount"] = int(status.get("collisionCount", 0)) + 1
    await write_status(context.client, DEPLOYMENTS, deployment, status)


async def _annotate(context: Context, deployment: Resource, new: Resource, old: Sequence[Resource]) -> Resource:
    """A set that becomes new again (a rollback) gets the next revision; what explains the change is copied to it."""
    revision = max(revision_of(new), rollout.next_revision(old))
    wanted = {**rollout.copied(deployment), REVISION: str(revision)}
    have = new["metadata"].get("annotations") or {}
    seconds = int(deployment["spec"].get("minReadySeconds", 0))
    patch: dict[str, Any] = {}
    if any(have.get(name) != value for name, value in wanted.items()):
        patch["metadata"] = {"annotations": wanted}
    if int(new["spec"].get("minReadySeconds", 0)) != seconds:
        patch["spec"] = {"minReadySeconds": seconds}
    if not patch:
        return new
    return await context.client.patch(REPLICA_SETS, new["metadata"]["name"], patch, new["metadata"]["namespace"])


async def _note_revision(context: Context, deployment: Resource, new: Resource | None) -> Resource:
    meta = deployment["metadata"]
    if new is None or (meta.get("annotations") or {}).get(REVISION) == str(revision_of(new)):
        return deployment
    patch = {"metadata": {"annotations": {REVISION: str(revision_of(new))}}}
    return await context.client.patch(DEPLOYMENTS, meta["name"], patch, meta["namespace"])


async def _scale(context: Context, deployment: Resource, steps: Sequence[Scaling]) -> None:
    noted, uid = rollout.bounds(deployment), deployment["metadata"]["uid"]

    async def one(step: Scaling) -> None:
        meta, before = step.replicas["metadata"], size_of(step.replicas)
        if before == step.to and noted.items() <= (meta.get("annotations") or {}).items():
            return
        patch = {
            "metadata": {"resourceVersion": meta["resourceVersion"], "annotations": noted},
            "spec": {"replicas": step.to},
        }
        context.expectations.wrote(
            uid, await context.client.patch(REPLICA_SETS, meta["name"], patch, meta["namespace"])
        )
        if before != step.to:
            verb = "up" if step.to > before else "down"
            text = f"Scaled {verb} replica set {meta['name']} from {before} to {step.to}"
            context.events.record(deployment, "ScalingReplicaSet", text)

    await each([one(step) for step in steps], "scaling of replica sets")


async def _clean(context: Context, deployment: Resource, old: Sequence[Resource]) -> None:
    keep = int(deployment["spec"].get("revisionHistoryLimit", 10))
    idle = [
        rs
        for rs in old
        if size_of(rs) == 0 and counted(rs, "replicas") == 0 and not rs["metadata"].get("deletionTimestamp")
    ]
    surplus = sorted(idle, key=revision_of, reverse=True)[keep:]
    await each([delete_quietly(context.client, REPLICA_SETS, rs) for rs in surplus], "old replica sets")


def _recreating(pod: Resource, caches: Caches) -> Iterable[Hashable]:
    """A pod that goes may be what a deployment of strategy Recreate waits for."""
    meta, owner = pod["metadata"], controller_of(pod)
    if owner is None or owner["kind"] != "ReplicaSet":
        return
    replicas = caches.get(REPLICA_SETS, owner["name"], meta["namespace"])
    above = controller_of(replicas) if replicas is not None else None
    if above is not None and above["kind"] == "Deployment":
        yield Key(meta["namespace"], above["name"])


def _gone(_old: Resource | None, new: Resource | None) -> bool:
    return new is None


CONTROLLER = Controller(
    name="deployment-controller",
    summary="rolls a Deployment from one template to the next",
    watches=(
        Watch(ref=DEPLOYMENTS),
        Watch(ref=REPLICA_SETS, keys=controlled_or_wanted_by("Deployment", DEPLOYMENTS)),
        Watch(ref=PODS, keys=_recreating, when=_gone),
    ),
    reconcile=reconcile,
    workers=4,
)
