"""Keeps the picture of roles and bindings up to date from watches, and makes the default roles at start."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from insula.api.kube import bootstrap
from insula.api.kube.rbac import GROUP, Picture
from insula.clock import Backoff
from insula.errors import AlreadyExists, InsulaError, NotFound
from insula.model.resource import Ref, Resource
from insula.tasks import Tasks
from insula.verbs.request import Request
from insula.verbs.verbs import Verbs

log = logging.getLogger(__name__)
_REFS = tuple(Ref(GROUP, "v1", plural) for plural in ("roles", "clusterroles", "rolebindings", "clusterrolebindings"))
_NAMESPACES = Ref("", "v1", "namespaces")
NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_MANAGER = Request(field_manager="insula", user_agent="insula")


class Feed:
    """One picture fed from one set of verbs: `await start()` returns when the picture is complete."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs
        self._tasks = Tasks("rbac")
        self.picture = Picture()

    async def start(self) -> None:
        """Make the default roles, read everything, follow changes."""
        await make_defaults(self._verbs)
        for ref in _REFS:
            revision = await self._read(ref)
            self._tasks.spawn(self._follow(ref, revision), ref.plural)

    async def close(self) -> None:
        """Stop following."""
        await self._tasks.close()

    async def _read(self, ref: Ref) -> str:
        listing = await self._verbs.list(ref)
        self.picture.replace(self._verbs.registry.by_ref(ref).kind, listing.items)
        return listing.revision

    async def _follow(self, ref: Ref, revision: str) -> None:
        backoff = Backoff(base_s=0.05, cap_s=5.0)
        while True:
            try:
                await self._watch(ref, revision)
                backoff.reset()
            except InsulaError as fault:
                log.info("watch of %s ended, reading anew: %s", ref.plural, fault)
                await asyncio.sleep(backoff.next_s())
            with suppress(InsulaError):
                revision = await self._read(ref)

    async def _watch(self, ref: Ref, revision: str) -> None:
        stream = await self._verbs.watch(ref, revision=revision)
        try:
            async for event in stream.events():
                if event.type == "DELETED":
                    self.picture.drop(event.object)
                elif event.type != "BOOKMARK":
                    self.picture.put(event.object)
        finally:
            await stream.aclose()


async def make_defaults(verbs: Verbs) -> None:
    """The namespaces and roles that clients rely on. Can be repeated; what users added is kept."""
    for name in NAMESPACES:
        with suppress(AlreadyExists):
            namespace: Resource = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            await verbs.create(_MANAGER, _NAMESPACES, namespace)
    for role in bootstrap.cluster_roles():
        await _reconcile(verbs, _REFS[1], role)
    for binding in bootstrap.cluster_role_bindings():
        await _reconcile(verbs, _REFS[3], binding)


async def _reconcile(verbs: Verbs, ref: Ref, wanted: Resource) -> None:
    name = wanted["metadata"]["name"]
    await asyncio.sleep(0)
    try:
        present = await verbs.get(ref, name)
    except NotFound:
        with suppress(AlreadyExists):
            await verbs.create(_MANAGER, ref, wanted)
        return
    if present["metadata"].get("annotations", {}).get("rbac.authorization.kubernetes.io/autoupdate") != "true":
        return
    field = "rules" if "rules" in wanted else "subjects"
    have = present.get(field) or []
    lost = [each for each in wanted[field] if each not in have]
    if lost and "aggregationRule" not in wanted:
        present[field] = [*have, *lost]
        await verbs.update(_MANAGER, ref, name, present)
