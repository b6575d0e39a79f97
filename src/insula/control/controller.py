"""What a controller is. One file of `controllers/` exports one of these as CONTROLLER; the folder is the registry.

A reconcile gets a key and nothing else: no event and no object, so that it cannot depend on having seen every change. It reads
what is, compares it with what is wanted, and makes one step. Reads come from caches and may be a little old; a write that was
based on an old read is refused by the store (StaleRevision) and the key is tried again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from insula.client.contract import Client
from insula.control.events import Recorder
from insula.control.expectations import Expectations
from insula.model.resource import Key, Ref, Resource
from insula.model.selector import from_object


@dataclass(frozen=True)
class Result:
    """How a pass ended: done, or look again in `after_s` seconds. `note` says in a few words what the pass did."""

    after_s: float | None = None
    note: str = ""


DONE = Result()


class Caches(Protocol):
    """What was last seen through watches, without asking the server. Objects must not be changed in place."""

    @property
    def refs(self) -> Iterable[Ref]:
        """The types that are cached."""
        ...

    def get(self, ref: Ref, name: str, namespace: str = "") -> Resource | None:
        """One object, or None. A type that nobody subscribed to has none."""
        ...

    def list(self, ref: Ref, namespace: str = "") -> Iterable[Resource]:
        """All objects, of one namespace or ("") of all."""
        ...

    def owned(self, ref: Ref, uid: str) -> Iterable[Resource]:
        """Objects that name the uid among their owners; for "" those that no owner controls."""
        ...

    def revision(self, ref: Ref) -> int:
        """How far a type's cache has come: every write up to this revision shows. 0: not known."""
        ...


@dataclass(frozen=True)
class TypeInfo:
    """A resource type that can be listed, watched and deleted. `kind` is its name in owner references. `alternate`: its
    objects are those of another version or group, where they are looked at already."""

    ref: Ref
    kind: str
    namespaced: bool
    alternate: bool = False


async def _no_types() -> Sequence[TypeInfo]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a reconcile may use. `source` is who its events are from."""

    client: Client
    caches: Caches
    settings: Mapping[str, Any] = field(default_factory=dict)
    types: Callable[[], Awaitable[Sequence[TypeInfo]]] = _no_types  # every type served now, custom ones included
    expectations: Expectations = field(default_factory=Expectations)
    source: str = "insula"
    events: Recorder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", Recorder(self.client, self.source))


Keys = Callable[[Resource, Caches], Iterable[Hashable]]
When = Callable[[Resource | None, Resource | None], bool]


def itself(obj: Resource, _: Caches) -> Iterable[Key]:
    """The object's own key."""
    meta = obj["metadata"]
    return [Key(meta.get("namespace", ""), meta["name"])]


def controlled_by(kind: str) -> Keys:
    """The key of the object's controlling owner, when it is of this kind."""

    def keys(obj: Resource, _: Caches) -> Iterable[Key]:
        owner = controller_of(obj)
        if owner is not None and owner["kind"] == kind:
            yield Key(obj["metadata"].get("namespace", ""), owner["name"])

    return keys


def controlled_or_wanted_by(kind: str, owners: Ref) -> Keys:
    """Likewise; an object that nobody controls wakes every possible owner whose selector matches it, to be adopted."""

    owned = controlled_by(kind)

    def keys(obj: Resource, caches: Caches) -> Iterable[Hashable]:
        if controller_of(obj) is not None:
            yield from owned(obj, caches)
            return
        meta = obj["metadata"]
        for owner in caches.list(owners, meta.get("namespace", "")):
            selector = from_object(owner["spec"].get("selector"))
            if selector is not None and selector.matches(meta.get("labels") or {}):
                yield Key(meta.get("namespace", ""), owner["metadata"]["name"])

    return keys


def controller_of(obj: Resource) -> Resource | None:
    """The owner reference marked as controller, or None."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            reference: Resource = owner
            return reference
    return None


def always(_old: Resource | None, _new: Resource | None) -> bool:
    """Every change matters."""
    return True


@dataclass(frozen=True, kw_only=True)
class Watch:
    """A type that a controller looks at, and which keys a change of one object wakes. `when` leaves out changes (old, new)
    that do not matter."""

    ref: Ref
    keys: Keys = itself
    when: When = always


@dataclass(frozen=True, kw_only=True)
class Controller:
    """A named reconcile function with what wakes it. The first watch is of the type that the keys belong to."""

    name: str
    summary: str
    watches: tuple[Watch, ...]
    reconcile: Callable[[Context, Any], Awaitable[Result]]
    workers: int = 2
    every_type: Callable[[TypeInfo], Watch | None] | None = None  # besides `watches`: look at every type that is served
    every_s: float | None = None  # wakes the key "" this often, for what can only be found by looking
