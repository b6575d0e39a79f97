"""Faults in Kubernetes' words, and the checks that many kinds share. Pure.

Source of the sentences: apimachinery `util/validation` and `util/validation/field`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from insula.errors import Cause
from insula.model.selector import from_object, label_name_fault, label_value_fault

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_PORT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+\Z")
_ENV_NAME = re.compile(r"[ -<>-~]+\Z")  # any printable ASCII but =
_PERCENT = re.compile(r"[0-9]+%\Z")

LABEL_SAYS = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an "
    "alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
SUBDOMAIN_SAYS = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
IMMUTABLE = "field is immutable"


def shown(value: Any) -> str:
    """A value as it stands in a sentence."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= 512 else text[:509] + "..."


def invalid(field: str, value: Any, why: str) -> Cause:
    """The value is wrong."""
    return Cause(field, "FieldValueInvalid", f"Invalid value: {shown(value)}: {why}")


def required(field: str, why: str = "") -> Cause:
    """The value is missing."""
    return Cause(field, "FieldValueRequired", f"Required value: {why}" if why else "Required value")


def unsupported(field: str, value: Any, allowed: Iterable[str]) -> Cause:
    """The value is none of a few."""
    listed = ", ".join(f'"{each}"' for each in sorted(allowed))
    return Cause(field, "FieldValueNotSupported", f"Unsupported value: {shown(value)}: supported values: {listed}")


def duplicate(field: str, value: Any) -> Cause:
    """The value is there twice."""
    return Cause(field, "FieldValueDuplicate", f"Duplicate value: {shown(value)}")


def forbidden(field: str, why: str) -> Cause:
    """The field may not be set here."""
    return Cause(field, "FieldValueForbidden", f"Forbidden: {why}")


def not_found(field: str, value: Any) -> Cause:
    """What the value names is not there."""
    return Cause(field, "FieldValueNotFound", f"Not found: {shown(value)}")


def dns_label(field: str, value: Any) -> list[Cause]:
    """RFC 1123 label."""
    if not value:
        return [required(field)]
    if len(value) > 63:
        return [invalid(field, value, "must be no more than 63 bytes")]
    return [] if _LABEL.match(value) else [invalid(field, value, LABEL_SAYS)]


def dns_subdomain(field: str, value: Any) -> list[Cause]:
    """RFC 1123 subdomain."""
    if not value:
        return [required(field)]
    if len(value) > 253:
        return [invalid(field, value, "must be no more than 253 bytes")]
    return [] if _SUBDOMAIN.match(value) else [invalid(field, value, SUBDOMAIN_SAYS)]


def port_number(field: str, value: Any) -> list[Cause]:
    """1 to 65535."""
    return (
        []
        if isinstance(value, int) and 0 < value < 65536
        else [invalid(field, value, "must be between 1 and 65535, inclusive")]
    )


def port_name(field: str, value: str) -> list[Cause]:
    """An IANA service name."""
    if len(value) > 15:
        return [invalid(field, value, "must be no more than 15 characters")]
    if not _PORT_NAME.match(value) or "--" in value:
        return [
            invalid(
                field,
                value,
                "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), no two of them together, none at an end",
            )
        ]
    return (
        []
        if any(letter.isalpha() for letter in value)
        else [invalid(field, value, "must contain at least one letter (a-z)")]
    )


def port(field: str, value: Any) -> list[Cause]:
    """A number or a name."""
    return port_name(field, value) if isinstance(value, str) else port_number(field, value)


def env_name(field: str, value: Any) -> list[Cause]:
    """A variable's name."""
    if not value:
        return [required(field)]
    return (
        []
        if _ENV_NAME.match(value)
        else [
            invalid(
                field,
                value,
                "a valid environment variable name must consist only of printable ASCII characters other than '='",
            )
        ]
    )


def config_key(field: str, value: str) -> list[Cause]:
    """A key of a ConfigMap or Secret."""
    if len(value) > 253:
        return [invalid(field, value, "must be no more than 253 bytes")]
    if not _CONFIG_KEY.match(value):
        return [
            invalid(
                field,
                value,
                "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
                "'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
            )
        ]
    return [invalid(field, value, f"must not be '{value}'")] if value in (".", "..") else []


def non_negative(field: str, value: Any) -> list[Cause]:
    """Zero or more; absent is fine."""
    return [invalid(field, value, "must be greater than or equal to 0")] if isinstance(value, int) and value < 0 else []


def one_of(field: str, value: Any, allowed: Sequence[str]) -> list[Cause]:
    """One of a few words; absent is fine."""
    return [] if value in (None, *allowed) else [unsupported(field, value, allowed)]


def int_or_percent(field: str, value: Any) -> list[Cause]:
    """A count, or a percentage as text."""
    if isinstance(value, str):
        return (
            []
            if _PERCENT.match(value)
            else [
                invalid(
                    field,
                    value,
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%')",
                )
            ]
        )
    return non_negative(field, value)


def labels(field: str, value: Mapping[str, Any] | None) -> list[Cause]:
    """Keys and values of labels."""
    found = []
    for key, text in (value or {}).items():
        if why := label_name_fault(key):
            found.append(invalid(field, key, why))
        if why := label_value_fault(text):
            found.append(invalid(field, text, why))
    return found


_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def selector(field: str, value: Mapping[str, Any] | None) -> list[Cause]:
    """A label selector object."""
    found = labels(f"{field}.matchLabels", (value or {}).get("matchLabels"))
    for index, each in enumerate((value or {}).get("matchExpressions") or ()):
        where = f"{field}.matchExpressions[{index}]"
        operator, values = each.get("operator"), each.get("values")
        if operator not in _OPERATORS:
            found.append(unsupported(f"{where}.operator", operator, _OPERATORS))
        elif operator in ("In", "NotIn") and not values:
            found.append(required(f"{where}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist") and values:
            found.append(
                forbidden(f"{where}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
            )
        if why := label_name_fault(each.get("key") or ""):
            found.append(invalid(f"{where}.key", each.get("key"), why))
    return found


def selects(value: Mapping[str, Any] | None, found: Mapping[str, str] | None) -> bool:
    """Whether a label selector object selects these labels."""
    chosen = from_object(value)
    return chosen is not None and chosen.matches(found or {})


def immutable(field: str, new: Any, old: Any) -> list[Cause]:
    """The value may not change."""
    return [] if new == old else [invalid(field, new, IMMUTABLE)]
