"""Who owns which field: keeps metadata.managedFields true on every write.

The rules are in `model.patch.managed`; here they meet requests. Defaults and what admission adds belong to who made the object
by other means than apply; an apply owns only what its configuration names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from insula import clock
from insula.kinds import schemas
from insula.kinds.kind import Kind
from insula.model.patch import fieldset, managed
from insula.model.patch.managed import Manager, Owners
from insula.model.resource import Resource
from insula.store.contract import Record
from insula.verbs.request import Request

Write = Callable[[], Awaitable[Record | None]]


def beyond(kind: Kind, sub: str) -> fieldset.Node:
    """The fields that a write to this (sub)resource does not reach."""
    names = set(kind.status_fields) if "status" in kind.subresources else set()
    if sub == "status":
        node = schemas.node(kind)
        names = set(node.declared if node else ("spec", "data")) - set(kind.status_fields) - {"metadata"}
    elif sub:
        names = set()
    return {f"f:{name}": {} for name in names}


class Applied:
    """A server-side apply on its way. `owners` is filled when it has met the live object."""

    def __init__(self, kind: Kind, request: Request, config: Resource, sub: str) -> None:
        out_of_reach = beyond(kind, sub)
        self.ask = managed.Apply(
            Manager(request.manager, "Apply", kind.ref.api_version, sub),
            {name: value for name, value in config.items() if f"f:{name}" not in out_of_reach},
            out_of_reach,
            request.force,
            clock.rfc3339(clock.now()),
        )
        self._schema = schemas.node(kind)
        self.owners: Owners = {}

    def to(self, live: Resource) -> Resource:
        """The live object after the apply. Raises Conflict."""
        owners = managed.read(live["metadata"].get("managedFields"))
        merged, self.owners = managed.applied(owners, live, self.ask, self._schema)
        return merged

    def of_new(self) -> Owners:
        """The owners of an object that the apply makes."""
        own = self.ask.own(self._schema)
        return {self.ask.manager: managed.Owned(own, self.ask.time)} if own else {}


def _set(obj: Resource, owners: Owners) -> None:
    if owners:
        obj["metadata"]["managedFields"] = managed.write(owners)
    else:
        obj["metadata"].pop("managedFields", None)


def of_new(kind: Kind, request: Request, obj: Resource, applied: Applied | None) -> None:
    """Give the fields of a new object to who made it."""
    if applied is not None:
        _set(obj, applied.of_new())
        return
    manager = Manager(request.manager, "Update", kind.ref.api_version)
    time = clock.rfc3339(clock.now())
    _set(obj, managed.of_new(manager, obj, schemas.node(kind), beyond(kind, ""), time))


def of_changed(kind: Kind, request: Request, new: Resource, old: Resource, sub: str, applied: Applied | None) -> None:
    """Give changed fields to who changed them."""
    if applied is not None:
        _set(new, applied.owners)
        return
    given, kept = new["metadata"].get("managedFields"), old["metadata"].get("managedFields")
    if sub or not given:
        owners = managed.read(kept)
    elif given == [{}]:
        owners = {}
    else:
        owners = managed.read(given) or managed.read(kept)
    manager = Manager(request.manager, "Update", kind.ref.api_version, sub)
    _set(new, managed.updated(owners, manager, old, new, schemas.node(kind), clock.rfc3339(clock.now())))


def _timeless(obj: Resource) -> list[Resource]:
    return [{**row, "time": ""} for row in obj["metadata"].get("managedFields") or ()]


def unchanged(new: Resource, old: Resource) -> bool:
    """Whether a write would change nothing, the times of ownership aside."""
    if any(new.get(name) != old.get(name) for name in (new.keys() | old.keys()) - {"metadata"}):
        return False
    mine, theirs = new["metadata"], old["metadata"]
    beside = {"managedFields", "resourceVersion"}
    if any(mine.get(name) != theirs.get(name) for name in (mine.keys() | theirs.keys()) - beside):
        return False
    return _timeless(new) == _timeless(old)
