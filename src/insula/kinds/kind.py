"""A Kind: how objects of one resource type are named, defaulted, validated and printed.

One file of this package per kind with behaviour, exporting `KIND` (or `KINDS`); every other built-in kind is a row made from
the installed schemas. `Registry` holds them all and takes custom kinds at run time. Functions here are pure: no store, no
clock, no I/O; what needs those is a verb or a controller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from insula.errors import Cause
from insula.model.resource import Ref, Resource


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of `kubectl get`: `priority` 0 always shown, 1 with -o wide. Type as in metav1.Table."""

    name: str
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0


def _nothing(_: Resource) -> None:
    return None


def _no_causes(_new: Resource, _old: Resource | None) -> list[Cause]:
    return []


def _unchanged(_new: Resource, _old: Resource | None) -> None:
    return None


def _no_fields(_: Resource) -> dict[str, str]:
    return {}


def _same(obj: Resource) -> Resource:
    return obj


ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One resource type in one version.

    `default` fills absent fields in place. `prepare` runs on a write after defaulting, with the old object on update: it
    computes what the server owns (clears status on create, keeps immutable parts, allocates nothing). `validate` returns
    what is wrong beyond the schema. `fields` gives the selectable fields besides metadata.name and metadata.namespace.
    `status_fields` are the top-level fields owned by the status subresource; a main write never changes them, a status
    write changes nothing else.
    `schema` is the OpenAPI definition name (`io.k8s.api.core.v1.Pod`) or an inline structural schema for a custom kind;
    `schemas.of(kind)` reads either, `validation.conform` holds an object against it.
    Several kinds may serve the same stored objects (autoscaling v1 and v2, events.k8s.io and core events): they name the one
    whose values are kept in `stored_as`; `to_stored` and `from_stored` turn a whole object, apiVersion and kind included.
    """

    ref: Ref
    kind: str
    singular: str
    namespaced: bool
    list_kind: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    schema: str | Mapping[str, Any] | None = None
    subresources: tuple[str, ...] = ()  # status, scale, binding, eviction, token, log, exec, ...
    status_fields: tuple[str, ...] = ("status",)
    stored: bool = True  # False: answered on creation and forgotten (SubjectAccessReview, TokenReview, ...)
    storage_version: str = ""  # the version that values are stored in, where a group serves several
    stored_as: Ref | None = None  # whose values are shared; None: its own
    to_stored: Callable[[Resource], Resource] = _same
    from_stored: Callable[[Resource], Resource] = _same
    has_generation: bool = True  # metadata.generation rises with each change of spec
    default: Callable[[Resource], None] = _nothing
    prepare: Callable[[Resource, Resource | None], None] = _unchanged
    validate: Callable[[Resource, Resource | None], list[Cause]] = _no_causes
    fields: Callable[[Resource], dict[str, str]] = _no_fields
    columns: tuple[Column, ...] = ()  # NAME and AGE are added where absent
    row: Callable[[Resource], Sequence[Any]] | None = None  # cells for `columns`, in order
    scale: Mapping[str, str] = field(default_factory=dict)  # JSON paths: spec, status, selector

    @property
    def gvk(self) -> tuple[str, str]:
        """(apiVersion, kind) as manifests write them."""
        return self.ref.api_version, self.kind
