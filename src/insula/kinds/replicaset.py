"""ReplicaSet and its elder, ReplicationController."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules, workloads
from insula.kinds.builtin import row
from insula.kinds.printing import age, column, containers, get, labels, selector
from insula.model.resource import Resource


def default(obj: Resource) -> None:
    """One replica, where nothing else is said; labels from the template."""
    spec = workloads.defaults(obj)
    if not spec:
        return
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    _labels_from_template(obj)


def _labels_from_template(obj: Resource) -> None:
    own = get(obj, "spec", "template", "metadata", "labels", default={})
    if own and not obj["metadata"].get("labels"):
        obj["metadata"]["labels"] = dict(own)


def _default_controller(obj: Resource) -> None:
    default(obj)
    spec = obj.get("spec")
    own = get(obj, "spec", "template", "metadata", "labels")
    if isinstance(spec, dict) and not spec.get("selector") and own:
        spec["selector"] = dict(own)


def _validate_controller(new: Resource, old: Resource | None) -> list[Cause]:
    spec = new.get("spec") or {}
    found = rules.non_negative("spec.replicas", spec.get("replicas"))
    chosen = spec.get("selector") or {}
    own = get(spec, "template", "metadata", "labels", default={})
    if not chosen:
        found.append(rules.required("spec.selector"))
    elif any(own.get(key) != value for key, value in chosen.items()):
        found.append(rules.invalid("spec.template.metadata.labels", own, "`selector` does not match template `labels`"))
    if not old or spec.get("template") != old["spec"].get("template"):
        found += workloads.template(spec) + workloads.always_restarts(spec)
    return found


def fields(obj: Resource) -> dict[str, str]:
    """Selectable fields."""
    return {"status.replicas": str(get(obj, "status", "replicas", default=0))}


def _row(obj: Resource) -> Sequence[Any]:
    names, images = containers(get(obj, "spec", "template", "spec"))
    chosen = get(obj, "spec", "selector")
    status = obj.get("status") or {}
    return (
        get(obj, "spec", "replicas", default=0),
        status.get("replicas", 0),
        status.get("readyReplicas", 0),
        age(obj),
        names,
        images,
        selector(chosen) if obj.get("kind") == "ReplicaSet" else labels(chosen),
    )


_COLUMNS = (
    column("Desired", "integer"),
    column("Current", "integer"),
    column("Ready", "integer"),
    column("Age"),
    column("Containers", wide=True),
    column("Images", wide=True),
    column("Selector", wide=True),
)

KINDS = (
    replace(
        row("apps/v1", "ReplicaSet"),
        default=default,
        validate=workloads.common,
        fields=fields,
        columns=_COLUMNS,
        row=_row,
    ),
    replace(
        row("v1", "ReplicationController"),
        default=_default_controller,
        validate=_validate_controller,
        fields=fields,
        columns=_COLUMNS,
        row=_row,
    ),
)
