"""The store without a disk: for tests, simulations and throw-away clusters. Everything is lost with the process."""

from __future__ import annotations

from insula.errors import AlreadyExists, NotFound, StaleRevision, Unavailable
from insula.store.contract import Change, Page, Record
from insula.store.feed import Feed, Subscription
from insula.store.history import History, removed, written


class MemoryStore:
    """A `Store`. It keeps at most `keep` changes for watches and listings of the past."""

    def __init__(self, *, keep: int = 100_000, backlog: int = 10_000) -> None:
        self._history = History(Feed(keep=keep, backlog=backlog))
        self._closed = False

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed")

    async def revision(self) -> int:
        """The newest revision."""
        self._check()
        return self._history.feed.revision

    async def get(self, key: str) -> Record:
        """The newest record."""
        self._check()
        record = self._history.index.get(key)
        if record is None:
            raise NotFound(f"no key {key}")
        return record

    async def list(self, prefix: str, *, revision: int | None = None, limit: int = 0, after: str = "") -> Page:
        """Keys under a prefix."""
        self._check()
        if revision is None:
            return self._history.page(prefix, after, limit)
        self._history.check(revision)
        return self._history.page(prefix, after, limit, self._history.feed.since(revision), revision)

    async def create(self, key: str, value: bytes) -> Record:
        """Make a key."""
        self._check()
        if self._history.index.get(key) is not None:
            raise AlreadyExists(f"the key {key} exists")
        return self._commit(written(key, value, self._history.feed.revision + 1, None))

    async def update(self, key: str, value: bytes, *, revision: int) -> Record:
        """Replace a value."""
        previous = expect(self._history.index.get(key), key, revision)
        self._check()
        return self._commit(written(key, value, self._history.feed.revision + 1, previous))

    async def delete(self, key: str, *, revision: int | None = None) -> Record:
        """Remove a key."""
        previous = expect(self._history.index.get(key), key, revision)
        self._check()
        return self._commit(removed(previous, self._history.feed.revision + 1))

    def watch(self, prefix: str, *, after: int | None = None) -> Subscription:
        """Changes under a prefix."""
        return self._history.feed.subscribe(prefix, after)

    async def compact(self, revision: int) -> None:
        """Forget the past before `revision`."""
        self._check()
        self._history.feed.forget(min(revision, self._history.feed.revision))

    async def close(self) -> None:
        """End all watches."""
        self._closed = True
        self._history.feed.close()

    def _commit(self, change: Change) -> Record:
        self._history.apply([change])
        assert change.record is not None
        return change.record


def expect(record: Record | None, key: str, revision: int | None) -> Record:
    """The record, if it is there and its last write is `revision` (None: any). Raises NotFound, StaleRevision."""
    if record is None:
        raise NotFound(f"no key {key}")
    if revision is not None and record.revision != revision:
        raise StaleRevision(f"the key {key} was written at revision {record.revision}, not {revision}")
    return record
