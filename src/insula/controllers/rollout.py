"""How a Deployment rolls: pure functions over it and its ReplicaSets, in upstream's arithmetic.

Source: the Kubernetes documentation of Deployment (rolling update, proportional scaling, Recreate), and the behaviour of
kube-controller-manager where that is silent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from insula.controllers.common import owner_reference
from insula.model.resource import Resource

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAX = "deployment.kubernetes.io/max-replicas"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # upstream's safe alphabet: no vowels, so no words

# --- templates and revisions ------------------------------------------------------------------------------------


def template_hash(template: Resource, collisions: int = 0) -> str:
    """A short name for a pod template. Equal templates get equal names, until a collision is counted."""
    plain = msgspec.json.encode([_without_hash(template), collisions], order="deterministic")
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


def has_template(deployment: Resource, replicas: Resource) -> bool:
    """Whether a set was made for the deployment's present template."""
    return _without_hash(replicas["spec"]["template"]) == _without_hash(deployment["spec"]["template"])


def newest(deployment: Resource, sets: Sequence[Resource]) -> Resource | None:
    """The set that has the deployment's present template; the oldest one, should there be two."""
    same = [rs for rs in sets if has_template(deployment, rs)]
    return min(same, key=_age) if same else None


def revision_of(replicas: Resource) -> int:
    """The rollout revision noted on a set."""
    noted = str((replicas["metadata"].get("annotations") or {}).get(REVISION, ""))
    return int(noted) if noted.isdigit() else 0


def next_revision(old: Sequence[Resource]) -> int:
    """The revision of what comes after these sets."""
    return max((revision_of(rs) for rs in old), default=0) + 1


def set_of(deployment: Resource, revision: int) -> Resource:
    """A new ReplicaSet for the present template, with no replicas yet."""
    meta, spec = deployment["metadata"], deployment["spec"]
    name = template_hash(spec["template"], int((deployment.get("status") or {}).get("collisionCount", 0)))
    template = msgspec.json.decode(msgspec.json.encode(spec["template"]))
    labels = template.setdefault("metadata", {}).setdefault("labels", {})
    labels[HASH_LABEL] = name
    selector = {**spec["selector"], "matchLabels": {**(spec["selector"].get("matchLabels") or {}), HASH_LABEL: name}}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{meta['name'][:242]}-{name}",
            "labels": dict(labels),
            "annotations": {**copied(deployment), REVISION: str(revision), **bounds(deployment)},
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": {
            "replicas": 0,
            "minReadySeconds": int(spec.get("minReadySeconds", 0)),
            "selector": selector,
            "template": template,
        },
    }


def copied(deployment: Resource) -> dict[str, str]:
    """The deployment's annotations that its sets carry too, such as the cause of the change."""
    skipped = (LAST_APPLIED, REVISION, DESIRED, MAX)
    return {k: v for k, v in (deployment["metadata"].get("annotations") or {}).items() if k not in skipped}


def bounds(deployment: Resource) -> dict[str, str]:
    """What a set's size was derived from, noted on it, so that a later scaling can be told from a rollout."""
    return {DESIRED: str(wanted_replicas(deployment)), MAX: str(limits(deployment)[0])}


# --- sizes ------------------------------------------------------------------------------------------------------


def wanted_replicas(deployment: Resource) -> int:
    """How many pods the deployment asks for."""
    return int(deployment["spec"].get("replicas", 1))


