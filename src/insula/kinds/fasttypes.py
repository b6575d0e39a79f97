"""msgspec types made from definitions, so that checking an object's shape runs at C speed.

Two flavours of each: SHAPE knows every field and needs none; REQUIRED also insists on required fields (not under status).
A definition that contains itself falls back to "fails always", which sends its objects to the careful walk.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from insula.kinds import schemas
from insula.kinds.schemas import Schema

SHAPE = 0
REQUIRED = 1

_INT32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
_INT64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_QUANTITY = (
    Annotated[str, Meta(pattern=r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$")] | int
)
_TIME = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$")]

_made: dict[tuple[str, int], Any] = {}
_pending: set[str] = set()


class _Never(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Matches no object: what it stands for must be looked at by the careful walk."""

    never_a_field_of_anything_: int


def fast_type(name: str, flavour: int) -> Any:
    """The type to `msgspec.convert` an object of this definition to."""
    known = _made.get((name, flavour))
    if known is None:
        _pending.add(name)
        try:
            known = _made[name, flavour] = _object(schemas.get(name), name, flavour, name)
        finally:
            _pending.discard(name)
    return known


def below(name: str, seen: set[str]) -> Iterator[str]:
    """The definitions that a definition leads to, each behind those that it needs; itself last."""
    if name in seen:
        return
    seen.add(name)
    pending: list[Any] = [schemas.get(name)]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            if isinstance(target := part.get("$ref"), str):
                yield from below(target, seen)
            pending += part.values()
    yield name


def _object(schema: Schema, name: str, flavour: int, definition: str = "") -> Any:
    fields = schema.get("properties")
    if fields is None:
        values = schema.get("additionalProperties")
        if isinstance(values, Mapping):
            return dict[str, _value(values, name, flavour) | None]  # type: ignore[misc]
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return dict[str, Any]
        fields = {}
    required = set(schema.get("required", ())) if flavour == REQUIRED else set()
    members: list[Any] = []
    renames: dict[str, str] = {}
    for index, (field, each) in enumerate(sorted(fields.items(), key=lambda item: item[0] not in required)):
        safe = field if field.isidentifier() and not keyword.iskeyword(field) else f"f{index}_"
        if safe != field:
            renames[safe] = field
        below = SHAPE if field == "status" and "x-kubernetes-group-version-kind" in schema else flavour
        value = _value(each, f"{name}.{field}", below)
        members.append((safe, value) if field in required else (safe, value | None, None))
    return msgspec.defstruct(
        (definition or name).rpartition(".")[2] or "Part",
        members,
        rename=renames or None,
        forbid_unknown_fields=True,
        kw_only=True,
        gc=False,
    )


def _value(schema: Schema, name: str, flavour: int) -> Any:
    if target := schema.get("$ref"):
        if target in _pending:
            return _Never
        found = schemas.get(target)
        if found.get("type") == "object" and "properties" in found:
            return fast_type(target, flavour)
        schema, name = found, target
    if schema.get("x-kubernetes-int-or-string"):
        return _INT32 | str
    match schema.get("type"):
        case "object":
            return _object(schema, name, flavour)
        case "array":
            return list[_value(schema.get("items") or {}, name, flavour) | None]  # type: ignore[misc]
        case "string":
            return {"quantity": _QUANTITY, "date-time": _TIME, "byte": bytes}.get(str(schema.get("format")), str)
        case "integer":
            return _INT32 if schema.get("format") == "int32" else _INT64
        case "number":
            return float
        case "boolean":
            return bool
    return Any
