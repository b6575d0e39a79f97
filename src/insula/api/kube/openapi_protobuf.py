"""The OpenAPI v2 document in protobuf, the only form in which kubectl reads it. Pure.

kubectl validates a `kind: List`, and explains with `--output=plaintext-openapiv2`, from this form alone. Messages and field
numbers are those of gnostic's `openapiv2.Document`; values without a message of their own (defaults, enumerations, extensions)
travel as YAML text, for which JSON will do. What version 2 has no word for (`anyOf`, `nullable`) is left out, as the
document's readers would refuse it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

MEDIA_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
ASKED_AS = (MEDIA_TYPE, "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")
"""Clients ask with an @, which RFC 2045 does not allow in a type: an answer that repeated it would not be read."""
_EXTENSION = "x-"

_Writer = Callable[[Any], bytes]
_Rows = Mapping[str, tuple[int, _Writer]]

_VARINT, _FIXED64, _BYTES = 0, 1, 2


def document(spec: Mapping[str, Any]) -> bytes:
    """A whole document from its JSON form, in which definitions may still be text. Takes a few hundred milliseconds for all
    built-in kinds: call it in a thread."""
    return _message(spec, _DOCUMENT, 16)


# --- the wire ---------------------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= 0xFFFF_FFFF_FFFF_FFFF
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


# writers are given a value and answer with tag and payload, once their number is bound
def _bound(write: Callable[[int, Any], bytes]) -> Callable[[int], _Writer]:
    return lambda number: lambda value: write(number, value)


_string = _bound(lambda number, value: _field(number, str(value).encode()))
_strings = _bound(lambda number, value: b"".join(_field(number, str(each).encode()) for each in value))
_flag = _bound(lambda number, value: _varint(number << 3 | _VARINT) + b"\x01" if value else b"")
_integer = _bound(lambda number, value: _varint(number << 3 | _VARINT) + _varint(int(value)))
_double = _bound(lambda number, value: _varint(number << 3 | _FIXED64) + struct.pack("<d", float(value)))
_any = _bound(lambda number, value: _field(number, _any_value(value)))
_anys = _bound(lambda number, value: b"".join(_field(number, _any_value(each)) for each in value))


def _any_value(value: Any) -> bytes:
    return _field(2, msgspec.json.encode(value))


def _named(number: int, name: str, value: bytes) -> bytes:
    """One entry of a map: a message of a name (1) and a value (2)."""
    return _field(number, _field(1, name.encode()) + _field(2, value))


def _map(values: Mapping[str, Any], write: Callable[[Any], bytes], number: int = 1) -> bytes:
    return b"".join(_named(number, name, write(value)) for name, value in values.items())


def _message(value: Mapping[str, Any], rows: _Rows, extensions: int = 0) -> bytes:
    """The fields that the rows know; `extensions` is the number of those whose names begin with x-."""
    return b"".join(_parts(value, rows, extensions))


def _parts(value: Mapping[str, Any], rows: _Rows, extensions: int) -> Iterator[bytes]:
    for name, found in value.items():
        row = rows.get(name)
        if row is not None:
            yield row[1](found)
        elif extensions and name.startswith(_EXTENSION):
            yield _named(extensions, name, _any_value(found))


def _rows(**fields: tuple[int, Callable[[int], _Writer]]) -> _Rows:
    """Rows by the names of JSON; `_ref` stands for `$ref` and a trailing line for a word of Python."""
    return {
        "$ref" if name == "_ref" else name.rstrip("_"): (number, write(number))
        for name, (number, write) in fields.items()
    }


# --- schemas ----------------------------------------------------------------------------------------------------------


def _schema(value: Mapping[str, Any]) -> bytes:
    return _message(value, _SCHEMA, 31)


def _definition(value: Mapping[str, Any] | msgspec.Raw) -> bytes:
    """Decoded one at a time: all of them together would be tens of megabytes."""
    return _schema(msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value)


def _additional(number: int, value: Any) -> bytes:
    return _field(number, _flag(2)(value) if isinstance(value, bool) else _field(1, _schema(value)))


def _types(number: int, value: Any) -> bytes:
    return _field(number, _strings(1)([value] if isinstance(value, str) else value))


_SCHEMA: _Rows = _rows(
    _ref=(1, _string),
    format=(2, _string),
    title=(3, _string),
    description=(4, _string),
    default=(5, _any),
    multipleOf=(6, _double),
    maximum=(7, _double),
    exclusiveMaximum=(8, _flag),
    minimum=(9, _double),
    exclusiveMinimum=(10, _flag),
    maxLength=(11, _integer),
    minLength=(12, _integer),
    pattern=(13, _string),
    maxItems=(14, _integer),
    minItems=(15, _integer),
    uniqueItems=(16, _flag),
    maxProperties=(17, _integer),
    minProperties=(18, _integer),
    required=(19, _strings),
    enum=(20, _anys),
    additionalProperties=(21, _bound(_additional)),
    type=(22, _bound(_types)),
    items=(23, _bound(lambda number, value: _field(number, _field(1, _schema(value))))),
    allOf=(24, _bound(lambda number, value: b"".join(_field(number, _schema(each)) for each in value))),
    properties=(25, _bound(lambda number, value: _field(number, _map(value, _schema)))),
    readOnly=(27, _flag),
    example=(30, _any),
)


# --- paths ------------------------------------------------------------------------------------------------------------

_PLACES = {"header": 1, "formData": 2, "query": 3, "path": 4}
_BODY: _Rows = _rows(
    description=(1, _string),
    name=(2, _string),
    in_=(3, _string),
    required=(4, _flag),
    schema=(5, _bound(lambda number, value: _field(number, _schema(value)))),
)
_NAMED: _Rows = _rows(required=(1, _flag), in_=(2, _string), description=(3, _string), name=(4, _string))
# allowEmptyValue is field 5 of parameters in the query and in forms, so that what follows has another number there
_SIMPLE: _Rows = {**_NAMED, **_rows(type=(5, _string), format=(6, _string))}
_QUERY: _Rows = {**_NAMED, **_rows(type=(6, _string), format=(7, _string))}


def _parameter(value: Mapping[str, Any]) -> bytes:
    """A ParametersItem: a reference (2), or a parameter (1) of the body (1) or of another place (2)."""
    if "$ref" in value:
        return _field(2, _string(1)(value["$ref"]))
    place = value.get("in", "")
    if place == "body":
        return _field(1, _field(1, _message(value, _BODY)))
    rows = _QUERY if place in ("query", "formData") else _SIMPLE
    return _field(1, _field(2, _field(_PLACES[place], _message(value, rows))))


def _responses(number: int, value: Mapping[str, Any]) -> bytes:
    return _field(number, _map(value, lambda each: _field(1, _message(each, _RESPONSE, 5))))


_parameters = _bound(lambda number, value: b"".join(_field(number, _parameter(each)) for each in value))
_RESPONSE: _Rows = _rows(
    description=(1, _string),
    schema=(2, _bound(lambda number, value: _field(number, _field(1, _schema(value))))),
)
_OPERATION: _Rows = _rows(
    tags=(1, _strings),
    summary=(2, _string),
    description=(3, _string),
    operationId=(5, _string),
    produces=(6, _strings),
    consumes=(7, _strings),
    parameters=(8, _parameters),
    responses=(9, _bound(_responses)),
    schemes=(10, _strings),
    deprecated=(11, _flag),
)
_operation = _bound(lambda number, value: _field(number, _message(value, _OPERATION, 13)))
_PATH: _Rows = _rows(
    _ref=(1, _string),
    get=(2, _operation),
    put=(3, _operation),
    post=(4, _operation),
    delete=(5, _operation),
    options=(6, _operation),
    head=(7, _operation),
    patch=(8, _operation),
    parameters=(9, _parameters),
)
_INFO: _Rows = _rows(title=(1, _string), version=(2, _string), description=(3, _string))
_DOCUMENT: _Rows = _rows(
    swagger=(1, _string),
    info=(2, _bound(lambda number, value: _field(number, _message(value, _INFO, 7)))),
    host=(3, _string),
    basePath=(4, _string),
    schemes=(5, _strings),
    consumes=(6, _strings),
    produces=(7, _strings),
    paths=(8, _bound(lambda number, value: _field(number, _map(value, lambda each: _message(each, _PATH, 10), 2)))),
    definitions=(9, _bound(lambda number, value: _field(number, _map(value, _definition)))),
)
