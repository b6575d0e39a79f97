"""An object's metadata: what the server owns in it, and what clients may write there.

Rules and sentences are those of apimachinery's `ValidateObjectMeta` and `ValidateObjectMetaUpdate`.
"""

from __future__ import annotations

import random
import re
import uuid
from typing import Any

import msgspec

from insula import clock
from insula.errors import Cause, Invalid
from insula.kinds.kind import Kind
from insula.model.resource import Resource
from insula.model.selector import label_name_fault, label_value_fault

ANNOTATIONS_LIMIT = 256 * 1024
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_GENERATED_BASE = 58  # a label's 63 characters less the 5 random ones

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_LABEL_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_SUBDOMAIN_SAYS = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_1123_SAYS = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an "
    "alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_LABEL_1035_SAYS = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end "
    "with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_PATH_GROUPS = ("rbac.authorization.k8s.io", "apiregistration.k8s.io")


class _OwnerShape(msgspec.Struct):
    apiVersion: str = ""  # noqa: N815
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None
    blockOwnerDeletion: bool | None = None  # noqa: N815


class _MetaShape(msgspec.Struct):
    """The types of metadata; fields that are not named here are free."""

    name: str | None = None
    generateName: str | None = None  # noqa: N815
    namespace: str | None = None
    uid: str | None = None
    resourceVersion: str | None = None  # noqa: N815
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    finalizers: list[str] | None = None
    ownerReferences: list[_OwnerShape] | None = None  # noqa: N815
    managedFields: list[dict[str, Any]] | None = None  # noqa: N815
    creationTimestamp: str | None = None  # noqa: N815
    deletionTimestamp: str | None = None  # noqa: N815
    generation: int | None = None
    deletionGracePeriodSeconds: int | None = None  # noqa: N815


def check_shape(kind: Kind, obj: Any) -> None:
    """Refuse what is no object of this kind at all. Raises Invalid."""
    if not isinstance(obj, dict):
        raise Invalid(f"the request must hold an object of kind {kind.kind}")
    api_version, name = kind.gvk
    if (given := obj.setdefault("apiVersion", api_version)) != api_version:
        raise Invalid(f"the API version in the data ({given}) does not match the expected API version ({api_version})")
    if (given := obj.setdefault("kind", name)) != name:
        raise Invalid(f'the kind in the data ("{given}") does not match the expected kind ("{name}")')
    meta = obj.get("metadata")
    if meta is None:
        obj["metadata"] = {}
        return
    try:
        msgspec.convert(meta, _MetaShape)
    except msgspec.ValidationError as fault:
        raise Invalid(
            f'{name} in version "{kind.ref.version}" cannot be handled as a {name}: metadata: {fault}', field="metadata"
        ) from None


def check_namespace(kind: Kind, obj: Resource, namespace: str) -> None:
    """Bring the object's namespace in line with the address it was sent to. Raises Invalid."""
    meta = obj["metadata"]
    if not kind.namespaced:
        meta.pop("namespace", None)
        return
    if not namespace:
        raise Invalid("an empty namespace may not be set during creation", field="metadata.namespace")
    given = meta.get("namespace") or namespace
    if given != namespace:
        raise Invalid(
            f"the namespace of the provided object does not match the namespace sent on the request ({given} != {namespace})",
            field="metadata.namespace",
        )
    meta["namespace"] = namespace


def generated_name(base: str) -> str:
    """`base` with five random letters, not longer than a DNS label. Letters without vowels make no words."""
    suffix = "".join(random.choices(_SUFFIX_LETTERS, k=5))  # noqa: S311 - uniqueness is checked by the store
    return base[:_GENERATED_BASE] + suffix