def limits(deployment: Resource) -> tuple[int, int]:
    """(most pods in all, fewest available pods) during a rolling update. Percentages of the wanted replicas: surge is rounded
    up, unavailable down; when both come to 0, one may be unavailable."""
    replicas, strategy = wanted_replicas(deployment), deployment["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return replicas, 0
    rolling = strategy.get("rollingUpdate") or {}
    surge = _share(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = _share(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return replicas + surge, replicas - min(unavailable, replicas)


def _share(value: Any, total: int, *, up: bool) -> int:
    if isinstance(value, str) and value.endswith("%"):
        exact = int(value[:-1]) * total
        return -(-exact // 100) if up else exact // 100
    return int(value)


def size_of(replicas: Resource) -> int:
    """How many pods a set is told to have."""
    return int(replicas["spec"].get("replicas", 1))


def counted(replicas: Resource, name: str) -> int:
    """A number of a set's status."""
    return int((replicas.get("status") or {}).get(name, 0))


def _age(replicas: Resource) -> tuple[str, str]:
    return replicas["metadata"]["creationTimestamp"], replicas["metadata"]["name"]


# --- the next step ----------------------------------------------------------------------------------------------


class Scaling(Struct, frozen=True):
    """A set and the number of replicas it should be given now."""

    replicas: Resource
    to: int


def plan(
    deployment: Resource, new: Resource | None, old: Sequence[Resource], *, old_pods: bool = False
) -> list[Scaling]:
    """The next step of a rollout: which sets to scale. `old_pods`: pods of old sets are still there, also ending ones."""
    recreate = (deployment["spec"].get("strategy") or {}).get("type") == "Recreate"
    if deployment["spec"].get("paused") or (_was_scaled(deployment, [*([new] if new else []), *old]) and not recreate):
        return rescale(deployment, new, old)
    if new is None:
        return []
    return _recreate(deployment, new, old, old_pods) if recreate else _rolling(deployment, new, old)


def _was_scaled(deployment: Resource, sets: Sequence[Resource]) -> bool:
    wanted = str(wanted_replicas(deployment))
    noted = [(rs["metadata"].get("annotations") or {}).get(DESIRED) for rs in sets if size_of(rs) > 0]
    return any(value is not None and value != wanted for value in noted)


def rescale(deployment: Resource, new: Resource | None, old: Sequence[Resource]) -> list[Scaling]:
    """A changed size, without going on with a rollout: one set takes it all, several share it in proportion to their sizes."""
    wanted = wanted_replicas(deployment)
    active = [rs for rs in ([new] if new else []) + list(old) if size_of(rs) > 0]
    if len(active) <= 1:
        latest = active or ([new] if new else sorted(old, key=_age)[-1:])
        return [Scaling(rs, wanted) for rs in latest]
    if new is not None and size_of(new) == wanted == counted(new, "availableReplicas"):
        return [Scaling(rs, wanted if rs is new else 0) for rs in active]
    return _proportional(deployment, active)


def _proportional(deployment: Resource, active: Sequence[Resource]) -> list[Scaling]:
    most = limits(deployment)[0] if wanted_replicas(deployment) else 0
    missing = most - sum(size_of(rs) for rs in active)
    ordered = sorted(active, key=_age, reverse=missing > 0)
    ordered.sort(key=size_of, reverse=True)
    sizes, given = [], 0
    for rs in ordered:
        share = _fraction(deployment, rs, most)
        left = missing - given
        more = min(share, left) if missing > 0 else max(share, left)
        sizes.append(size_of(rs) + (more if missing else 0))
        given += more if missing else 0
    sizes[0] = max(sizes[0] + missing - given, 0)
    return [Scaling(rs, size) for rs, size in zip(ordered, sizes, strict=True)]


def _fraction(deployment: Resource, rs: Resource, most: int) -> int:
    """By how much one set grows or shrinks when the whole goes from what it was to `most`."""
    if not wanted_replicas(deployment):
        return -size_of(rs)
    noted = str((rs["metadata"].get("annotations") or {}).get(MAX, ""))
    before = int(noted) if noted.isdigit() else int((deployment.get("status") or {}).get("replicas", 0))
    return math.floor(size_of(rs) * most / before + 0.5) - size_of(rs) if before else 0


def _recreate(deployment: Resource, new: Resource, old: Sequence[Resource], old_pods: bool) -> list[Scaling]:
    shrinking = [Scaling(rs, 0) for rs in old if size_of(rs) > 0]
    if shrinking or old_pods:
        return shrinking
    wanted = wanted_replicas(deployment)
    return [Scaling(new, wanted)] if size_of(new) != wanted else []


def _rolling(deployment: Resource, new: Resource, old: Sequence[Resource]) -> list[Scaling]:
    wanted = wanted_replicas(deployment)
    most, fewest = limits(deployment)
    total = size_of(new) + sum(size_of(rs) for rs in old)
    if size_of(new) > wanted:
        return [Scaling(new, wanted)]
    if size_of(new) < wanted and (room := min(most - total, wanted - size_of(new))) > 0:
        return [Scaling(new, size_of(new) + room)]
    return _shrink(old, new, total, fewest)


def _shrink(old: Sequence[Resource], new: Resource, total: int, fewest: int) -> list[Scaling]:
    """Give up old pods: first those that are not available anyway, then as many as availability allows."""
    ordered = sorted(old, key=_age)
    sizes = {rs["metadata"]["name"]: size_of(rs) for rs in ordered}
    spare = total - fewest - (size_of(new) - counted(new, "availableReplicas"))
    if spare <= 0:
        return []
    for rs in ordered:
        cut = min(spare, max(size_of(rs) - counted(rs, "availableReplicas"), 0))
        sizes[rs["metadata"]["name"]] -= cut
        spare -= cut
    spare = sum(counted(rs, "availableReplicas") for rs in (new, *old)) - fewest
    for rs in ordered:
        cut = max(min(spare, sizes[rs["metadata"]["name"]]), 0)
        sizes[rs["metadata"]["name"]] -= cut
        spare -= cut
    return [
        Scaling(rs, sizes[rs["metadata"]["name"]]) for rs in ordered if sizes[rs["metadata"]["name"]] != size_of(rs)
    ]
