"""Strategic merge patch: a merge patch that knows, from the schema, which lists are merged by which key.

Directives, as Kubernetes defines them: `$patch: replace|delete|merge` in a map or a list's item, `$retainKeys: [...]` in a map,
`$deleteFromPrimitiveList/FIELD: [...]` and `$setElementOrder/FIELD: [...]` beside a list field.
Source: "Strategic Merge Patch" in sig-api-machinery's docs and apimachinery's `strategicpatch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from insula.errors import Invalid
from insula.model.schema import Schema

_PATCH = "$patch"
_RETAIN = "$retainKeys"
_DELETE = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"


def apply(original: dict[str, Any], patch: Any, schema: Schema | None) -> dict[str, Any]:
    """The object after the patch. `original` may be changed, parts of `patch` become part of it. Raises Invalid."""
    if not isinstance(patch, dict):
        raise Invalid("a strategic merge patch must be an object", field="patch")
    return _map(original, patch, schema)


def _map(original: dict[str, Any], patch: dict[str, Any], schema: Schema | None) -> dict[str, Any]:
    match patch.get(_PATCH):
        case "replace":
            return {name: value for name, value in patch.items() if name != _PATCH}
        case "delete":
            return {}
        case None | "merge":
            pass
        case other:
            raise Invalid(f"Unknown patch type found: {other!r}", field=_PATCH)
    if _RETAIN in patch:
        _retain(original, patch)
    for name, value in patch.items():
        if name in (_RETAIN, _PATCH) or name.startswith((_DELETE, _ORDER)):
            continue
        if value is None:
            original.pop(name, None)
            continue
        _field(original, name, value, schema.field(name) if schema else None, patch)
    _parallel(original, patch, schema)
    return original


def _retain(original: dict[str, Any], patch: dict[str, Any]) -> None:
    keep = patch[_RETAIN]
    if not isinstance(keep, list):
        raise Invalid("$retainKeys must be a list of names", field=_RETAIN)
    for name, value in patch.items():
        if not name.startswith("$") and value is not None and name not in keep:
            raise Invalid(
                "incorrectly formatted patch: the keys in the retainKeys list do not contain all the keys of the patch",
                field=_RETAIN,
            )
    for name in [name for name in original if name not in keep]:
        del original[name]


def _field(original: dict[str, Any], name: str, value: Any, schema: Schema | None, patch: dict[str, Any]) -> None:
    have = original.get(name)
    strategies = schema.strategies if schema else frozenset()
    if isinstance(value, dict):
        if "replace" in strategies:
            original[name] = value
        else:
            original[name] = _map(have if isinstance(have, dict) else {}, value, schema)
    elif isinstance(value, list) and "merge" in strategies and schema is not None:
        present = have if isinstance(have, list) else []
        original[name] = _list(present, value, schema, patch.get(_ORDER + name))
    else:
        original[name] = value


def _parallel(original: dict[str, Any], patch: dict[str, Any], schema: Schema | None) -> None:
    """The directives that stand beside a list instead of in it."""
    for name, value in patch.items():
        if name.startswith(_DELETE):
            field = name.removeprefix(_DELETE)
            if isinstance(have := original.get(field), list) and isinstance(value, list):
                original[field] = _ordered_by(
                    [item for item in have if item not in value], have, patch.get(_ORDER + field), _itself
                )
        elif name.startswith(_ORDER) and (field := name.removeprefix(_ORDER)) not in patch:
            have = original.get(field)
            if isinstance(have, list):
                child = schema.field(field) if schema else None
                original[field] = _ordered_by(have, have, value, _key_by(child.merge_key if child else ""))


def _itself(item: Any) -> Any:
    return item


def _key_by(merge_key: str) -> Callable[[Any], Any]:
    if not merge_key:
        return _itself
    return lambda item: item.get(merge_key) if isinstance(item, dict) else item


def _list(original: list[Any], patch: list[Any], schema: Schema, order: Any) -> list[Any]:
    if not schema.merge_key:
        merged = original + [
            item for index, item in enumerate(patch) if item not in original and item not in patch[:index]
        ]
        return _ordered_by(merged, original, order, _itself)
    return _list_of_maps(original, patch, schema, order)


def _list_of_maps(original: list[Any], patch: list[Any], schema: Schema, order: Any) -> list[Any]:
    key, element = schema.merge_key, schema.items()
    for item in patch:
        if not isinstance(item, dict):
            raise Invalid(f"a list that is merged by {key!r} must hold objects, not {item!r}", field="patch")
    if any(item.get(_PATCH) == "replace" for item in patch):
        return [_plain(item) for item in patch if _PATCH not in item]
    doomed = [_value(item, key) for item in patch if item.get(_PATCH) == "delete"]
    merged = [item for item in original if not (isinstance(item, dict) and item.get(key) in doomed)]
    for item in patch:
        if item.get(_PATCH) == "delete":
            continue
        _merge_item(merged, item, _value(item, key), key, element)
    return _ordered_by(merged, original, order, _key_by(key))


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if not name.startswith("$")}


def _value(item: dict[str, Any], key: str) -> Any:
    if key not in item:
        raise Invalid(f"map: {item} does not contain declared merge key: {key}", field=key)
    return item[key]


def _merge_item(merged: list[Any], item: dict[str, Any], value: Any, key: str, element: Schema | None) -> None:
    for index, have in enumerate(merged):
        if isinstance(have, dict) and have.get(key) == value:
            merged[index] = _map(have, item, element)
            return
    merged.append(_map({}, item, element))


def _ordered_by(merged: list[Any], server: Sequence[Any], order: Any, key: Callable[[Any], Any]) -> list[Any]:
    """Bring the merged list into the client's order; items that the client does not know keep their place among the
    others as the server had them."""
    if not isinstance(order, list):
        return merged
    wanted = [key(item) for item in order]
    known = [key(item) for item in server]
    mine = sorted((item for item in merged if key(item) in wanted), key=lambda item: wanted.index(key(item)))
    theirs = [item for item in merged if key(item) not in wanted]
    result: list[Any] = []
    while mine and theirs:
        left, right = key(theirs[0]), key(mine[0])
        before = left in known and right in known and known.index(left) < known.index(right)
        result.append(theirs.pop(0) if before else mine.pop(0))
    return result + mine + theirs
