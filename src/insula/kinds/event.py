"""Event: one kind under two names, core/v1 and events.k8s.io/v1. Values are kept as core events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import Since, column, get
from insula.model.resource import Resource

# events.k8s.io name → core name
_RENAMED = {
    "regarding": "involvedObject",
    "note": "message",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
    "reportingController": "reportingComponent",
}
_BACK = {core: newer for newer, core in _RENAMED.items()}


def _renamed(obj: Resource, names: Mapping[str, str], api_version: str) -> Resource:
    return {**{names.get(name, name): value for name, value in obj.items()}, "apiVersion": api_version}


def to_core(obj: Resource) -> Resource:
    """events.k8s.io/v1 → v1."""
    return _renamed(obj, _RENAMED, "v1")


def from_core(obj: Resource) -> Resource:
    """v1 → events.k8s.io/v1."""
    return _renamed(obj, _BACK, "events.k8s.io/v1")


def _prepare(new: Resource, _old: Resource | None) -> None:
    new.setdefault("type", "Normal")


def _validate(new: Resource, _old: Resource | None) -> list[Cause]:
    involved = new.get("involvedObject") or {}
    namespace = involved.get("namespace") or ""
    own = new["metadata"].get("namespace")
    if namespace != own and not (not namespace and own == "default"):
        return [rules.invalid("involvedObject.namespace", namespace, "does not match event.namespace")]
    return []


def fields(obj: Resource) -> dict[str, str]:
    """Selectable fields of a core event."""
    about = obj.get("involvedObject") or {}
    names = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
    source = get(obj, "source", "component", default="") or obj.get("reportingComponent", "")
    return {
        **{f"involvedObject.{name}": str(about.get(name) or "") for name in names},
        "reason": obj.get("reason", ""),
        "reportingComponent": obj.get("reportingComponent", ""),
        "source": source,
        "type": obj.get("type", ""),
    }


def _new_fields(obj: Resource) -> dict[str, str]:
    core = fields(to_core(obj))
    about = {
        f"regarding.{name.partition('.')[2]}": value for name, value in core.items() if name.startswith("involved")
    }
    return {**core, **about, "reportingController": core["reportingComponent"]}


def _row(obj: Resource) -> Sequence[Any]:
    core = obj if obj.get("apiVersion") == "v1" else to_core(obj)
    about, source = core.get("involvedObject") or {}, core.get("source") or {}
    first = core.get("firstTimestamp") or core.get("eventTime") or ""
    series = core.get("series") or {}
    last = series.get("lastObservedTime") or core.get("lastTimestamp") or first
    target = f"{about.get('kind', '').lower()}/{about.get('name', '')}" if about.get("name") else about.get("kind", "")
    component = source.get("component") or core.get("reportingComponent", "")
    host = source.get("host") or core.get("reportingInstance", "")
    return (
        Since(last),
        core.get("type", ""),
        core.get("reason", ""),
        target,
        about.get("fieldPath", ""),
        f"{component}, {host}" if host else component,
        (core.get("message") or "").strip(),
        Since(first),
        series.get("count") or core.get("count") or 1,
        core["metadata"].get("name", ""),
    )


_COLUMNS = (
    column("Last Seen"),
    column("Type"),
    column("Reason"),
    column("Object"),
    column("Subobject", wide=True),
    column("Source", wide=True),
    column("Message"),
    column("First Seen", wide=True),
    column("Count", wide=True),
    column("Name", wide=True),
    column("Age", wide=True),
)
_core = row("v1", "Event")


def _with_age(obj: Resource) -> Sequence[Any]:
    return (*_row(obj), Since(obj["metadata"].get("creationTimestamp") or ""))


KINDS = (
    replace(_core, prepare=_prepare, validate=_validate, fields=fields, columns=_COLUMNS, row=_with_age),
    replace(
        row("events.k8s.io/v1", "Event"),
        stored_as=_core.ref,
        to_stored=to_core,
        from_stored=from_core,
        prepare=_prepare,
        fields=_new_fields,
        columns=_COLUMNS,
        row=_with_age,
    ),
)
