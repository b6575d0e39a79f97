"""ConfigMap and Secret: named bytes."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import age, column
from insula.model.resource import Resource

SIZE_LIMIT = 1024 * 1024
_NEEDED = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
}
_ACCOUNT_TOKEN = "kubernetes.io/service-account-token"  # noqa: S105 - the name of a type
_ACCOUNT_NAME = "kubernetes.io/service-account.name"


def _unchanged(new: Resource, old: Resource | None, parts: Sequence[str]) -> list[Cause]:
    """An immutable object stays as it is."""
    if old is None or not old.get("immutable"):
        return []
    why = "field is immutable when `immutable` is set"
    found = [] if new.get("immutable") else [rules.forbidden("immutable", why)]
    return found + [rules.forbidden(part, why) for part in parts if (new.get(part) or {}) != (old.get(part) or {})]


def _too_long(field: str) -> Cause:
    return Cause(field, "FieldValueTooLong", f"Too long: may not be more than {SIZE_LIMIT} bytes")


def _validate_map(new: Resource, old: Resource | None) -> list[Cause]:
    text, binary = new.get("data") or {}, new.get("binaryData") or {}
    found = _unchanged(new, old, ("data", "binaryData"))
    for key in text:
        found += rules.config_key(f"data[{key}]", key)
        if key in binary:
            found.append(rules.invalid(f"data[{key}]", key, "duplicate of key present in binaryData"))
    for key in binary:
        found += rules.config_key(f"binaryData[{key}]", key)
    size = sum(len((value or "").encode()) for value in text.values())
    size += sum(len(value or "") * 3 // 4 for value in binary.values())
    return [*found, _too_long("")] if size > SIZE_LIMIT else found


def _default_secret(obj: Resource) -> None:
    obj.setdefault("type", "Opaque")
    plain = obj.pop("stringData", None)
    if isinstance(plain, dict):
        if not isinstance(obj.get("data"), dict):
            obj["data"] = {}
        obj["data"] |= {key: base64.b64encode((value or "").encode()).decode() for key, value in plain.items()}


def _validate_secret(new: Resource, old: Resource | None) -> list[Cause]:
    data, found = new.get("data") or {}, _unchanged(new, old, ("data",))
    for key in data:
        found += rules.config_key(f"data[{key}]", key)
    if sum(len(value or "") * 3 // 4 for value in data.values()) > SIZE_LIMIT:
        found.append(_too_long("data"))
    if old is not None:
        found += rules.immutable("type", new.get("type"), old.get("type"))
    found += [rules.required(f"data[{key}]") for key in _NEEDED.get(new["type"], ()) if key not in data]
    if new["type"] == "kubernetes.io/dockerconfigjson" and not found:
        found += _registry_json(data[".dockerconfigjson"])
    if new["type"] == "kubernetes.io/basic-auth" and not ({"username", "password"} & data.keys()):
        found += [rules.required("data[username]"), rules.required("data[password]")]
    if new["type"] == _ACCOUNT_TOKEN and not (new["metadata"].get("annotations") or {}).get(_ACCOUNT_NAME):
        found.append(rules.required(f"metadata.annotations[{_ACCOUNT_NAME}]"))
    return found


def _registry_json(text: str) -> list[Cause]:
    try:
        json.loads(base64.b64decode(text or ""))
    except (ValueError, binascii.Error):
        return [rules.invalid("data[.dockerconfigjson]", "<secret contents redacted>", "invalid character in JSON")]
    return []


def _map_row(obj: Resource) -> Sequence[Any]:
    return len(obj.get("data") or ()) + len(obj.get("binaryData") or ()), age(obj)


def _secret_row(obj: Resource) -> Sequence[Any]:
    return obj.get("type", ""), len(obj.get("data") or ()), age(obj)


KINDS = (
    replace(
        row("v1", "ConfigMap"), validate=_validate_map, columns=(column("Data", "integer"), column("Age")), row=_map_row
    ),
    replace(
        row("v1", "Secret"),
        default=_default_secret,
        validate=_validate_secret,
        fields=lambda obj: {"type": obj.get("type", "")},
        columns=(column("Type"), column("Data", "integer"), column("Age")),
        row=_secret_row,
    ),
)
