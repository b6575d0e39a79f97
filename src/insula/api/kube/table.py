"""`kubectl get` asks for rows: objects as metav1.Table. Pure but for the moment that is given.

Cells come from a kind's `columns` and `row`; Name goes in front and Age behind the always-shown columns where a kind does not
place them itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

from insula.clock import parse_rfc3339
from insula.kinds.kind import Column, Kind
from insula.kinds.printing import AGE, UNKNOWN, Since, Span
from insula.model.resource import Resource

Include = Literal["None", "Metadata", "Object"]
_NAME = Column(
    name="Name",
    format="name",
    description="Name must be unique within a namespace. Is required when creating resources, although some resources may "
    "allow a client to request the generation of an appropriate name automatically.",
)
_INVALID = "<invalid>"


class Layout:
    """The columns of one kind, and where Name and Age stand."""

    def __init__(self, kind: Kind) -> None:
        given = list(kind.columns)
        names = {column.name for column in given}
        self.kind = kind
        self.adds_name = "Name" not in names
        self.age_at = -1
        columns = ([_NAME] if self.adds_name else []) + given
        if not names & {"Age", "Created At"}:
            self.age_at = next((at for at, column in enumerate(columns) if column.priority), len(columns))
            columns.insert(self.age_at, AGE)
        self.columns = columns

    def definitions(self) -> list[dict[str, Any]]:
        """`columnDefinitions` of the Table."""
        return [
            {
                "name": column.name,
                "type": "string" if column.type == "date" and column.name == "Age" else column.type,
                "format": "name" if column.name == "Name" else column.format,
                "description": column.description,
                "priority": column.priority,
            }
            for column in self.columns
        ]

    def cells(self, obj: Resource, moment: datetime) -> list[Any]:
        """One object's cells."""
        meta = obj.get("metadata") or {}
        row: Sequence[Any] = self.kind.row(obj) if self.kind.row is not None else ()
        cells = [meta.get("name", ""), *row] if self.adds_name else [*row]
        if self.age_at >= 0:
            cells.insert(self.age_at, Since(meta.get("creationTimestamp") or ""))
        return [_cell(value, column, moment) for value, column in zip(cells, self.columns, strict=False)]


def _cell(value: Any, column: Column, moment: datetime) -> Any:
    match value:
        case Since(time="", never=never):
            return never
        case Since(time=time, phrase=phrase):
            return phrase.format(age(time, moment))
        case Span(start="", never=never):
            return never
        case Span(start=start, end=end):
            return _span(start, end, moment)
        case str() if column.type == "date" and value:
            return age(value, moment)
    return value


def age(time: str, moment: datetime) -> str:
    """The time from an RFC 3339 moment to `moment`, as kubectl prints ages."""
    try:
        return human_duration((moment - parse_rfc3339(time)).total_seconds())
    except ValueError:
        return UNKNOWN


def _span(start: str, end: str, moment: datetime) -> str:
    try:
        last = parse_rfc3339(end) if end else moment
        return human_duration((last - parse_rfc3339(start)).total_seconds())
    except ValueError:
        return UNKNOWN


def human_duration(total_s: float) -> str:
    """A duration in at most two units, as k8s.io/apimachinery `duration.HumanDuration` gives it."""
    seconds = int(total_s)
    if seconds < -1:
        return _INVALID
    seconds = max(0, seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    if days < 2920:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(big: int, unit: str, small: int, small_unit: str) -> str:
    return f"{big}{unit}{small}{small_unit}" if small else f"{big}{unit}"


def metadata_only(obj: Resource, version: str = "v1") -> Resource:
    """A PartialObjectMetadata."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": obj.get("metadata") or {},
    }


def table(
    layout: Layout,
    objects: Iterable[Resource],
    moment: datetime,
    *,
    version: str = "v1",
    include: Include = "Metadata",
    meta: dict[str, Any] | None = None,
    headings: bool = True,
) -> dict[str, Any]:
    """A Table of these objects. Without `headings` (later watch events) the definitions are left out."""
    rows = []
    for obj in objects:
        row: dict[str, Any] = {"cells": layout.cells(obj, moment)}
        if include == "Metadata":
            row["object"] = metadata_only(obj, version)
        elif include == "Object":
            row["object"] = obj
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": meta or {},
        "columnDefinitions": layout.definitions() if headings else [],
        "rows": rows,
    }
