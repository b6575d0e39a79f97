"""StatefulSet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules, workloads
from insula.kinds.builtin import row
from insula.kinds.persistentvolume import default_claim
from insula.kinds.printing import age, column, containers, get
from insula.model.resource import Resource

_CHANGEABLE = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def default(obj: Resource) -> None:
    """As apps/v1 fills it in."""
    spec = workloads.defaults(obj)
    if not spec:
        return
    spec.setdefault("podManagementPolicy", "OrderedReady")
    strategy = spec.get("updateStrategy")
    if not isinstance(strategy, dict):
        strategy = spec["updateStrategy"] = {}
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        if not isinstance(strategy.get("rollingUpdate"), dict):
            strategy["rollingUpdate"] = {}
        strategy["rollingUpdate"].setdefault("partition", 0)
    if not isinstance(spec.get("persistentVolumeClaimRetentionPolicy"), dict):
        spec["persistentVolumeClaimRetentionPolicy"] = {}
    spec["persistentVolumeClaimRetentionPolicy"].setdefault("whenDeleted", "Retain")
    spec["persistentVolumeClaimRetentionPolicy"].setdefault("whenScaled", "Retain")
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    spec.setdefault("revisionHistoryLimit", 10)
    for claim in spec.get("volumeClaimTemplates") or ():
        claim.setdefault("apiVersion", "v1")
        claim.setdefault("kind", "PersistentVolumeClaim")
        claim["status"] = {"phase": "Pending"}
        default_claim(claim)


def validate(new: Resource, old: Resource | None) -> list[Cause]:
    """Selector, template, strategy; little of it may change."""
    spec, found = new["spec"], workloads.common(new, old)
    found += rules.one_of("spec.podManagementPolicy", spec.get("podManagementPolicy"), ("OrderedReady", "Parallel"))
    strategy = spec.get("updateStrategy") or {}
    found += rules.one_of("spec.updateStrategy.type", strategy.get("type"), ("RollingUpdate", "OnDelete"))
    if old:
        fixed = {name: value for name, value in spec.items() if name not in _CHANGEABLE}
        before = {name: value for name, value in old["spec"].items() if name not in _CHANGEABLE}
        if fixed != before:
            listed = ", ".join(f"'{name}'" for name in _CHANGEABLE[:-1])
            why = f"updates to statefulset spec for fields other than {listed} and '{_CHANGEABLE[-1]}' are forbidden"
            found = [rules.forbidden("spec", why)]
    return found


def _row(obj: Resource) -> Sequence[Any]:
    names, images = containers(get(obj, "spec", "template", "spec"))
    ready = get(obj, "status", "readyReplicas", default=0)
    return f"{ready}/{get(obj, 'spec', 'replicas', default=0)}", age(obj), names, images


KIND = replace(
    row("apps/v1", "StatefulSet"),
    default=default,
    validate=validate,
    columns=(column("Ready"), column("Age"), column("Containers", wide=True), column("Images", wide=True)),
    row=_row,
)
