"""Custom kinds come and go: follows the CustomResourceDefinitions and keeps the registry in step; clears away the objects of a
definition that is being deleted."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from insula.clock import Backoff
from insula.errors import InsulaError, NotFound, Unsupported
from insula.kinds.crd import CLEANUP, kinds_of
from insula.kinds.kind import Kind
from insula.model.resource import Ref, Resource
from insula.tasks import Tasks
from insula.verbs.request import Request
from insula.verbs.verbs import Verbs

log = logging.getLogger(__name__)
CRDS = Ref("apiextensions.k8s.io", "v1", "customresourcedefinitions")
_SELF = Request(field_manager="insula", user_agent="insula")


class Customs:
    """One registry's custom kinds, from one set of verbs."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs
        self._tasks = Tasks("custom kinds")
        self._served: dict[str, tuple[Kind, ...]] = {}

    async def start(self) -> None:
        """Serve what is defined; follow changes from there on."""
        revision = await self._read()
        self._tasks.spawn(self._follow(revision), "definitions")

    async def close(self) -> None:
        """Stop following."""
        await self._tasks.close()

    async def _read(self) -> str:
        listing = await self._verbs.list(CRDS)
        present = {crd["metadata"]["name"] for crd in listing.items}
        for name in set(self._served) - present:
            self._drop(name)
        for crd in listing.items:
            self._put(crd)
        return listing.revision

    async def _follow(self, revision: str) -> None:
        backoff = Backoff(base_s=0.05, cap_s=5.0)
        while True:
            try:
                await self._watch(revision)
                backoff.reset()
            except InsulaError as fault:
                log.info("watch of custom resource definitions ended, reading anew: %s", fault)
                await asyncio.sleep(backoff.next_s())
            with suppress(InsulaError):
                revision = await self._read()

    async def _watch(self, revision: str) -> None:
        stream = await self._verbs.watch(CRDS, revision=revision)
        try:
            async for event in stream.events():
                if event.type == "DELETED":
                    self._drop(event.object["metadata"]["name"])
                elif event.type != "BOOKMARK":
                    self._put(event.object)
        finally:
            await stream.aclose()

    def _put(self, crd: Resource) -> None:
        name = crd["metadata"]["name"]
        kinds = tuple(kind for kind in kinds_of(crd) if self._free(name, kind))
        before = self._served.get(name, ())
        gone = {kind.ref for kind in before} - {kind.ref for kind in kinds}
        if [(kind.ref, kind.schema, kind.columns) for kind in before] != [
            (kind.ref, kind.schema, kind.columns) for kind in kinds
        ] or before == ():
            self._served[name] = kinds
            if gone:
                self._verbs.registry.remove(*gone)
            self._verbs.registry.add(*kinds, replace=True)
        if crd["metadata"].get("deletionTimestamp") and CLEANUP in (crd["metadata"].get("finalizers") or ()):
            self._tasks.spawn(self._clear(crd), f"clear {name}")

    def _free(self, name: str, kind: Kind) -> bool:
        """Whether no other definition or built-in kind has this type."""
        mine = {each.ref for each in self._served.get(name, ())}
        taken = self._verbs.registry.find(kind.ref)
        if taken is None or kind.ref in mine:
            return True
        log.warning("the definition %s is not served: its type is taken", name)
        return False

    def _drop(self, name: str) -> None:
        kinds = self._served.pop(name, ())
        if kinds:
            self._verbs.registry.remove(*(kind.ref for kind in kinds))

    async def _clear(self, crd: Resource) -> None:
        """Delete all objects of a definition, wait until they are gone, then let the definition go."""
        name = crd["metadata"]["name"]
        backoff = Backoff(base_s=0.02, cap_s=2.0)
        while True:
            try:
                if not self._served.get(name) or await self._emptied(self._served[name][0].ref):
                    await self._release(name)
                    return
            except NotFound:
                return
            except Unsupported:
                raise
            except InsulaError as fault:
                log.info("objects of %s are not gone yet: %s", name, fault)
            await asyncio.sleep(backoff.next_s())

    async def _emptied(self, ref: Ref) -> bool:
        if not (await self._verbs.list(ref, limit=1)).items:
            return True
        await self._verbs.delete_collection(_SELF, ref)
        return not (await self._verbs.list(ref, limit=1)).items

    async def _release(self, name: str) -> None:
        crd = await self._verbs.get(CRDS, name)
        crd["metadata"]["finalizers"] = [each for each in crd["metadata"].get("finalizers") or () if each != CLEANUP]
        await self._verbs.update(_SELF, CRDS, name, crd)