_CLIENT_NEVER_SETS = ("selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "resourceVersion")


def stamp_new(kind: Kind, obj: Resource) -> None:
    """Fill in what the server gives a new object."""
    meta = obj["metadata"]
    for name in _CLIENT_NEVER_SETS:
        meta.pop(name, None)
    meta["uid"] = str(uuid.uuid4())
    meta["creationTimestamp"] = clock.rfc3339(clock.now())
    if kind.has_generation:
        meta["generation"] = 1


_SERVER_KEEPS = (
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "namespace",
)


def stamp_update(obj: Resource, old: Resource) -> None:
    """Carry over what no client may change."""
    meta, before = obj["metadata"], old["metadata"]
    meta.pop("selfLink", None)
    for name in _SERVER_KEEPS:
        if name in before:
            meta[name] = before[name]
        else:
            meta.pop(name, None)


def wrong_value(field: str, value: object, why: str) -> Cause:
    """A cause in the words of field.Invalid."""
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    return Cause(field, "FieldValueInvalid", f"Invalid value: {shown}: {why}")


def name_fault(kind: Kind, name: str) -> str | None:
    """What is wrong with an object's name for its kind; None for a good one."""
    if kind.ref.group in _PATH_GROUPS:
        if name in (".", ".."):
            return f"may not be '{name}'"
        bad = next((char for char in "/%" if char in name), None)
        return f"may not contain '{bad}'" if bad else None
    form, says, longest = _SUBDOMAIN, _SUBDOMAIN_SAYS, 253
    if kind.ref.group == "" and kind.ref.plural == "namespaces":
        form, says, longest = _LABEL_1123, _LABEL_1123_SAYS, 63
    elif kind.ref.group == "" and kind.ref.plural == "services":
        form, says, longest = _LABEL_1035, _LABEL_1035_SAYS, 63
    if len(name) > longest:
        return f"must be no more than {longest} characters"
    return None if form.match(name) else says


def problems_of_new(kind: Kind, obj: Resource) -> list[Cause]:
    """Everything wrong with a new object's metadata."""
    meta = obj["metadata"]
    name = meta.get("name") or ""
    if not name:
        return [Cause("metadata.name", "FieldValueRequired", "Required value: name or generateName is required")]
    found = []
    if why := name_fault(kind, name):
        found.append(wrong_value("metadata.name", name, why))
    return found + _common(meta)


def problems_of_update(obj: Resource, old: Resource) -> list[Cause]:
    """Everything wrong with changed metadata."""
    meta, before = obj["metadata"], old["metadata"]
    found = []
    if before.get("deletionTimestamp"):
        had = set(before.get("finalizers") or ())
        if added := [one for one in meta.get("finalizers") or () if one not in had]:
            quoted = ", ".join(f'"{one}"' for one in added)
            found.append(
                Cause(
                    "metadata.finalizers",
                    "FieldValueForbidden",
                    "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers "
                    f"[]string{{{quoted}}}",
                )
            )
    return found + _common(meta)


def _common(meta: Resource) -> list[Cause]:
    found: list[Cause] = []
    for key, value in (meta.get("labels") or {}).items():
        if why := label_name_fault(key):
            found.append(wrong_value("metadata.labels", key, why))
        if why := label_value_fault(value):
            found.append(wrong_value("metadata.labels", value, why))
    annotations = meta.get("annotations") or {}
    for key in annotations:
        if why := label_name_fault(key.lower()):
            found.append(wrong_value("metadata.annotations", key, why))
    if sum(len(key) + len(value) for key, value in annotations.items()) > ANNOTATIONS_LIMIT:
        found.append(
            Cause(
                "metadata.annotations", "FieldValueTooLong", f"Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"
            )
        )
    for finalizer in meta.get("finalizers") or ():
        if why := label_name_fault(finalizer):
            found.append(wrong_value("metadata.finalizers", finalizer, why))
    return found + _owners(meta.get("ownerReferences") or [])


def _owners(references: list[Resource]) -> list[Cause]:
    found = []
    for index, one in enumerate(references):
        for name in ("apiVersion", "kind", "name", "uid"):
            if not one.get(name):
                field = f"metadata.ownerReferences[{index}].{name}"
                found.append(wrong_value(field, one.get(name, ""), "must not be empty"))
    controllers = [one for one in references if one.get("controller")]
    if len(controllers) > 1:
        found.append(
            wrong_value(
                "metadata.ownerReferences",
                f"{controllers[0]['kind']} {controllers[0]['name']}, {controllers[1]['kind']} {controllers[1]['name']}",
                "Only one reference can have Controller set to true",
            )
        )
    return found
