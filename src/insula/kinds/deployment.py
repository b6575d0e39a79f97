"""Deployment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules, workloads
from insula.kinds.builtin import row
from insula.kinds.printing import age, column, containers, get, selector
from insula.model.resource import Resource

_STRATEGIES = ("Recreate", "RollingUpdate")


def default(obj: Resource) -> None:
    """As apps/v1 fills it in."""
    spec = workloads.defaults(obj)
    if not spec:
        return
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    strategy = spec.get("strategy")
    if not isinstance(strategy, dict):
        strategy = spec["strategy"] = {}
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.get("rollingUpdate")
        if not isinstance(rolling, dict):
            rolling = strategy["rollingUpdate"] = {}
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)


def validate(new: Resource, old: Resource | None) -> list[Cause]:
    """Selector, template, strategy."""
    spec, found = new["spec"], workloads.common(new, old)
    strategy = spec.get("strategy") or {}
    rolling, path = strategy.get("rollingUpdate"), "spec.strategy.rollingUpdate"
    found += rules.one_of("spec.strategy.type", strategy.get("type"), _STRATEGIES)
    if strategy.get("type") == "Recreate" and rolling is not None:
        found.append(rules.forbidden(path, "may not be specified when strategy `type` is 'Recreate'"))
    elif rolling is not None:
        surge, unavailable = rolling.get("maxSurge"), rolling.get("maxUnavailable")
        found += rules.int_or_percent(f"{path}.maxSurge", surge) + rules.int_or_percent(
            f"{path}.maxUnavailable", unavailable
        )
        if surge in (0, "0%") and unavailable in (0, "0%"):
            found.append(rules.invalid(f"{path}.maxUnavailable", unavailable, "may not be 0 when `maxSurge` is 0"))
    deadline, ready = spec.get("progressDeadlineSeconds"), spec.get("minReadySeconds") or 0
    if deadline is not None and deadline <= ready:
        found.append(rules.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds"))
    return found


def _row(obj: Resource) -> Sequence[Any]:
    names, images = containers(get(obj, "spec", "template", "spec"))
    wanted = get(obj, "spec", "replicas", default=0)
    status = obj.get("status") or {}
    return (
        f"{status.get('readyReplicas', 0)}/{wanted}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        age(obj),
        names,
        images,
        selector(get(obj, "spec", "selector")),
    )


KIND = replace(
    row("apps/v1", "Deployment"),
    default=default,
    validate=validate,
    columns=(
        column("Ready", description="Number of the pod with ready state"),
        column(
            "Up-to-date",
            description="Total number of non-terminated pods targeted by this deployment at the newest template",
        ),
        column("Available", description="Total number of available pods targeted by this deployment"),
        column("Age"),
        column("Containers", wide=True, description="Names of each container in the template."),
        column("Images", wide=True, description="Images referenced by each container in the template."),
        column("Selector", wide=True),
    ),
    row=_row,
)
