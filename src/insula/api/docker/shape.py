"""Client JSON into records, forgiving what Go's decoder forgives and no more.

Go takes null for "absent", and matches a field's name without regard to case when no exact one is there; Docker clients rely
on both (docker-py sends many nulls). Unknown fields are ignored, wrong types are refused by name.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, TypeVar, Union, get_args, get_origin

import msgspec

from insula.errors import Invalid

T = TypeVar("T")
_Tidy = Callable[[Any], Any]
_ZERO: dict[Any, Any] = {str: "", int: 0, bool: False, list: [], dict: {}}


def shape(raw: dict[str, Any], kind: type[T]) -> T:
    """A record out of a JSON object. Raises Invalid naming the field."""
    try:
        return msgspec.convert(_record(kind)(raw), kind)
    except msgspec.ValidationError as fault:
        raise Invalid(_blame(str(fault))) from fault


def _blame(message: str) -> str:
    what, at, path = message.partition(" - at `$")
    what = what.replace("`", "")
    where = path.rstrip("`").removeprefix(".")
    return f"invalid JSON: {where}: {what[:1].lower()}{what[1:]}" if at and where else f"invalid JSON: {what}"


_records: dict[Any, _Tidy] = {}


def _record(kind: Any) -> _Tidy:
    """Made once per record type."""
    if kind in _records:
        return _records[kind]
    fields = {each.encode_name: _tidier(each.type) for each in msgspec.structs.fields(kind)}
    lower = {name.lower(): name for name in fields}

    def tidy(raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        found = {}
        for name, value in raw.items():
            if value is None:
                continue
            if name not in fields:
                name = lower.get(name.lower(), name)
            inner = fields.get(name)
            found[name] = value if inner is None else inner(value)
        return found

    _records[kind] = tidy
    return tidy


def _tidier(kind: Any) -> _Tidy | None:
    """How values of a type are tidied; None leaves them."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return next(filter(None, map(_tidier, get_args(kind))), None)
    if origin is dict:
        return _mapping(get_args(kind)[1])
    if origin is list:
        return _list(get_args(kind)[0])
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _record(kind)
    return None


def _mapping(value_kind: Any) -> _Tidy:
    inner = _tidier(value_kind)
    zero = _ZERO.get(get_origin(value_kind) or value_kind, {})

    def tidy(raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return {key: zero if each is None else inner(each) if inner else each for key, each in raw.items()}

    return tidy


def _list(item_kind: Any) -> _Tidy | None:
    inner = _tidier(item_kind)
    if inner is None:
        return None
    return lambda raw: [inner(each) for each in raw] if isinstance(raw, list) else raw
