"""Who owns which field: keeps metadata.managedFields true on every write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec import Struct

from insula.kinds.kind import Kind
from insula.model.resource import Resource
from insula.store.contract import Record
from insula.verbs.request import Request

Write = Callable[[], Awaitable[Record | None]]


class Applied(Struct, frozen=True):
    """The write is a server-side apply of this configuration."""

    config: Resource


def of_new(kind: Kind, request: Request, obj: Resource, applied: Applied | None) -> None:
    """Give the fields of a new object to who made it."""


def of_changed(kind: Kind, request: Request, new: Resource, old: Resource, sub: str, applied: Applied | None) -> None:
    """Give changed fields to who changed them."""


def unchanged(new: Resource, old: Resource) -> bool:
    """Whether a write would change nothing, the times of ownership aside."""
    return new == old
