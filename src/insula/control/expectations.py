"""What a controller has done and not yet seen in its caches.

Caches lag behind writes. A controller that counts objects would count too few right after creating some, and create them again;
so it notes what it made and deleted, and makes no further step for an owner until the caches show it. An expectation that is
not met in five minutes is forgotten: the object may have come and gone between two looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from insula.model.resource import Resource

FORGET_S = 300.0


class Expectations:
    """Notes per owner uid. Not shared between processes; losing them with the process is fine, caches are fresh then."""

    def __init__(self) -> None:
        self._created: dict[str, dict[str, float]] = {}
        self._deleted: dict[str, dict[str, float]] = {}

    def created(self, owner: str, uid: str) -> None:
        """An object was made for an owner."""
        self._created.setdefault(owner, {})[uid] = self._due()

    def deleted(self, owner: str, uid: str) -> None:
        """An object of an owner was deleted."""
        self._deleted.setdefault(owner, {})[uid] = self._due()

    def met(self, owner: str, seen: Iterable[Resource]) -> bool:
        """Whether the caches show all that was done for an owner."""
        now = asyncio.get_running_loop().time()
        present = {obj["metadata"]["uid"]: bool(obj["metadata"].get("deletionTimestamp")) for obj in seen}
        created = {u: due for u, due in self._created.get(owner, {}).items() if u not in present and due > now}
        deleted = {u: due for u, due in self._deleted.get(owner, {}).items() if present.get(u) is False and due > now}
        _keep(self._created, owner, created)
        _keep(self._deleted, owner, deleted)
        return not created and not deleted

    def _due(self) -> float:
        return asyncio.get_running_loop().time() + FORGET_S


def _keep(notes: dict[str, dict[str, float]], owner: str, left: dict[str, float]) -> None:
    if left:
        notes[owner] = left
    else:
        notes.pop(owner, None)
