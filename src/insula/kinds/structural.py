"""Structural schemas of custom kinds: pruning, defaulting and validation as apiextensions does them.

Source: the OpenAPI v3 subset that CustomResourceDefinition v1 allows (JSON Schema without `$ref`), and its extensions
`x-kubernetes-preserve-unknown-fields`, `-embedded-resource`, `-int-or-string`, `-list-type`, `-list-map-keys`. Pure functions.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from datetime import date
from functools import lru_cache
from typing import Any

from insula.clock import parse_rfc3339
from insula.errors import Cause
from insula.model.resource import Resource

Schema = Mapping[str, Any]
_ROOT = ("apiVersion", "kind", "metadata")


def prune(schema: Schema, obj: Resource) -> list[str]:
    """Remove in place what the schema does not know; returns the paths removed. The root's type and metadata stay."""
    removed: list[str] = []
    _prune(schema, obj, "", removed, root=True)
    return removed


def _prune(schema: Schema, value: Any, path: str, removed: list[str], *, root: bool = False) -> None:
    if isinstance(value, list):
        if isinstance(element := schema.get("items"), Mapping):
            for index, each in enumerate(value):
                _prune(element, each, f"{path}[{index}]", removed)
        return
    if not isinstance(value, dict):
        return
    fields = schema.get("properties") or {}
    more = schema.get("additionalProperties")
    free = schema.get("x-kubernetes-preserve-unknown-fields") or more is True
    own = root or schema.get("x-kubernetes-embedded-resource")
    for name in list(value):
        where = f"{path}.{name}" if path else name
        if own and name in _ROOT:
            continue
        if (known := fields.get(name)) is not None:
            _prune(known, value[name], where, removed)
        elif isinstance(more, Mapping):
            _prune(more, value[name], where, removed)
        elif not free:
            removed.append(where)
            del value[name]


def default(schema: Schema, value: Any) -> None:
    """Fill absent fields in place from `default`; a null in a field that is not nullable counts as absent."""
    if isinstance(value, list):
        if isinstance(element := schema.get("items"), Mapping):
            for each in value:
                default(element, each)
        return
    if not isinstance(value, dict):
        return
    fields: Schema = schema.get("properties") or {}
    for name, known in fields.items():
        absent = name not in value or (value[name] is None and not known.get("nullable"))
        if absent and "default" in known:
            value[name] = copy.deepcopy(known["default"])
        if name in value:
            default(known, value[name])
    if isinstance(more := schema.get("additionalProperties"), Mapping):
        for name, each in value.items():
            if name not in fields:
                default(more, each)


def validate(schema: Schema, obj: Resource) -> list[Cause]:
    """Everything wrong with a defaulted object, in the sentences of apiextensions."""
    causes: list[Cause] = []
    body = {name: value for name, value in obj.items() if name not in _ROOT}
    fields = {name: value for name, value in (schema.get("properties") or {}).items() if name not in _ROOT}
    required = [name for name in schema.get("required", ()) if name not in _ROOT]
    _check({**schema, "properties": fields, "required": required}, body, "", causes)
    return causes


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 200 else text[:197] + "..."


def _bad(path: str, value: Any, why: str) -> Cause:
    return Cause(path, "FieldValueInvalid", f"Invalid value: {_shown(value)}: {path or 'object'} in body {why}")


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
}


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    return next((name for name in ("boolean", "integer", "number", "string", "array") if _TYPES[name](value)), "object")


def _check(schema: Schema, value: Any, path: str, causes: list[Cause]) -> None:
    if value is None and schema.get("nullable"):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if not (_TYPES["integer"](value) or isinstance(value, str)):
            causes.append(_bad(path, value, f'must be of type integer,string: "{_type_name(value)}"'))
            return
    elif (wanted := schema.get("type")) and not _TYPES.get(wanted, lambda _: True)(value):
        shown = _shown(_type_name(value)) if not isinstance(value, str) else _shown(value)
        causes.append(
            Cause(
                path,
                "FieldValueTypeInvalid",
                f"Invalid value: {shown}: {path or 'object'} in body must be of type {wanted}: {_shown(_type_name(value))}",
            )
        )
        return
    _enum(schema, value, path, causes)
    match value:
        case dict():
            _members(schema, value, path, causes)
        case list():
            _elements(schema, value, path, causes)
        case str():
            _text(schema, value, path, causes)
        case int() | float() if not isinstance(value, bool):
            _number(schema, value, path, causes)
    _combined(schema, value, path, causes)


def _enum(schema: Schema, value: Any, path: str, causes: list[Cause]) -> None:
    allowed = schema.get("enum")
    if allowed and value not in allowed:
        listed = ", ".join(_shown(each) for each in allowed)
        causes.append(
            Cause(path, "FieldValueNotSupported", f"Unsupported value: {_shown(value)}: supported values: {listed}")
        )


