"""What a schema says about one place of an object: enough for patches, server-side apply and validation to walk it.

`Schema` wraps an OpenAPI or JSON schema node, follows `$ref`, and answers for the `x-kubernetes-*` extensions. It is made
once per definition and keeps its children, so that a walk over an object costs dictionary look-ups only.
Source of the rules: Kubernetes' OpenAPI extensions and structured-merge-diff.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Lookup = Callable[[str], Mapping[str, Any]]


def no_definitions(name: str) -> Mapping[str, Any]:
    """The look-up of a schema that is complete in itself (custom kinds)."""
    raise KeyError(name)


class Schema:
    """One node. `lookup` finds a definition by the last part of its `$ref`."""

    __slots__ = (
        "_fields",
        "_items",
        "_lookup",
        "_values",
        "atomic_map",
        "elements",
        "int_or_string",
        "list_keys",
        "list_type",
        "merge_key",
        "node",
        "preserve_unknown",
        "strategies",
        "types",
    )

    def __init__(self, node: Mapping[str, Any], lookup: Lookup = no_definitions) -> None:
        node = resolve(node, lookup)
        self.node = node
        self._lookup = lookup
        self._fields: dict[str, Schema | None] = {}
        self._items: Schema | None = None
        self._values: Schema | None = None
        self.elements: dict[str, tuple[str, Schema | None]] = {}
        """What `element` has found for declared fields, for walks that cannot afford the call."""
        kinds = node.get("type", ())
        self.types: frozenset[str] = frozenset((kinds,) if isinstance(kinds, str) else kinds)
        self.list_type: str = node.get("x-kubernetes-list-type", "")
        self.list_keys: tuple[str, ...] = tuple(sorted(node.get("x-kubernetes-list-map-keys", ())))
        self.atomic_map: bool = node.get("x-kubernetes-map-type") == "atomic"
        strategy: str = node.get("x-kubernetes-patch-strategy", "")
        self.strategies: frozenset[str] = frozenset(strategy.split(",")) - {""}
        self.merge_key: str = node.get("x-kubernetes-patch-merge-key", "")
        self.preserve_unknown: bool = bool(node.get("x-kubernetes-preserve-unknown-fields"))
        self.int_or_string: bool = bool(node.get("x-kubernetes-int-or-string")) or node.get("format") == "int-or-string"

    @property
    def declared(self) -> Mapping[str, Any]:
        """The named properties, as written in the schema."""
        found: Mapping[str, Any] = self.node.get("properties") or {}
        return found

    @property
    def required(self) -> tuple[str, ...]:
        """Names that must be present."""
        return tuple(self.node.get("required") or ())

    @property
    def has_default(self) -> bool:
        """Whether the schema gives a value for when the field is absent."""
        return "default" in self.node

    def field(self, name: str) -> Schema | None:
        """The schema of a field: declared, or that of any value of a map; None where nothing is known."""
        try:
            return self._fields[name]
        except KeyError:
            pass
        child = self.declared.get(name)
        found = Schema(child, self._lookup) if isinstance(child, Mapping) else self.values()
        if child is not None:
            self._fields[name] = found
        return found

    def element(self, name: str) -> tuple[str, Schema | None]:
        """A field as sets of fields name it, `f:NAME`, and its schema."""
        if name not in self.declared:
            return f"f:{name}", self.values()
        found = self.elements[name] = f"f:{name}", self.field(name)
        return found

    def is_declared(self, name: str) -> bool:
        """Whether `name` is a property of a structure rather than a key of a map."""
        return name in self.declared

    def values(self) -> Schema | None:
        """The schema of a map's values, None where it is no map of typed values."""
        if self._values is None:
            node = self.node.get("additionalProperties")
            if isinstance(node, Mapping):
                self._values = Schema(node, self._lookup)
        return self._values

    @property
    def open(self) -> bool:
        """Whether undeclared fields are values like any others: a map, or anything at all."""
        extra = self.node.get("additionalProperties")
        return self.preserve_unknown or bool(extra) or (extra is None and not self.declared)

    def items(self) -> Schema | None:
        """The schema of a list's items."""
        if self._items is None:
            node = self.node.get("items")
            if isinstance(node, Mapping):
                self._items = Schema(node, self._lookup)
        return self._items


def resolve(node: Mapping[str, Any], lookup: Lookup) -> Mapping[str, Any]:
    """Follow `$ref` (alone, beside other words, or as the one member of allOf); words beside it win over the target's."""
    for _ in range(16):
        ref = node.get("$ref")
        every = node.get("allOf")
        if isinstance(ref, str):
            target = lookup(ref.rsplit("/", 1)[-1])
            rest = {word: value for word, value in node.items() if word != "$ref"}
        elif isinstance(every, list) and len(every) == 1 and "properties" not in node:
            target = every[0]
            rest = {word: value for word, value in node.items() if word != "allOf"}
        else:
            return node
        node = {**target, **rest} if rest else target
    return node
