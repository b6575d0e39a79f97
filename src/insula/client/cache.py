"""A local copy of one resource type, kept by listing once and watching from there.

List, then stream; list again when the server says "too old". Handlers are told (old, new): (None, obj) for a new one, (obj, None)
for a removed one. After a relist they are told only what differs. Objects are shared: nobody may change them in place. They are
kept without `managedFields`, which are most of an object and which no loop reads; a write without them leaves them as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import cast

from insula.client.contract import Client, Event
from insula.clock import Backoff
from insula.errors import Expired, InsulaError
from insula.model.resource import Key, Ref, Resource, key_of

log = logging.getLogger(__name__)
Handler = Callable[[Resource | None, Resource | None], None]


class Informer:
    """The cache of one type. `run` fills it and keeps it until cancelled; `synced` is set after the first listing.

    `revision` says how far it has come: every write up to it shows. Resource versions of one type compare as numbers, as the
    Kubernetes API defines them since 1.35; a server with others leaves it at 0.
    """

    def __init__(self, client: Client, ref: Ref, *, namespace: str = "", labels: str = "", fields: str = "") -> None:
        self._client = client
        self.ref = ref
        self._scope = {"labels": labels, "fields": fields}
        self._namespace = namespace
        self._objects: dict[Key, Resource] = {}
        self._by_namespace: dict[str, set[Key]] = {}
        self._by_owner: dict[str, set[Key]] = {}
        self._handlers: list[Handler] = []
        self.synced = asyncio.Event()
        self.revision = 0

    # reading

    def get(self, name: str, namespace: str = "") -> Resource | None:
        """One object, or None."""
        return self._objects.get(Key(namespace, name))

    def list(self, namespace: str = "") -> Iterable[Resource]:
        """All objects, of one namespace or ("") of all."""
        if not namespace:
            return list(self._objects.values())
        return [self._objects[key] for key in self._by_namespace.get(namespace, ())]

    def owned(self, uid: str) -> Iterable[Resource]:
        """Objects that name the uid among their owners; for "" those that no owner controls."""
        return [self._objects[key] for key in self._by_owner.get(uid, ())]

    def __len__(self) -> int:
        return len(self._objects)

    def subscribe(self, handler: Handler) -> None:
        """Be told of every change; of what is there already, at once."""
        self._handlers.append(handler)
        for obj in list(self._objects.values()):
            self._tell(handler, None, obj)

    # keeping

    async def run(self) -> None:
        """List and watch until cancelled. Faults of the server are waited out with a growing back-off."""
        backoff = Backoff(0.1, 30.0)
        while True:
            try:
                revision = await self._list()
                self.synced.set()
                await self._watch(revision, backoff)
            except Expired:
                continue
            except (InsulaError, OSError) as fault:
                wait_s = backoff.next_s()
                log.warning("watch ended: %s", fault, extra={"plural": self.ref.plural, "retry_s": round(wait_s, 2)})
                await asyncio.sleep(wait_s)

    async def _list(self) -> str:
        found: dict[Key, Resource] = {}
        token, revision = "", ""
        while True:
            page = await self._client.list(self.ref, self._namespace, limit=500, continue_token=token, **self._scope)
            found.update((key_of(obj), obj) for obj in page.items)
            token, revision = page.continue_token, page.revision
            if not token:
                break
        for key in self._objects.keys() - found.keys():
            self._change(key, None)
        for key, obj in found.items():
            old = self._objects.get(key)
            if old is None or _revision(old) != _revision(obj):
                self._change(key, obj)
        self._came_to(revision)
        return revision

    async def _watch(self, revision: str, backoff: Backoff) -> None:
        while True:
            events = self._client.watch(self.ref, self._namespace, revision=revision, **self._scope)
            async with contextlib.aclosing(cast(AsyncGenerator[Event, None], events)):
                async for event in events:
                    backoff.reset()
                    revision = _revision(event.object)
                    self._came_to(revision)
                    if event.type != "BOOKMARK":
                        self._change(key_of(event.object), None if event.type == "DELETED" else event.object)

    def _came_to(self, revision: str) -> None:
        if revision.isdigit():
            self.revision = max(self.revision, int(revision))

    def _change(self, key: Key, new: Resource | None) -> None:
        old = self._objects.get(key)
        if old is not None:
            self._unindex(key, old)
        if new is None:
            self._objects.pop(key, None)
        else:
            new["metadata"].pop("managedFields", None)
            self._objects[key] = new
            self._index(key, new)
        if old is not None or new is not None:
            for handler in self._handlers:
                self._tell(handler, old, new)

    def _tell(self, handler: Handler, old: Resource | None, new: Resource | None) -> None:
        """A fault in one listener must end neither the cache nor the others."""
        try:
            handler(old, new)
        except Exception:
            log.exception("a listener of changes failed", extra={"plural": self.ref.plural})

    def _index(self, key: Key, obj: Resource) -> None:
        self._by_namespace.setdefault(key.namespace, set()).add(key)
        for uid in _owners(obj):
            self._by_owner.setdefault(uid, set()).add(key)

    def _unindex(self, key: Key, obj: Resource) -> None:
        _discard(self._by_namespace, key.namespace, key)
        for uid in _owners(obj):
            _discard(self._by_owner, uid, key)


def _owners(obj: Resource) -> list[str]:
    owners = obj["metadata"].get("ownerReferences") or ()
    uids = [owner["uid"] for owner in owners]
    return uids if any(owner.get("controller") for owner in owners) else [*uids, ""]


def _revision(obj: Resource) -> str:
    revision: str = obj["metadata"].get("resourceVersion", "")
    return revision


def _discard(index: dict[str, set[Key]], name: str, key: Key) -> None:
    keys = index.get(name)
    if keys is not None:
        keys.discard(key)
        if not keys:
            del index[name]
