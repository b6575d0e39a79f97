"""Server-side apply: lay a configuration over a live object by its schema, and drop what its manager no longer names.

Source: structured-merge-diff's `merge` and its order of list items.
"""

from __future__ import annotations

from typing import Any

from insula.model.patch.fieldset import Node, by_element, is_granular, is_keyed
from insula.model.schema import Schema

_SELF = "."


def merge(live: Node, config: Node, schema: Schema | None) -> Node:
    """A new mapping: the live one with the configuration's fields. Null in a configuration removes. Parts are shared."""
    merged = dict(live)
    for name, value in config.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _value(live.get(name), value, schema.field(name) if schema else None)
    return merged


def _value(live: Any, config: Any, schema: Schema | None) -> Any:
    if is_granular(schema, config):
        return merge(live if isinstance(live, dict) else {}, config, schema)
    if schema is not None and is_keyed(schema, config) and isinstance(live, list):
        return _list(live, config, schema)
    return config


def _list(live: list[Any], config: list[Any], schema: Schema) -> list[Any]:
    left, right = by_element(schema, live), by_element(schema, config)
    if left is None or right is None:
        return config
    element = schema.items()
    return [
        _value(left[name], right[name], element) if name in left and name in right else right.get(name, left.get(name))
        for name in interleave(list(left), list(right))
    ]


def interleave(left: list[str], right: list[str]) -> list[str]:
    """All of both. The right's order rules; items of the left alone keep their place between their neighbours."""
    in_left, in_right = set(left), set(right)
    shared = [name for name in right if name in in_left]
    result: list[str] = []
    at = 0
    for name in right:
        while at < len(left) and (left[at] not in in_right or (shared and left[at] != shared[0])):
            if left[at] not in in_right:
                result.append(left[at])
            at += 1
        result.append(name)
        if shared and shared[0] == name:
            shared.pop(0)
            if at < len(left) and left[at] == name:
                at += 1
    return result + [name for name in left[at:] if name not in in_right]


def prune(merged: Node, schema: Schema | None, last: Node, owned: Node) -> Node:
    """A new mapping without the fields that `last` (what the manager applied before) holds and `owned` (what anybody owns
    now) does not. A structure that loses its last field goes with it."""
    kept = dict(merged)
    for element, node in last.items():
        name = element[2:]
        if element == _SELF or not element.startswith("f:") or name not in kept:
            continue
        declared = schema is not None and schema.is_declared(name)
        field = schema.field(name) if schema else None
        pruned = _pruned(kept[name], field, node, owned.get(element), declared=declared)
        if pruned is None:
            del kept[name]
        else:
            kept[name] = pruned
    return kept


def _pruned(value: Any, schema: Schema | None, last: Node, owned: Node | None, *, declared: bool) -> Any:
    """The value with less in it; None when it goes altogether."""
    was_named = not last or _SELF in last or declared
    still_named = owned is not None and (not owned or _SELF in owned or declared)
    if was_named and not still_named:
        return None
    owned = owned or {}
    if is_granular(schema, value):
        pruned = prune(value, schema, last, owned)
        return pruned if pruned or still_named or not value else None
    if schema is None or not is_keyed(schema, value):
        return value
    items = by_element(schema, value)
    if items is None:
        return value
    kept = []
    for element, item in items.items():
        node = last.get(element)
        left = item if node is None else _pruned(item, schema.items(), node, owned.get(element), declared=False)
        if left is not None:
            kept.append(left)
    return kept if kept or still_named or not value else None
