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
_SERVICES = Ref("apiregistration.k8s.io", "v1", "apiservices")
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
    """The namespaces, roles and API services that clients rely on. Can be repeated; what users added is kept."""
    groups = verbs.registry.groups().items()
    services = [
        bootstrap.api_service(group, version, at, place)
        for at, (group, versions) in enumerate(groups)
        for place, version in enumerate(versions)
    ]
    wanted = [
        *((_NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}) for name in NAMESPACES),
        *((_REFS[1], role) for role in bootstrap.cluster_roles()),
        *((_REFS[3], binding) for binding in bootstrap.cluster_role_bindings()),
        *((_SERVICES, service) for service in services),
    ]
    await asyncio.gather(*(_reconcile(verbs, ref, obj) for ref, obj in wanted))


async def _reconcile(verbs: Verbs, ref: Ref, wanted: Resource) -> None:
    """Make an object where it is absent; give a role or binding that is kept up to date what it lacks."""
    name = wanted["metadata"]["name"]
    await asyncio.sleep(0)
    try:
        present = await verbs.get(ref, name)
    except NotFound:
        status = wanted.get("status")
        with suppress(AlreadyExists):
            made = (await verbs.create(_MANAGER, ref, wanted)).object
            if status:
                await verbs.update(_MANAGER, ref, name, {**made, "status": status}, sub="status")
        return
    if present["metadata"].get("annotations", {}).get(bootstrap.AUTO_UPDATE) != "true" or "aggregationRule" in wanted:
        return
    field = "rules" if "rules" in wanted else "subjects"
    have = present.get(field) or []
    if lost := [each for each in wanted[field] if each not in have]:
        present[field] = [*have, *lost]
        await verbs.update(_MANAGER, ref, name, present)
