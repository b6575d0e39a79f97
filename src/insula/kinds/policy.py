"""PodDisruptionBudget, PriorityClass, ResourceQuota, LimitRange: what keeps tenants in bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import age, column, get, joined, truth
from insula.model.quantity import parse_quantity
from insula.model.resource import Resource

_HIGHEST_USER_PRIORITY = 1_000_000_000
_SYSTEM = "system-"


def _validate_budget(new: Resource, _old: Resource | None) -> list[Cause]:
    spec = new.get("spec") or {}
    least, most = spec.get("minAvailable"), spec.get("maxUnavailable")
    if least is not None and most is not None:
        return [
            rules.invalid(
                "spec",
                {"minAvailable": least, "maxUnavailable": most},
                "minAvailable and maxUnavailable cannot be both set",
            )
        ]
    found = rules.int_or_percent("spec.minAvailable", least) + rules.int_or_percent("spec.maxUnavailable", most)
    return found + rules.selector("spec.selector", spec.get("selector"))


def _budget_row(obj: Resource) -> Sequence[Any]:
    spec = obj.get("spec") or {}
    return (
        str(spec["minAvailable"]) if spec.get("minAvailable") is not None else "N/A",
        str(spec["maxUnavailable"]) if spec.get("maxUnavailable") is not None else "N/A",
        get(obj, "status", "disruptionsAllowed", default=0),
        age(obj),
    )


def _default_priority(obj: Resource) -> None:
    obj.setdefault("preemptionPolicy", "PreemptLowerPriority")


def _validate_priority(new: Resource, old: Resource | None) -> list[Cause]:
    found = rules.one_of("preemptionPolicy", new.get("preemptionPolicy"), ("Never", "PreemptLowerPriority"))
    name, value = new["metadata"].get("name", ""), new.get("value", 0)
    known = name in ("system-node-critical", "system-cluster-critical")
    if name.startswith(_SYSTEM) and not known:
        found.append(
            rules.forbidden(
                "metadata.name", "priority class names with 'system-' prefix are reserved for system use only"
            )
        )
    elif not known and value > _HIGHEST_USER_PRIORITY:
        found.append(
            rules.forbidden("value", f"maximum allowed value of a user defined priority is {_HIGHEST_USER_PRIORITY}")
        )
    if old is not None:
        if value != old.get("value", 0):
            found.append(rules.forbidden("value", "may not be changed in an update."))
        found += rules.immutable("preemptionPolicy", new.get("preemptionPolicy"), old.get("preemptionPolicy"))
    return found


def _priority_row(obj: Resource) -> Sequence[Any]:
    return obj.get("value", 0), truth(obj.get("globalDefault")), age(obj), obj.get("preemptionPolicy", "")


def _validate_quota(new: Resource, _old: Resource | None) -> list[Cause]:
    found = []
    for name, value in get(new, "spec", "hard", default={}).items():
        if parse_quantity(value) < 0:
            found.append(rules.invalid(f"spec.hard[{name}]", value, "must be greater than or equal to 0"))
    return found


def _quota_row(obj: Resource) -> Sequence[Any]:
    hard = get(obj, "status", "hard") or get(obj, "spec", "hard", default={})
    used = get(obj, "status", "used", default={})
    pairs = {name: f"{name}: {used.get(name, 0)}/{value}" for name, value in sorted(hard.items())}
    limits = [text for name, text in pairs.items() if name.startswith("limits.")]
    requests = [text for name, text in pairs.items() if not name.startswith("limits.")]
    return joined(requests, "", ", "), joined(limits, "", ", "), age(obj)


def _default_limits(obj: Resource) -> None:
    for each in get(obj, "spec", "limits", default=[]):
        if each.get("type") != "Container":
            continue
        for name in ("default", "defaultRequest"):
            if not isinstance(each.get(name), dict):
                each[name] = {}
        for name, value in (each.get("max") or {}).items():
            each["default"].setdefault(name, value)
        for name, value in each["default"].items():
            each["defaultRequest"].setdefault(name, value)
        for name, value in (each.get("min") or {}).items():
            each["defaultRequest"].setdefault(name, value)
        for name in ("default", "defaultRequest"):
            if not each[name]:
                del each[name]


def _validate_limits(new: Resource, _old: Resource | None) -> list[Cause]:
    found: list[Cause] = []
    seen: set[str] = set()
    for index, each in enumerate(get(new, "spec", "limits", default=[])):
        where, type_ = f"spec.limits[{index}]", each.get("type", "")
        if type_ in seen:
            found.append(rules.duplicate(f"{where}.type", type_))
        seen.add(type_)
        least, most = each.get("min") or {}, each.get("max") or {}
        for name in least.keys() & most.keys():
            if parse_quantity(least[name]) > parse_quantity(most[name]):
                why = f"min value {least[name]} is greater than max value {most[name]}"
                found.append(rules.invalid(f"{where}.min[{name}]", least[name], why))
    return found


KINDS = (
    replace(
        row("policy/v1", "PodDisruptionBudget"),
        validate=_validate_budget,
        columns=(
            column("Min Available"),
            column("Max Unavailable"),
            column("Allowed Disruptions", "integer"),
            column("Age"),
        ),
        row=_budget_row,
    ),
    replace(
        row("scheduling.k8s.io/v1", "PriorityClass"),
        default=_default_priority,
        validate=_validate_priority,
        columns=(column("Value", "integer"), column("Global-Default"), column("Age"), column("PreemptionPolicy")),
        row=_priority_row,
    ),
    replace(
        row("v1", "ResourceQuota"),
        validate=_validate_quota,
        columns=(column("Request"), column("Limit"), column("Age")),
        row=_quota_row,
    ),
    replace(
        row("v1", "LimitRange"),
        default=_default_limits,
        validate=_validate_limits,
        columns=(column("Created At"),),
        row=lambda obj: (obj["metadata"].get("creationTimestamp", ""),),
    ),
)
