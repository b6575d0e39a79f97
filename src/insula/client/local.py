"""The client of components that live in the API server's own process: a function call instead of HTTP, nothing else differs.

    controller, scheduler, agent -> client.local -> verbs -> store
    controller, scheduler, agent -> client.http  -> any Kubernetes API server

It yields to the event loop on every call and copies what goes in and out, as a network would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from insula.client.contract import Event, Listing, PatchType
from insula.model.resource import Ref, Resource
from insula.verbs.codec import copy
from insula.verbs.request import SYSTEM, DeleteOptions, Preconditions, Request, User
from insula.verbs.verbs import Verbs


class LocalClient:
    """A `Client` over `verbs`, acting as `user` (the doors' access rules do not apply inside the process). Fields that it
    writes are owned under `manager`."""

    def __init__(self, verbs: Verbs, user: User = SYSTEM, *, manager: str = "insula") -> None:
        self._verbs = verbs
        self._request = Request(user=user, field_manager=manager, field_validation="Warn", user_agent=manager)

    async def get(self, ref: Ref, name: str, namespace: str = "", *, sub: str = "") -> Resource:
        """One object."""
        await asyncio.sleep(0)
        return await self._verbs.get(ref, name, namespace, sub=sub)

    async def list(
        self,
        ref: Ref,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
    ) -> Listing:
        """All objects, of one namespace or ("") of all."""
        await asyncio.sleep(0)
        found = await self._verbs.list(
            ref, namespace, labels=labels, fields=fields, limit=limit, continue_token=continue_token
        )
        return Listing(found.items, found.revision, found.continue_token)

    async def create(
        self, ref: Ref, obj: Mapping[str, Any], namespace: str = "", *, name: str = "", sub: str = ""
    ) -> Resource:
        """Make it."""
        await asyncio.sleep(0)
        return (await self._verbs.create(self._request, ref, copy(obj), namespace, name=name, sub=sub)).object

    async def update(self, ref: Ref, obj: Mapping[str, Any], namespace: str = "", *, sub: str = "") -> Resource:
        """Replace it."""
        await asyncio.sleep(0)
        name = (obj.get("metadata") or {}).get("name", "")
        return (await self._verbs.update(self._request, ref, name, copy(obj), namespace, sub=sub)).object

    async def patch(
        self,
        ref: Ref,
        name: str,
        patch: Any,
        namespace: str = "",
        *,
        type: PatchType = "merge",
        sub: str = "",
        manager: str = "",
        force: bool = False,
    ) -> Resource:
        """Change part of it."""
        await asyncio.sleep(0)
        request = self._request
        if force or (manager and manager != request.field_manager):
            request = Request(
                user=request.user,
                field_manager=manager or request.field_manager,
                force=force,
                user_agent=request.user_agent,
            )
        return (await self._verbs.patch(request, ref, name, copy(patch), namespace, type=type, sub=sub)).object

    async def delete(
        self,
        ref: Ref,
        name: str,
        namespace: str = "",
        *,
        grace_s: int | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] | None = None,
        uid: str = "",
    ) -> Resource:
        """Delete it, or mark it for deletion."""
        await asyncio.sleep(0)
        options = DeleteOptions(grace_s=grace_s, propagation=propagation, preconditions=Preconditions(uid=uid))
        return (await self._verbs.delete(self._request, ref, name, namespace, options=options)).object

    async def watch(
        self, ref: Ref, namespace: str = "", *, labels: str = "", fields: str = "", revision: str = ""
    ) -> AsyncIterator[Event]:
        """Changes after `revision`; begins with the present objects where that is empty. Close it with `aclose()`."""
        await asyncio.sleep(0)
        stream = await self._verbs.watch(
            ref, namespace, labels=labels, fields=fields, revision=revision, bookmarks=True
        )
        try:
            async for event in stream.events():
                yield Event(event.type, event.object)
        finally:
            await stream.aclose()
