"""A short way to write structural schemas (the OpenAPI subset of CustomResourceDefinition v1) with their descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Shape = dict[str, Any]

_QUANTITY = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)


def text(description: str, *, one_of: Sequence[str] = ()) -> Shape:
    """A string."""
    return {"type": "string", "description": description} | ({"enum": list(one_of)} if one_of else {})


def whole(description: str, *, least: int | None = None, wide: bool = False) -> Shape:
    """An integer."""
    shape: Shape = {"type": "integer", "format": "int64" if wide else "int32", "description": description}
    return shape if least is None else {**shape, "minimum": least}


def switch(description: str) -> Shape:
    """A boolean."""
    return {"type": "boolean", "description": description}


def quantity(description: str) -> Shape:
    """A Kubernetes quantity."""
    return {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": _QUANTITY,
        "x-kubernetes-int-or-string": True,
        "description": description,
    }


def record(description: str, *required: str, **fields: Shape) -> Shape:
    """An object with known fields. A field named like a Python word is written with a trailing underscore."""
    known = {name.rstrip("_"): shape for name, shape in fields.items()}
    shape: Shape = {"type": "object", "description": description, "properties": known}
    return shape | ({"required": list(required)} if required else {})


def with_fields(shape: Shape, fields: Mapping[str, Shape]) -> Shape:
    """A record with more fields."""
    return {**shape, "properties": {**shape["properties"], **fields}}


def free(description: str) -> Shape:
    """An object of any fields."""
    return {"type": "object", "description": description, "x-kubernetes-preserve-unknown-fields": True}


def words(description: str) -> Shape:
    """A map of strings."""
    return {"type": "object", "description": description, "additionalProperties": {"type": "string"}}


def many(description: str, element: Shape, *, key: str = "") -> Shape:
    """A list; with `key` its elements are told apart by that field, so that applies merge them."""
    shape: Shape = {"type": "array", "description": description, "items": element}
    return shape | ({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]} if key else {})


def strings(description: str) -> Shape:
    """A list of strings."""
    return many(description, {"type": "string"})


CONDITIONS = many(
    "What is currently true of it.",
    record(
        "One condition.",
        "type",
        "status",
        type=text("Type of the condition."),
        status=text("True, False or Unknown."),
        reason=text("A word for programs."),
        message=text("A sentence for people."),
        lastProbeTime={**text("When it was last looked at."), "nullable": True},
        lastTransitionTime={**text("When its status last changed."), "nullable": True},
    ),
)

METADATA: Shape = {
    "type": "object",
    "description": "Labels and annotations that the made object gets.",
    "x-kubernetes-preserve-unknown-fields": True,
}


def root(description: str, spec: Shape, status: Shape) -> Shape:
    """A kind's whole schema."""
    return record(
        description,
        "spec",
        apiVersion=text("Versioned schema of this representation of an object."),
        kind=text("The kind of this object."),
        metadata={"type": "object", "description": "Standard object metadata."},
        spec=spec,
        status=status,
    )
