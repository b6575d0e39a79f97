"""Namespace, ServiceAccount."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import age, column, get
from insula.model.resource import Resource

NAME_LABEL = "kubernetes.io/metadata.name"
FINALIZER = "kubernetes"


def _default(obj: Resource) -> None:
    name = obj["metadata"].get("name")
    if name:
        if not isinstance(obj["metadata"].get("labels"), dict):
            obj["metadata"]["labels"] = {}
        obj["metadata"]["labels"][NAME_LABEL] = name


def prepare(new: Resource, old: Resource | None) -> None:
    """A new namespace is active and held by its finalizer, which only the finalize subresource changes."""
    if old is None:
        _default(new)  # the name may have been generated
        new["spec"] = {**(new.get("spec") or {}), "finalizers": [FINALIZER]}
        new["status"] = {"phase": "Active"}
        return
    new["spec"] = {**(new.get("spec") or {}), "finalizers": get(old, "spec", "finalizers", default=[])}


def _validate(new: Resource, _old: Resource | None) -> list[Cause]:
    return rules.dns_label("metadata.name", new["metadata"].get("name"))


def _row(obj: Resource) -> Sequence[Any]:
    return get(obj, "status", "phase", default=""), age(obj)


KINDS = (
    replace(
        row("v1", "Namespace"),
        default=_default,
        prepare=prepare,
        validate=_validate,
        fields=lambda obj: {"status.phase": get(obj, "status", "phase", default="")},
        columns=(column("Status"), column("Age")),
        row=_row,
    ),
    replace(
        row("v1", "ServiceAccount"),
        columns=(column("Secrets"), column("Age")),
        row=lambda obj: (len(obj.get("secrets") or ()), age(obj)),
    ),
)
