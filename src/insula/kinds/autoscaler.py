"""HorizontalPodAutoscaler: v2 is stored, v1 is the same object in older words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import age, column, get
from insula.model.resource import Resource

_METRICS = "autoscaling.alpha.kubernetes.io/metrics"
_BEHAVIOR = "autoscaling.alpha.kubernetes.io/behavior"
_CPU_TARGET = 80
_v2 = row("autoscaling/v2", "HorizontalPodAutoscaler")


def _cpu(percent: int) -> Resource:
    target = {"type": "Utilization", "averageUtilization": percent}
    return {"type": "Resource", "resource": {"name": "cpu", "target": target}}


def _is_cpu(metric: Mapping[str, Any]) -> bool:
    return (
        metric.get("type") == "Resource"
        and get(metric, "resource", "name") == "cpu"
        and get(metric, "resource", "target", "averageUtilization") is not None
    )


def to_v2(obj: Resource) -> Resource:
    """autoscaling/v1 → autoscaling/v2."""
    meta, spec = dict(obj.get("metadata") or {}), dict(obj.get("spec") or {})
    notes = dict(meta.get("annotations") or {})
    metrics = json.loads(notes.pop(_METRICS, "[]"))
    behavior = notes.pop(_BEHAVIOR, None)
    percent = spec.pop("targetCPUUtilizationPercentage", None)
    if percent is not None:
        metrics.insert(0, _cpu(percent))
    if metrics:
        spec["metrics"] = metrics
    if behavior:
        spec["behavior"] = json.loads(behavior)
    meta.pop("annotations", None)
    if notes:
        meta["annotations"] = notes
    status = dict(obj.get("status") or {})
    current = status.pop("currentCPUUtilizationPercentage", None)
    if current is not None:
        value = {"name": "cpu", "current": {"averageUtilization": current}}
        status["currentMetrics"] = [{"type": "Resource", "resource": value}]
    return _whole(obj, "autoscaling/v2", meta, spec, status)


def from_v2(obj: Resource) -> Resource:
    """autoscaling/v2 → autoscaling/v1: what v1 cannot say goes to annotations."""
    meta, spec = dict(obj.get("metadata") or {}), dict(obj.get("spec") or {})
    notes, others = dict(meta.get("annotations") or {}), []
    for metric in spec.pop("metrics", None) or ():
        if _is_cpu(metric) and "targetCPUUtilizationPercentage" not in spec:
            spec["targetCPUUtilizationPercentage"] = metric["resource"]["target"]["averageUtilization"]
        else:
            others.append(metric)
    if others:
        notes[_METRICS] = json.dumps(others)
    if (behavior := spec.pop("behavior", None)) is not None:
        notes[_BEHAVIOR] = json.dumps(behavior)
    if notes:
        meta["annotations"] = notes
    status = dict(obj.get("status") or {})
    for metric in status.pop("currentMetrics", None) or ():
        if get(metric, "resource", "name") == "cpu":
            status["currentCPUUtilizationPercentage"] = get(metric, "resource", "current", "averageUtilization")
    status.pop("conditions", None)
    return _whole(obj, "autoscaling/v1", meta, spec, status)


def _whole(obj: Resource, api_version: str, meta: Resource, spec: Resource, status: Resource) -> Resource:
    out = {**obj, "apiVersion": api_version, "metadata": meta, "spec": spec, "status": status}
    if not status:
        out.pop("status")
    return out


def _default_v2(obj: Resource) -> None:
    if isinstance(spec := obj.get("spec"), dict):
        if spec.get("minReplicas") is None:
            spec["minReplicas"] = 1
        if not spec.get("metrics"):
            spec["metrics"] = [_cpu(_CPU_TARGET)]


def _default_v1(obj: Resource) -> None:
    if isinstance(spec := obj.get("spec"), dict) and spec.get("minReplicas") is None:
        spec["minReplicas"] = 1


def _validate(new: Resource, _old: Resource | None) -> list[Cause]:
    spec = new.get("spec") or {}
    least, most = spec.get("minReplicas", 1), spec.get("maxReplicas", 0)
    found: list[Cause] = []
    if most < 1:
        found.append(rules.invalid("spec.maxReplicas", most, "must be greater than 0"))
    if least < 1:
        found.append(rules.invalid("spec.minReplicas", least, "must be greater than or equal to 1"))
    if most < least:
        found.append(rules.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`"))
    target = spec.get("scaleTargetRef") or {}
    found += [rules.required(f"spec.scaleTargetRef.{name}") for name in ("kind", "name") if not target.get(name)]
    return found


def _targets(obj: Resource) -> str:
    obj = obj if obj.get("apiVersion") == "autoscaling/v2" else to_v2(obj)
    current = {
        (each.get("type"), get(each, "resource", "name")): each
        for each in get(obj, "status", "currentMetrics", default=[])
    }
    found = []
    for metric in get(obj, "spec", "metrics", default=[]):
        name, part = get(metric, "resource", "name"), metric.get(_part(metric.get("type", "")), {})
        now = current.get((metric.get("type"), name), {})
        percent = get(part, "target", "averageUtilization")
        if percent is not None:
            have = get(now, "resource", "current", "averageUtilization")
            found.append(f"{name}: {'<unknown>' if have is None else f'{have}%'}/{percent}%")
        else:
            wanted = get(part, "target", "averageValue") or get(part, "target", "value", default="<auto>")
            have = get(now, _part(metric.get("type", "")), "current", "averageValue", default="<unknown>")
            found.append(f"{have}/{wanted}")
    more = len(found) - 2
    return ", ".join(found[:2]) + (f" + {more} more..." if more > 0 else "") if found else "<none>"


def _part(type: str) -> str:
    return type[:1].lower() + type[1:]


def _row(obj: Resource) -> Sequence[Any]:
    spec = obj.get("spec") or {}
    target = spec.get("scaleTargetRef") or {}
    return (
        f"{target.get('kind')}/{target.get('name')}",
        _targets(obj),
        str(spec.get("minReplicas", "<unset>")),
        spec.get("maxReplicas", 0),
        get(obj, "status", "currentReplicas", default=0),
        age(obj),
    )


_COLUMNS = (
    column("Reference"),
    column("Targets"),
    column("MinPods"),
    column("MaxPods"),
    column("Replicas"),
    column("Age"),
)

KINDS = (
    replace(_v2, default=_default_v2, validate=_validate, columns=_COLUMNS, row=_row),
    replace(
        row("autoscaling/v1", "HorizontalPodAutoscaler"),
        stored_as=_v2.ref,
        to_stored=to_v2,
        from_stored=from_v2,
        default=_default_v1,
        validate=_validate,
        columns=_COLUMNS,
        row=_row,
    ),
)
