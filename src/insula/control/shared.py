"""One cache per resource type, shared by all controllers of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from insula.client.cache import Handler, Informer
from insula.client.contract import Client
from insula.model.resource import Ref, Resource
from insula.tasks import Tasks, finish


class SharedCaches:
    """Implements `controller.Caches`. Types are added by `subscribe`; `start` returns when all of them are filled."""

    def __init__(self, client: Client, tasks: Tasks) -> None:
        self._client = client
        self._tasks = tasks
        self._informers: dict[Ref, Informer] = {}
        self._running: dict[Ref, asyncio.Task[None]] = {}

    def subscribe(self, ref: Ref, handler: Handler) -> None:
        """Be told (old, new) of every change of a type."""
        self.informer(ref).subscribe(handler)

    def informer(self, ref: Ref) -> Informer:
        """The cache of a type, made on first use."""
        if ref not in self._informers:
            self._informers[ref] = Informer(self._client, ref)
        return self._informers[ref]

    def begin(self) -> None:
        """Start caches added since the last call; they fill in the background."""
        for ref, informer in self._informers.items():
            if ref not in self._running:
                self._running[ref] = self._tasks.spawn(informer.run(), f"cache-{ref.plural}")

    async def start(self) -> None:
        """Start caches added since the last call and wait until all have been filled once."""
        self.begin()
        await asyncio.gather(*(informer.synced.wait() for informer in list(self._informers.values())))

    async def drop(self, ref: Ref) -> None:
        """Stop a type's cache, for a custom kind that is gone."""
        self._informers.pop(ref, None)
        if task := self._running.pop(ref, None):
            await finish(task)

    @property
    def refs(self) -> frozenset[Ref]:
        """The types that are cached."""
        return frozenset(self._informers)

    def get(self, ref: Ref, name: str, namespace: str = "") -> Resource | None:
        """One object, or None."""
        informer = self._informers.get(ref)
        return informer.get(name, namespace) if informer else None

    def list(self, ref: Ref, namespace: str = "") -> Iterable[Resource]:
        """All objects, of one namespace or ("") of all."""
        informer = self._informers.get(ref)
        return informer.list(namespace) if informer else ()

    def owned(self, ref: Ref, uid: str) -> Iterable[Resource]:
        """Objects that name the uid among their owners; for "" those that no owner controls."""
        informer = self._informers.get(ref)
        return informer.owned(uid) if informer else ()

    def revision(self, ref: Ref) -> int:
        """How far a type's cache has come: every write up to it shows."""
        informer = self._informers.get(ref)
        return informer.revision if informer else 0
