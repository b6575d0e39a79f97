"""Holding an object against its kind's schema: `conform` is the decoder's half, `problems` the validator's.

    conform    before defaults: wrong types are refused as Go's decoder refuses them (400), unknown fields are refused,
               reported or ignored, and pruned
    problems   after defaults: what the schema alone finds wrong (422): required fields; for custom kinds all of it

The fast path lets msgspec do both at C speed on types made from the definitions; only an object with a fault is walked in Python,
to find out where and to say it in the API server's words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

import msgspec

from insula.errors import Cause, Invalid
from insula.kinds import schemas, structural
from insula.kinds.fasttypes import REQUIRED, SHAPE, below, fast_type
from insula.kinds.kind import Kind
from insula.kinds.schemas import Schema
from insula.model.resource import Resource

FieldValidation = Literal["Strict", "Warn", "Ignore"]

_QUANTITY = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?\Z")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\Z")
_MAX_FAULTS = 100


class _Walk:
    """One walk over a faulty object: what it found, and the way to the present field."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self.missing: list[Cause] = []


def conform(kind: Kind, obj: Resource, mode: FieldValidation = "Warn") -> list[str]:
    """Refuse wrong types, deal with unknown fields (which are pruned in place); returns warnings for the client.

    Raises Invalid without causes (a bad request), in the sentences of kube-apiserver.
    """
    if isinstance(kind.schema, str):
        unknown = _unknown_builtin(kind, kind.schema, obj)
    elif kind.schema is not None:
        unknown = structural.prune(kind.schema, obj)
    else:
        return []
    if not unknown or mode == "Ignore":
        return []
    faults = [f'unknown field "{path}"' for path in unknown[:_MAX_FAULTS]]
    if mode == "Strict":
        raise Invalid(handled_as(kind, f"strict decoding error: {', '.join(faults)}"))
    return faults


def complete(kind: Kind, obj: Resource) -> None:
    """A null spec of a built-in kind is an absent one, as for a decoder into Go's structures; in place."""
    if isinstance(kind.schema, str) and "spec" in obj and obj["spec"] is None:
        del obj["spec"]


def problems(kind: Kind, obj: Resource) -> list[Cause]:
    """What the schema finds wrong with a defaulted object: required fields of built-in kinds, everything of custom ones."""
    if isinstance(kind.schema, str):
        try:
            msgspec.convert(obj, fast_type(kind.schema, REQUIRED))
        except msgspec.ValidationError:
            walk = _Walk()
            _object(schemas.get(kind.schema), obj, "", walk, kind.schema)
            return walk.missing[:_MAX_FAULTS]
        return []
    return structural.validate(kind.schema, obj)[:_MAX_FAULTS] if kind.schema is not None else []


def warming(kinds: Iterable[Kind]) -> Iterator[None]:
    """Make what the first objects of these kinds would wait for, tens of milliseconds in all, in small steps: let others
    run at each."""
    seen: set[str] = set()
    for kind in kinds:
        for name in below(kind.schema, seen) if isinstance(kind.schema, str) else ():
            if "properties" not in schemas.get(name):
                continue
            for flavour in (SHAPE, REQUIRED):
                with suppress(msgspec.ValidationError):
                    msgspec.convert({}, fast_type(name, flavour))
                yield


def handled_as(kind: Kind, why: str) -> str:
    """The API server's sentence for an object that does not decode."""
    return f'{kind.kind} in version "{kind.ref.version}" cannot be handled as a {kind.kind}: {why}'


def _unknown_builtin(kind: Kind, name: str, obj: Resource) -> list[str]:
    try:
        msgspec.convert(obj, fast_type(name, SHAPE))
    except msgspec.ValidationError:
        walk = _Walk()
        try:
            _object(schemas.get(name), obj, "", walk, name)
        except _TypeError as fault:
            raise Invalid(handled_as(kind, str(fault)), field=fault.path or None) from None
        return walk.unknown
    return []


class _TypeError(Exception):
    def __init__(self, path: str, sentence: str) -> None:
        super().__init__(sentence)
        self.path = path


_GO_TYPES = {"int32": "int32", "int64": "int64", "double": "float64"}


