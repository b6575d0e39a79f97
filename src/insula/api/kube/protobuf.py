"""Protobuf request bodies as Go clients send them, turned into the plain values of the same object in JSON. Pure and bounded.

A body is the four bytes `k8s\\0` and a message `runtime.Unknown`: 1 type meta (1 apiVersion, 2 kind), 2 the object's own message.
Field numbers come from `protobuf_fields.json` (made by tools/protobuf_table.py). Go writes every field that is not a pointer,
also when it is zero; such zeros are left out here, as Go's JSON leaves them out. Unknown fields are skipped, as protobuf demands.

Source: apimachinery `runtime/serializer/protobuf`, the protobuf wire format (proto2).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from msgspec import Struct

from insula.api.kube.errors import UnsupportedMediaType
from insula.clock import rfc3339, rfc3339_micro
from insula.errors import Invalid
from insula.kinds.builtin import definition_name
from insula.model.protobuf import Value, fields, signed, text, varint

MAGIC = b"k8s\x00"
_DEPTH_LIMIT = 64
_VALUE_LIMIT = 500_000
_PREFIXES = (
    "io.k8s.api.",
    "io.k8s.apiextensions-apiserver.pkg.apis.",
    "io.k8s.kube-aggregator.pkg.apis.",
)
_META_KINDS = frozenset(
    {"DeleteOptions", "CreateOptions", "UpdateOptions", "PatchOptions", "GetOptions", "ListOptions", "Status"}
)


class _Field(Struct, frozen=True):
    name: str
    type: str
    mark: str  # "", "*" repeated, "%" map, "+" embedded, "?" pointer


@cache
def _table() -> dict[str, list[tuple[int, str, str]]]:
    data = (files("insula.api.kube") / "protobuf_fields.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, list[tuple[int, str, str]]])


@cache
def _fields(message: str) -> dict[int, _Field] | None:
    rows = _table().get(message)
    if rows is None:
        return None
    return {
        number: _Field(name, type_.lstrip("*%+?"), type_[0] if type_[0] in "*%+?" else "")
        for number, name, type_ in rows
    }


def message_name(api_version: str, kind: str) -> str:
    """The table's name of a kind's message: `core.v1.Pod`."""
    if kind in _META_KINDS:
        return f"meta.v1.{kind}"
    group, _, version = api_version.rpartition("/")
    name = definition_name(group, version, kind)
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def decode_object(data: bytes) -> dict[str, Any]:
    """The object in a body. Raises Invalid for what is malformed, UnsupportedMediaType for a kind without a table."""
    if not data.startswith(MAGIC):
        raise Invalid("provided data does not appear to be a protobuf message, expected prefix k8s\\0")
    api_version = kind = ""
    raw = b""
    for number, value in fields(memoryview(data)[4:]):
        if number == 1 and isinstance(value, memoryview):
            for inner, part in fields(value):
                if inner == 1:
                    api_version = text(part)
                elif inner == 2:
                    kind = text(part)
        elif number == 2 and isinstance(value, memoryview):
            raw = bytes(value)
    name = message_name(api_version, kind)
    if _fields(name) is None:
        raise UnsupportedMediaType(
            f"{kind or 'an object'} of {api_version or 'no version'} is not known in protobuf here: send it as application/json"
        )
    return {"apiVersion": api_version, "kind": kind, **_Reader().message(name, memoryview(raw), 0)}


# --- values ---------------------------------------------------------------------------------------------------------


def _scalar(type_: str, value: Value) -> Any:
    match type_:
        case "string":
            return text(value)
        case "bytes":
            if not isinstance(value, memoryview):
                raise Invalid("protobuf: a number where bytes belong")
            return base64.b64encode(value).decode()
        case "double":
            if not isinstance(value, memoryview) or len(value) != 8:
                raise Invalid("protobuf: a fraction of the wrong size")
            return struct.unpack("<d", value)[0]
    if not isinstance(value, int):
        raise Invalid(f"protobuf: {type_} of the wrong wire type")
    return bool(value) if type_ == "bool" else signed(value)


_SCALARS = frozenset({"string", "bytes", "bool", "int32", "int64", "uint32", "uint64", "double"})


class _Reader:
    """Reads messages, counting what it makes."""

    def __init__(self) -> None:
        self._left = _VALUE_LIMIT

    def message(self, name: str, data: memoryview, depth: int) -> dict[str, Any]:
        """One message as an object."""
        known = _fields(name)
        if known is None:
            raise UnsupportedMediaType(f"{name} is not known in protobuf here: send the object as application/json")
        if depth > _DEPTH_LIMIT:
            raise Invalid("protobuf: nested too deeply")
        out: dict[str, Any] = {}
        for number, value in fields(data):
            self._left -= 1
            if self._left < 0:
                raise Invalid("protobuf: too many values")
            if (field := known.get(number)) is not None:
                self._put(out, field, value, depth)
        return out

    def _put(self, out: dict[str, Any], field: _Field, value: Value, depth: int) -> None:
        match field.mark:
            case "*":
                if field.type in _SCALARS and field.type not in ("string", "bytes") and isinstance(value, memoryview):
                    out.setdefault(field.name, []).extend(_packed(field.type, value))
                else:
                    out.setdefault(field.name, []).append(self._one(field.type, value, depth))
            case "%":
                key, inner = self._entry(field.type, value, depth)
                out.setdefault(field.name, {})[key] = inner
            case "+":
                out.update(self._one(field.type, value, depth))
            case mark:
                found = self._one(field.type, value, depth)
                if found is not None and (mark == "?" or found or isinstance(found, dict)):
                    out[field.name] = found

    def _one(self, type_: str, value: Value, depth: int) -> Any:
        if type_ in _SCALARS:
            return _scalar(type_, value)
        if not isinstance(value, memoryview):
            raise Invalid(f"protobuf: a number where {type_} belongs")
        special = _SPECIAL.get(type_)
        return special(self, value, depth) if special else self.message(type_, value, depth + 1)

    def _entry(self, type_: str, value: Value, depth: int) -> tuple[str, Any]:
        if not isinstance(value, memoryview):
            raise Invalid("protobuf: a number where a map entry belongs")
        key, found = "", _EMPTY.get(type_, {})
        for number, part in fields(value):
            if number == 1:
                key = text(part)
            elif number == 2:
                found = self._one(type_, part, depth)
        return key, found


_EMPTY: dict[str, Any] = {"string": "", "bytes": "", "bool": False, "int32": 0, "int64": 0, "resource.Quantity": "0"}


def _packed(type_: str, data: memoryview) -> Iterator[Any]:
    at = 0
    while at < len(data):
        value, at = varint(data, at)
        yield _scalar(type_, value)


# --- types with a JSON form of their own -------------------------------------------------------------------------------

_Special = Callable[[_Reader, memoryview, int], Any]


def _numbers(data: memoryview) -> dict[int, Value]:
    return dict(fields(data))


def _moment(data: memoryview) -> datetime | None:
    if not len(data):
        return None
    parts = _numbers(data)
    seconds, nanos = parts.get(1, 0), parts.get(2, 0)
    if not isinstance(seconds, int) or not isinstance(nanos, int):
        raise Invalid("protobuf: a time of the wrong wire type")
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=signed(seconds), microseconds=signed(nanos) // 1000)
    except OverflowError:
        raise Invalid("protobuf: a time out of range") from None


def _time(_: _Reader, data: memoryview, _depth: int) -> str | None:
    moment = _moment(data)
    return None if moment is None else rfc3339(moment)


def _micro_time(_: _Reader, data: memoryview, _depth: int) -> str | None:
    moment = _moment(data)
    return None if moment is None else rfc3339_micro(moment)


def _quantity(_: _Reader, data: memoryview, _depth: int) -> str:
    return text(_numbers(data).get(1, memoryview(b"0")))


def _int_or_string(_: _Reader, data: memoryview, _depth: int) -> int | str:
    parts = _numbers(data)
    if parts.get(1, 0) == 1:
        return text(parts.get(3, memoryview(b"")))
    number = parts.get(2, 0)
    return signed(number) if isinstance(number, int) else 0


def _json(_: _Reader, data: memoryview, _depth: int) -> Any:
    raw = _numbers(data).get(1, memoryview(b""))
    if not isinstance(raw, memoryview) or not len(raw):
        return None
    text = bytes(raw)
    if text.startswith(MAGIC):
        return decode_object(text)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as fault:
        raise Invalid(f"protobuf: a JSON part that is not JSON: {fault}") from None


def _items(_: _Reader, data: memoryview, _depth: int) -> list[str]:
    return [text(value) for number, value in fields(data) if number == 1]


def _duration(_: _Reader, data: memoryview, _depth: int) -> str:
    nanoseconds = _numbers(data).get(1, 0)
    seconds = signed(nanoseconds) / 1e9 if isinstance(nanoseconds, int) else 0
    return f"{seconds:g}s"


def _schema_or(other: str) -> _Special:
    """JSONSchemaPropsOrBool, OrArray, OrStringArray: a schema in field 1 or 2, else the other thing."""

    def read(reader: _Reader, data: memoryview, depth: int) -> Any:
        several: list[Any] = []
        allows: Any = None
        schema: Any = None
        for number, value in fields(data):
            if isinstance(value, int):
                allows = bool(value)
            elif other == "bool" or number == 1:
                schema = reader.message("apiextensions.v1.JSONSchemaProps", value, depth + 1)
            elif other == "array":
                several.append(reader.message("apiextensions.v1.JSONSchemaProps", value, depth + 1))
            else:
                several.append(text(value))
        return schema if schema is not None else several if other != "bool" else allows

    return read


_SPECIAL: dict[str, _Special] = {
    "meta.v1.Time": _time,
    "meta.v1.MicroTime": _micro_time,
    "meta.v1.Duration": _duration,
    "meta.v1.FieldsV1": _json,
    "meta.v1.Verbs": _items,
    "resource.Quantity": _quantity,
    "intstr.IntOrString": _int_or_string,
    "runtime.RawExtension": _json,
    "apiextensions.v1.JSON": _json,
    "apiextensions.v1.JSONSchemaPropsOrBool": _schema_or("bool"),
    "apiextensions.v1.JSONSchemaPropsOrArray": _schema_or("array"),
    "apiextensions.v1.JSONSchemaPropsOrStringArray": _schema_or("strings"),
    "authentication.v1.ExtraValue": _items,
    "authorization.v1.ExtraValue": _items,
    "certificates.v1.ExtraValue": _items,
}
