"""Words for the cells of `kubectl get`: what a row function may return beside plain values, and the phrases many kinds share.

Row functions are pure and know no clock, so a moment is returned as `Since` and becomes an age where the table is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from insula.kinds.kind import Column
from insula.model.resource import Resource

NONE = "<none>"
UNKNOWN = "<unknown>"
UNSET = "<unset>"


class Since(Struct, frozen=True):
    """The age of a moment (RFC 3339, empty for never) inside a phrase: `Since(t, "3 ({} ago)")`."""

    time: str
    phrase: str = "{}"
    never: str = UNKNOWN


class Span(Struct, frozen=True):
    """The time from one moment to another, or to now when `end` is empty."""

    start: str
    end: str = ""
    never: str = NONE


AGE = Column(
    name="Age",
    description="CreationTimestamp is a timestamp representing the server time when this object was created.",
)


def column(name: str, type: str = "string", *, wide: bool = False, description: str = "") -> Column:
    """A column; `wide` shows it with -o wide only."""
    return Column(name=name, type=type, priority=1 if wide else 0, description=description)


def age(obj: Resource) -> Since:
    """How old an object is."""
    return Since(obj["metadata"].get("creationTimestamp") or "")


def get(obj: Any, *path: str, default: Any = None) -> Any:
    """What lies at a path of field names; `default` where something on the way is absent."""
    for step in path:
        if not isinstance(obj, Mapping):
            return default
        obj = obj.get(step)
    return default if obj is None else obj


def joined(values: Iterable[object], empty: str = NONE, separator: str = ",") -> str:
    """Values in one cell."""
    return separator.join(str(value) for value in values) or empty


def labels(mapping: Mapping[str, str] | None) -> str:
    """`app=web,tier=front`, sorted."""
    return joined((f"{key}={value}" for key, value in sorted((mapping or {}).items())))


def selector(spec: Mapping[str, Any] | None) -> str:
    """A label selector object as `kubectl get -o wide` shows it."""
    if spec is None:
        return NONE
    parts = [f"{key}={value}" for key, value in sorted((spec.get("matchLabels") or {}).items())]
    for each in spec.get("matchExpressions") or ():
        key, values = each.get("key", ""), ",".join(sorted(each.get("values") or ()))
        match each.get("operator"):
            case "In":
                parts.append(f"{key} in ({values})")
            case "NotIn":
                parts.append(f"{key} notin ({values})")
            case "Exists":
                parts.append(key)
            case _:
                parts.append(f"!{key}")
    return joined(parts)


def containers(pod_spec: Mapping[str, Any] | None) -> tuple[str, str]:
    """Names and images of a pod template's containers."""
    found: Sequence[Mapping[str, Any]] = (pod_spec or {}).get("containers") or ()
    return joined((each.get("name", "") for each in found), ""), joined((each.get("image", "") for each in found), "")


def truth(value: object) -> str:
    """A boolean cell."""
    return "true" if value else "false"