def _go_type(schema: Schema) -> str:
    """What Go calls the type of a field, near enough for a person to see what is expected."""
    word = str(schema.get("type", ""))
    if word == "array":
        element = schemas.items(schema) or {}
        return f"[]{_go_type(element)}"
    if word == "object":
        values = schema.get("additionalProperties")
        return f"map[string]{_go_type(schemas.resolve(values))}" if isinstance(values, Mapping) else "struct"
    if word == "boolean":
        return "bool"
    return _GO_TYPES.get(str(schema.get("format")), {"integer": "int64", "number": "float64"}.get(word, word))


def _json_type(value: object) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return f"number {value}" if abs(value) > 2**31 else "number"
        case float():
            return f"number {value}"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _mismatch(schema: Schema, value: object, path: str, owner: str) -> _TypeError:
    struct = owner.rpartition(".")[2]
    return _TypeError(
        path,
        f"json: cannot unmarshal {_json_type(value)} into Go struct field {struct}.{path} of type {_go_type(schema)}",
    )


def _object(schema: Schema, value: Any, path: str, walk: _Walk, owner: str) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise _mismatch(schema, value, path, owner)
    fields = schema.get("properties")
    if fields is None:
        values = schema.get("additionalProperties")
        if isinstance(values, Mapping):
            for name, each in value.items():
                _value(values, each, f"{path}.{name}" if path else name, walk, owner)
            return
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return
        fields = {}
    for name in list(value):
        where = f"{path}.{name}" if path else name
        if (known := fields.get(name)) is None:
            walk.unknown.append(where)
            del value[name]
        else:
            _value(known, value[name], where, walk, owner)
    if path != "status" and not path.startswith("status."):
        _missing(schema, value, path, walk)


def _missing(schema: Schema, value: Mapping[str, Any], path: str, walk: _Walk) -> None:
    for name in schema.get("required", ()):
        if value.get(name) is None:
            where = f"{path}.{name}" if path else name
            walk.missing.append(Cause(where, "FieldValueRequired", "Required value"))


def _value(schema: Schema, value: Any, path: str, walk: _Walk, owner: str) -> None:
    if value is None:
        return
    if name := schema.get("$ref"):
        owner = name
        schema = schemas.resolve(schema)
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise _mismatch({"type": "intstr.IntOrString"}, value, path, owner)
        return
    match schema.get("type"):
        case "object":
            _object(schema, value, path, walk, owner)
        case "array":
            if not isinstance(value, list):
                raise _mismatch(schema, value, path, owner)
            element = schema.get("items") or {}
            for index, each in enumerate(value):
                _value(element, each, f"{path}[{index}]", walk, owner)
        case "string":
            _string(schema, value, path, owner)
        case "integer" | "number" | "boolean":
            _scalar(schema, value, path, owner)


def _scalar(schema: Schema, value: Any, path: str, owner: str) -> None:
    match schema["type"]:
        case "boolean":
            fine = isinstance(value, bool)
        case "integer":
            bits = 31 if schema.get("format") == "int32" else 63
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            fine = whole and not isinstance(value, bool) and -(2**bits) <= value < 2**bits
        case _:
            fine = isinstance(value, int | float) and not isinstance(value, bool)
    if not fine:
        raise _mismatch(schema, value, path, owner)


def _string(schema: Schema, value: Any, path: str, owner: str) -> None:
    form = schema.get("format")
    if form == "quantity":
        text = value if isinstance(value, str) else json.dumps(value)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not _QUANTITY.match(text):
            raise _TypeError(
                path, "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            )
        return
    if not isinstance(value, str):
        raise _mismatch(schema, value, path, owner)
    if form == "date-time" and not _TIME.match(value):
        raise _TypeError(
            path,
            f'parsing time "{value[:64]}" as "2006-01-02T15:04:05Z07:00": cannot parse "{value[:64]}" as "2006"',
        )
    if form == "byte" and not _BASE64.match(value):
        raise _TypeError(path, f"illegal base64 data at input byte {_bad_base64(value)}")


def _bad_base64(text: str) -> int:
    bad = re.search(r"[^A-Za-z0-9+/=]", text)
    return bad.start() if bad else len(text) - len(text) % 4
