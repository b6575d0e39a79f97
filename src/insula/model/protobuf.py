"""The protobuf wire format (proto3), and messages as frozen records whose fields carry their numbers. Pure and bounded.

    class Packet(Struct, frozen=True):
        type: Annotated[int, 1] = 0
        stat: Annotated[Stat | None, 2] = None
        data: Annotated[bytes, 4] = b""

`encode` leaves out what equals the default of its type, `decode` skips fields that it does not know, as proto3 demands. Field
types are str, bytes, bool, int (varints; negative numbers are 64 bits wide), Struct | None, tuple[T, ...], and Mapping[str, T].

Source: protobuf's encoding page (wire types 0, 1, 2, 5).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from msgspec import Struct

from insula.errors import Invalid

T = TypeVar("T", bound=Struct)
Value = int | memoryview
DEPTH_LIMIT = 64
_MASK = (1 << 64) - 1


# --- the wire -----------------------------------------------------------------------------------------------------


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at a place and where the next thing begins. Raises Invalid."""
    result = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Invalid("protobuf: unexpected end of a number")
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & _MASK, at
        shift += 7


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and raw value of each field. Raises Invalid for what is malformed, and for groups, which proto3 does not have."""
    at, end = 0, len(data)
    while at < end:
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: Value
        match wire:
            case 0:
                value, at = varint(data, at)
            case 2:
                size, at = varint(data, at)
                value, at = data[at : at + size], at + size
            case 1 | 5:
                size = 8 if wire == 1 else 4
                value, at = data[at : at + size], at + size
            case _:
                raise Invalid(f"protobuf: wire type {wire} is not known")
        if at > end or number == 0:
            raise Invalid("protobuf: a field goes beyond the end of its message")
        yield number, value


def text(value: Value) -> str:
    """A string. Raises Invalid."""
    if not isinstance(value, memoryview):
        raise Invalid("protobuf: a number where text belongs")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise Invalid("protobuf: text that is not UTF-8") from None


def signed(value: int) -> int:
    """A 64 bit number in two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def put_varint(value: int) -> bytes:
    """A number, negative ones in two's complement."""
    value &= _MASK
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _sized(tag: bytes, payload: bytes) -> bytes:
    return tag + put_varint(len(payload)) + payload


# --- messages -----------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    name: str
    number: int
    shape: str  # one, many, map
    kind: type


@cache
def _plans(kind: type[Struct]) -> tuple[_Plan, ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple(_plan(name, hints[name]) for name in kind.__struct_fields__)


@cache
def _by_number(kind: type[Struct]) -> dict[int, _Plan]:
    return {plan.number: plan for plan in _plans(kind)}


def _plan(name: str, hint: Any) -> _Plan:
    if get_origin(hint) is not Annotated:
        raise TypeError(f"{name}: a protobuf field needs its number: Annotated[TYPE, NUMBER]")
    inner, number = get_args(hint)
    origin = get_origin(inner)
    if origin is tuple:
        return _Plan(name, number, "many", get_args(inner)[0])
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return _Plan(name, number, "map", get_args(inner)[1])
    if origin in (Union, types.UnionType):
        inner = next(each for each in get_args(inner) if each is not type(None))
    return _Plan(name, number, "one", inner)


def encode(message: Struct) -> bytes:
    """The message's bytes."""
    out = bytearray()
    for plan in _plans(type(message)):
        value = getattr(message, plan.name)
        if plan.shape == "many":
            for each in value:
                out += _put(plan.number, each)
        elif plan.shape == "map":
            for key, each in value.items():
                out += _sized(put_varint(plan.number << 3 | 2), _put(1, key) + _put(2, each))
        elif value or isinstance(value, Struct):
            out += _put(plan.number, value)
    return bytes(out)


def _put(number: int, value: Any) -> bytes:
    if isinstance(value, int):
        return put_varint(number << 3) + put_varint(int(value))
    tag = put_varint(number << 3 | 2)
    if isinstance(value, str):
        return _sized(tag, value.encode("utf-8", "replace"))
    return _sized(tag, encode(value) if isinstance(value, Struct) else value)


def decode(data: bytes | memoryview, kind: type[T], depth: int = 0) -> T:
    """A message of a kind. Raises Invalid for what is malformed or of another type."""
    if depth > DEPTH_LIMIT:
        raise Invalid("protobuf: nested too deeply")
    plans, found = _by_number(kind), dict[str, Any]()
    for number, value in fields(memoryview(data)):
        plan = plans.get(number)
        if plan is None:
            continue
        if plan.shape == "one":
            found[plan.name] = _take(plan.kind, value, depth)
        elif plan.shape == "map":
            key, each = _entry(plan.kind, value, depth)
            found.setdefault(plan.name, {})[key] = each
        elif plan.kind is int and isinstance(value, memoryview):
            found.setdefault(plan.name, []).extend(_packed(value))
        else:
            found.setdefault(plan.name, []).append(_take(plan.kind, value, depth))
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def _bytes(value: Value) -> bytes:
    if not isinstance(value, memoryview):
        raise Invalid("protobuf: a number where bytes belong")
    return bytes(value)


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise Invalid("protobuf: bytes where a number belongs")
    return signed(value)


_SCALARS: dict[type, Callable[[Value], Any]] = {
    str: text,
    bytes: _bytes,
    int: _number,
    bool: lambda value: bool(_number(value)),
}


def _take(kind: type, value: Value, depth: int) -> Any:
    scalar = _SCALARS.get(kind)
    if scalar is not None:
        return scalar(value)
    if not isinstance(value, memoryview):
        raise Invalid("protobuf: a number where a message belongs")
    return decode(value, kind, depth + 1)


def _entry(kind: type, value: Value, depth: int) -> tuple[str, Any]:
    """One entry of a map; a part that is left out has the default of its type."""
    key, found = "", memoryview(b"") if kind not in (int, bool) else 0
    for number, part in fields(memoryview(_bytes(value))):
        if number == 1:
            key = text(part)
        elif number == 2:
            found = part
    return key, _take(kind, found, depth)


def _packed(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = varint(data, at)
        yield signed(value)