def _members(schema: Schema, value: dict[str, Any], path: str, causes: list[Cause]) -> None:
    fields = schema.get("properties") or {}
    for name in schema.get("required", ()):
        if name not in value:
            where = f"{path}.{name}" if path else name
            causes.append(Cause(where, "FieldValueRequired", "Required value"))
    more = schema.get("additionalProperties")
    for name, each in value.items():
        known = fields.get(name, more if isinstance(more, Mapping) else None)
        if isinstance(known, Mapping):
            _check(known, each, f"{path}.{name}" if path else name, causes)
    if (least := schema.get("minProperties")) is not None and len(value) < least:
        causes.append(_bad(path, value, f"should have at least {least} properties"))
    if (most := schema.get("maxProperties")) is not None and len(value) > most:
        causes.append(Cause(path, "FieldValueTooMany", f"Too many: {len(value)}: must have at most {most} items"))


def _elements(schema: Schema, value: list[Any], path: str, causes: list[Cause]) -> None:
    if isinstance(element := schema.get("items"), Mapping):
        for index, each in enumerate(value):
            _check(element, each, f"{path}[{index}]", causes)
    if (least := schema.get("minItems")) is not None and len(value) < least:
        causes.append(_bad(path, len(value), f"should have at least {least} items"))
    if (most := schema.get("maxItems")) is not None and len(value) > most:
        causes.append(Cause(path, "FieldValueTooMany", f"Too many: {len(value)}: must have at most {most} items"))
    _unique(schema, value, path, causes)


def _unique(schema: Schema, value: list[Any], path: str, causes: list[Cause]) -> None:
    kind = schema.get("x-kubernetes-list-type")
    if kind not in ("set", "map"):
        return
    seen: set[str] = set()
    for index, each in enumerate(value):
        keys = schema.get("x-kubernetes-list-map-keys", ())
        identity = {key: each.get(key) for key in keys} if kind == "map" and isinstance(each, dict) else each
        text = json.dumps(identity, sort_keys=True)
        if text in seen:
            causes.append(Cause(f"{path}[{index}]", "FieldValueDuplicate", f"Duplicate value: {_shown(identity)}"))
        seen.add(text)


def _text(schema: Schema, value: str, path: str, causes: list[Cause]) -> None:
    if (least := schema.get("minLength")) is not None and len(value) < least:
        causes.append(_bad(path, value, f"should be at least {least} chars long"))
    if (most := schema.get("maxLength")) is not None and len(value) > most:
        causes.append(Cause(path, "FieldValueTooLong", f"Too long: may not be more than {most} bytes"))
    pattern = schema.get("pattern")
    if pattern and (compiled := _pattern(pattern)) and not compiled.search(value):
        causes.append(_bad(path, value, f"should match '{pattern}'"))
    if (form := schema.get("format")) and form in _FORMATS and not _fits(form, value):
        causes.append(_bad(path, value, f"must be of type {form}: {_shown(value)}"))


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str] | None:
    """RE2 patterns in Python's words; one that Python cannot compile is not enforced."""
    try:
        return re.compile(text.replace(r"\z", r"\Z"))
    except re.error:
        return None


def _number(schema: Schema, value: float, path: str, causes: list[Cause]) -> None:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None:
        strict = bool(schema.get("exclusiveMinimum"))
        if value < least or (strict and value == least):
            causes.append(_bad(path, value, f"should be greater than {'' if strict else 'or equal to '}{least}"))
    if most is not None:
        strict = bool(schema.get("exclusiveMaximum"))
        if value > most or (strict and value == most):
            causes.append(_bad(path, value, f"should be less than {'' if strict else 'or equal to '}{most}"))
    if (step := schema.get("multipleOf")) and value % step:
        causes.append(_bad(path, value, f"should be a multiple of {step}"))


def _passes(schema: Schema, value: Any, path: str) -> bool:
    found: list[Cause] = []
    _check(schema, value, path, found)
    return not found


def _combined(schema: Schema, value: Any, path: str, causes: list[Cause]) -> None:
    for each in schema.get("allOf", ()):
        _check(each, value, path, causes)
    if (any_of := schema.get("anyOf")) and not any(_passes(each, value, path) for each in any_of):
        causes.append(_bad(path, value, "must validate at least one schema (anyOf)"))
    if one_of := schema.get("oneOf"):
        fitting = sum(_passes(each, value, path) for each in one_of)
        if fitting != 1:
            found = "none" if not fitting else "more than one"
            causes.append(_bad(path, value, f"must validate one and only one schema (oneOf). Found {found} valid"))
    if (never := schema.get("not")) is not None and _passes(never, value, path):
        causes.append(_bad(path, value, "must not validate the schema (not)"))


def _parses(read: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            read(text)
        except ValueError:
            return False
        return True

    return check


_UUID = re.compile(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\Z")
_FORMATS: dict[str, Callable[[str], bool]] = {
    "date-time": _parses(parse_rfc3339),
    "date": _parses(date.fromisoformat),
    "ipv4": _parses(ipaddress.IPv4Address),
    "ipv6": _parses(ipaddress.IPv6Address),
    "cidr": _parses(lambda text: ipaddress.ip_network(text, strict=False)),
    "uuid": lambda text: bool(_UUID.match(text)),
    "email": lambda text: "@" in text[1:-1],
    "hostname": lambda text: 0 < len(text) < 256 and all(0 < len(part) < 64 for part in text.split(".")),
}


def _fits(form: str, text: str) -> bool:
    return _FORMATS[form](text)
