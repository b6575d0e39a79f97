"""Sets of fields, in the very form that Kubernetes writes them (fieldsV1), and what schemas say about objects' fields.

A node is a mapping from path elements to nodes. Elements: `f:NAME` a field or a map's key, `k:{"name":"a"}` an item of a list
of type map, `v:VALUE` an item of a set. A node without children is a member of the set; one with children is a member
if it holds ".". The root is never a member.
Source: structured-merge-diff (`fieldpath`, `typed`), whose rules of ownership these functions follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from insula.model.schema import Schema

Node = dict[str, Any]
LEAF: Node = {}
_SELF = "."
_KEY_DEFAULTS = {"protocol": "TCP"}  # the one defaulted key of the built-in kinds' lists; the schemas do not carry it


def _member(node: Node) -> bool:
    return not node or _SELF in node


def _make(member: bool, children: Node) -> Node | None:
    if not children:
        return {} if member else None
    return {_SELF: {}, **children} if member else children


def _children(node: Node) -> Iterator[tuple[str, Node]]:
    return ((name, child) for name, child in node.items() if name != _SELF)


# --- algebra ----------------------------------------------------------------------------------------------------


def union(left: Node, right: Node) -> Node:
    """Members of either."""
    merged = dict(left)
    for name, child in right.items():
        have = merged.get(name)
        merged[name] = child if have is None else _union(have, child)
    return merged


def _union(left: Node, right: Node) -> Node:
    if left == right:
        return left
    member = _member(left) or _member(right)
    merged = {name: child for name, child in union(left, right).items() if name != _SELF}
    made = _make(member, merged)
    return {} if made is None else made


def minus(left: Node, right: Node) -> Node:
    """Members of the left that are not members of the right."""
    kept = {}
    for name, child in _children(left):
        other = right.get(name)
        found = child if other is None else _make(_member(child) and not _member(other), minus(child, other))
        if found is not None:
            kept[name] = found
    return kept


def both(left: Node, right: Node) -> Node:
    """Members of both."""
    kept = {}
    for name, child in _children(left):
        other = right.get(name)
        if other is not None:
            found = _make(_member(child) and _member(other), both(child, other))
            if found is not None:
                kept[name] = found
    return kept


def without(node: Node, paths: Node) -> Node:
    """What is left after cutting off everything at and below the members of `paths`."""
    kept = {}
    for name, child in node.items():
        cut = paths.get(name)
        if cut is None or name == _SELF:
            kept[name] = child
        elif not _member(cut) and (rest := without(child, cut)):
            kept[name] = rest
    return kept


def paths(node: Node, prefix: str = "") -> Iterator[str]:
    """Each member as kubectl prints it: `.spec.containers[name="web"].image`."""
    for name, child in _children(node):
        here = prefix + _shown(name)
        if _member(child):
            yield here
        yield from paths(child, here)


def _shown(element: str) -> str:
    form, _, rest = element.partition(":")
    if form == "k":
        keys = msgspec.json.decode(rest)
        return f"[{','.join(f'{key}={_text(value)}' for key, value in keys.items())}]"
    return f".{rest}" if form == "f" else f"[={rest}]"


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


# --- objects ----------------------------------------------------------------------------------------------------


def item_element(schema: Schema, item: Any) -> str | None:
    """The path element of an item of a list of type map or set; None for an item without its keys."""
    if schema.list_type == "set":
        return f"v:{_text(item)}"
    if not isinstance(item, dict):
        return None
    keys = {}
    for name in schema.list_keys:
        value = item.get(name)
        if value is None and (value := _default_of(schema, name)) is None:
            continue
        keys[name] = value
    return f"k:{_text(keys)}" if keys else None


def _default_of(schema: Schema, name: str) -> Any:
    element = schema.items()
    field = element.field(name) if element else None
    if field is not None and field.has_default:
        return field.node["default"]
    return _KEY_DEFAULTS.get(name)


def by_element(schema: Schema, items: list[Any]) -> dict[str, Any] | None:
    """A list of type map or set by its items' elements; None for one with doubles or items without keys: then it is treated
    as one value."""
    found: dict[str, Any] = {}
    for item in items:
        element = item_element(schema, item)
        if element is None or element in found:
            return None
        found[element] = item
    return found


def is_keyed(schema: Schema | None, value: Any) -> bool:
    """Whether a list is merged item by item."""
    return schema is not None and isinstance(value, list) and schema.list_type in ("map", "set")


def is_granular(schema: Schema | None, value: Any) -> bool:
    """Whether a mapping is owned field by field."""
    return isinstance(value, dict) and not (schema is not None and schema.atomic_map)


def of_object(value: Node, schema: Schema | None) -> Node:
    """The fields that a configuration names: what an apply owns."""
    found: Node = {}
    for name, child in value.items():
        node = _of_value(child, schema.field(name) if schema else None)
        if node is None:
            continue
        inner = isinstance(child, dict) and bool(node)
        if inner and (schema is None or not schema.is_declared(name)):
            node = {_SELF: {}, **node}
        found[f"f:{name}"] = node
    return found


def _of_value(value: Any, schema: Schema | None) -> Node | None:
    if value is None:
        return None
    if is_granular(schema, value):
        return of_object(value, schema)
    if schema is None or not is_keyed(schema, value):
        return LEAF
    items = by_element(schema, value)
    if items is None:
        return LEAF
    if not items:
        return None
    element = schema.items()
    found: Node = {}
    for name, item in items.items():
        below = of_object(item, element) if isinstance(item, dict) and schema.list_type == "map" else {}
        found[name] = {_SELF: {}, **below} if below else {}
    return found


def everything(value: Any, schema: Schema | None) -> Node:
    """A value with all its inner nodes: how a field that appears or disappears counts."""
    below: Node
    if isinstance(value, dict):
        if schema is not None and schema.atomic_map:
            return LEAF
        below = {_SELF: LEAF, **inside(value, schema)}
    elif isinstance(value, list) and schema is not None and is_keyed(schema, value):
        of_items, deep = schema.items(), schema.list_type == "map"
        below = {_SELF: LEAF}
        for name, item in (by_element(schema, value) or {}).items():
            below[name] = everything(item, of_items) if deep else LEAF
    else:
        return LEAF
    return below if len(below) > 1 else LEAF


def element(schema: Schema | None, name: str) -> tuple[str, Schema | None]:
    """The path element of a field, and its schema where one is known."""
    if schema is None:
        return f"f:{name}", None
    return schema.elements.get(name) or schema.element(name)


def inside(value: Node, schema: Schema | None) -> Node:
    """The fields of a mapping with all their inner nodes; null counts as absent."""
    found: Node = {}
    for name, child in value.items():
        if child is None:
            continue
        label, inner = element(schema, name)
        found[label] = everything(child, inner) if isinstance(child, (dict, list)) else LEAF
    return found


class Difference:
    """How one object came from another: sets of fields added, modified, removed."""

    __slots__ = ("added", "modified", "removed")

    def __init__(self) -> None:
        self.added: Node = {}
        self.modified: Node = {}
        self.removed: Node = {}

    def __bool__(self) -> bool:
        return bool(self.added or self.modified or self.removed)

    @property
    def written(self) -> Node:
        """Added or modified."""
        return union(self.added, self.modified)

    def _below(self, element: str, other: Difference) -> None:
        for mine, theirs in (
            (self.added, other.added),
            (self.modified, other.modified),
            (self.removed, other.removed),
        ):
            if theirs:
                mine[element] = theirs

    def maps(self, old: Node, new: Node, schema: Schema | None) -> None:
        """Compare two mappings field by field; null counts as absent."""
        for name in old.keys() | new.keys():
            before, after = old.get(name), new.get(name)
            if before is after or before == after:
                continue
            self._values(f"f:{name}", before, after, schema.field(name) if schema else None)

    def _values(self, element: str, before: Any, after: Any, schema: Schema | None) -> None:
        if before is None:
            self.added[element] = everything(after, schema)
        elif after is None:
            self.removed[element] = everything(before, schema)
        elif is_granular(schema, before) and is_granular(schema, after):
            below = Difference()
            below.maps(before, after, schema)
            self._below(element, below)
        elif schema is not None and is_keyed(schema, before) and is_keyed(schema, after):
            self._lists(element, before, after, schema)
        else:
            self.modified[element] = {}

    def _lists(self, element: str, before: list[Any], after: list[Any], schema: Schema) -> None:
        old, new = by_element(schema, before), by_element(schema, after)
        if old is None or new is None:
            self.modified[element] = {}
            return
        below, item_schema = Difference(), schema.items()
        for name in old.keys() | new.keys():
            if old.get(name) != new.get(name):
                below._values(name, old.get(name), new.get(name), item_schema)
        self._below(element, below)


def difference(old: Node, new: Node, schema: Schema | None) -> Difference:
    """Compare two objects by their schema."""
    found = Difference()
    found.maps(old, new, schema)
    return found
