"""DaemonSet, and ControllerRevision which keeps the history of it and of StatefulSets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules, workloads
from insula.kinds.builtin import row
from insula.kinds.printing import NONE, age, column, containers, get, labels, selector
from insula.model.resource import Resource


def default(obj: Resource) -> None:
    """As apps/v1 fills it in."""
    spec = workloads.defaults(obj)
    if not spec:
        return
    strategy = spec.get("updateStrategy")
    if not isinstance(strategy, dict):
        strategy = spec["updateStrategy"] = {}
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        if not isinstance(strategy.get("rollingUpdate"), dict):
            strategy["rollingUpdate"] = {}
        strategy["rollingUpdate"].setdefault("maxUnavailable", 1)
        strategy["rollingUpdate"].setdefault("maxSurge", 0)
    spec.setdefault("revisionHistoryLimit", 10)


def validate(new: Resource, old: Resource | None) -> list[Cause]:
    """Selector, template, strategy."""
    strategy = new["spec"].get("updateStrategy") or {}
    rolling, path = strategy.get("rollingUpdate") or {}, "spec.updateStrategy.rollingUpdate"
    found = workloads.common(new, old)
    found += rules.one_of("spec.updateStrategy.type", strategy.get("type"), ("RollingUpdate", "OnDelete"))
    for name in ("maxUnavailable", "maxSurge"):
        found += rules.int_or_percent(f"{path}.{name}", rolling.get(name))
    return found


def _row(obj: Resource) -> Sequence[Any]:
    status = obj.get("status") or {}
    names, images = containers(get(obj, "spec", "template", "spec"))
    return (
        status.get("desiredNumberScheduled", 0),
        status.get("currentNumberScheduled", 0),
        status.get("numberReady", 0),
        status.get("updatedNumberScheduled", 0),
        status.get("numberAvailable", 0),
        labels(get(obj, "spec", "template", "spec", "nodeSelector")),
        age(obj),
        names,
        images,
        selector(get(obj, "spec", "selector")),
    )


def _revision_row(obj: Resource) -> Sequence[Any]:
    owners = obj["metadata"].get("ownerReferences") or ()
    owner = next((each for each in owners if each.get("controller")), None)
    if owner is None:
        return NONE, obj.get("revision", 0), age(obj)
    group = owner.get("apiVersion", "").rpartition("/")[0]
    kind = f"{owner['kind'].lower()}.{group}" if group else owner["kind"].lower()
    return f"{kind}/{owner['name']}", obj.get("revision", 0), age(obj)


KINDS = (
    replace(
        row("apps/v1", "DaemonSet"),
        default=default,
        validate=validate,
        columns=(
            column("Desired", "integer"),
            column("Current", "integer"),
            column("Ready", "integer"),
            column("Up-to-date", "integer"),
            column("Available", "integer"),
            column("Node Selector"),
            column("Age"),
            column("Containers", wide=True),
            column("Images", wide=True),
            column("Selector", wide=True),
        ),
        row=_row,
    ),
    replace(
        row("apps/v1", "ControllerRevision"),
        columns=(column("Controller"), column("Revision"), column("Age")),
        row=_revision_row,
    ),
)
