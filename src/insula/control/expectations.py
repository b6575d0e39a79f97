"""What a controller has done and not yet seen in its caches.

Caches lag behind writes. A controller that counts objects would count too few right after creating some, and create them again;
so it notes the revision of what it made and the uids of what it deleted, and makes no further step for an owner until its cache
has come that far. The event that brings the cache there wakes the owner's key, so nothing needs to be planned.
"""

from __future__ import annotations

from collections.abc import Iterable

from insula.model.resource import Resource


class Expectations:
    """Notes per owner uid. Not shared between processes; losing them with the process is fine, caches are fresh then."""

    def __init__(self) -> None:
        self._written: dict[str, int] = {}
        self._deleted: dict[str, set[str]] = {}

    def wrote(self, owner: str, obj: Resource) -> None:
        """An object of an owner was made or changed; `obj` as the server answered it."""
        revision = str(obj["metadata"].get("resourceVersion", ""))
        if revision.isdigit():
            self._written[owner] = max(self._written.get(owner, 0), int(revision))

    def deleted(self, owner: str, uid: str) -> None:
        """An object of an owner is about to be deleted."""
        self._deleted.setdefault(owner, set()).add(uid)

    def failed(self, owner: str, uid: str) -> None:
        """It could not be deleted after all."""
        self._keep(owner, self._deleted.get(owner, set()) - {uid})

    def met(self, owner: str, seen: Iterable[Resource], revision: int) -> bool:
        """Whether a cache that has come to `revision`, and in which the owner has the objects `seen`, shows all that was done."""
        if self._written.get(owner, 0) > revision > 0:
            return False
        self._written.pop(owner, None)
        alive = {obj["metadata"]["uid"] for obj in seen if not obj["metadata"].get("deletionTimestamp")}
        return not self._keep(owner, self._deleted.get(owner, set()) & alive)

    def forget(self, owner: str) -> None:
        """The owner is gone."""
        self._written.pop(owner, None)
        self._deleted.pop(owner, None)

    def _keep(self, owner: str, left: set[str]) -> set[str]:
        if left:
            self._deleted[owner] = left
        else:
            self._deleted.pop(owner, None)
        return left
