"""The Kubernetes API seen from Python: all that controllers, the scheduler and the agent may use.

Two implementations are siblings of this file: `local` (calls `verbs` in this process) and `http` (any Kubernetes API
server). `cache` builds on either. A resource is a plain mapping; unknown fields are kept.

The local client yields to the event loop on every call, so that races that a remote client would show also show locally.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal, Protocol

from msgspec import Struct

from insula.model.resource import Ref, Resource


class Listing(Struct, frozen=True):
    """Objects with the revision that a watch may start from."""

    items: list[Resource]
    revision: str
    continue_token: str = ""


class Event(Struct, frozen=True):
    """What a watch yields. Bookmarks carry only a revision in `object.metadata.resourceVersion`."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Resource


PatchType = Literal["merge", "strategic", "json", "apply"]


class Client(Protocol):
    """The verbs. Every method raises the tree of `errors` (NotFound, AlreadyExists, StaleRevision, Invalid, Forbidden...).
    `sub` names a subresource: "status", "binding", "scale", "eviction", "token"..."""

    async def get(self, ref: Ref, name: str, namespace: str = "", *, sub: str = "") -> Resource:
        """One object."""
        ...

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
        ...

    async def create(
        self, ref: Ref, obj: Mapping[str, Any], namespace: str = "", *, name: str = "", sub: str = ""
    ) -> Resource:
        """Make it, or with `sub` post to the subresource of `name`. Returns the stored object (or the answer)."""
        ...

    async def update(self, ref: Ref, obj: Mapping[str, Any], namespace: str = "", *, sub: str = "") -> Resource:
        """Replace it; a resourceVersion in it guards against lost updates."""
        ...

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
        """Change part of it. `manager` owns the fields (empty: the client's own name); with type apply `force` takes
        fields from other managers."""
        ...

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
        ...

    def watch(
        self, ref: Ref, namespace: str = "", *, labels: str = "", fields: str = "", revision: str = ""
    ) -> AsyncIterator[Event]:
        """Changes after `revision`. Raises Expired when that is too old: list again."""
        ...
