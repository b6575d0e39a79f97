"""The log of revisions: the only shared state of the cluster tower.

A store is an ordered log of writes to keys. Every write gets the next revision, one number for the whole store (etcd's
model). Values are opaque bytes. A store reads no clock and no random source. Implementations are siblings of this file.

    get/list/create/update/delete   the verbs; each write is acknowledged only when it is durable
    watch                           changes after a revision, in order, without a gap; ends with an error or explicitly
    compact                         forget old revisions; who asks for them gets `errors.Expired`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, Self

from msgspec import Struct


class Record(Struct, frozen=True):
    """One key as it is at `revision` (its last write). `created` is the revision of its creation."""

    key: str
    value: bytes
    created: int
    revision: int


class Page(Struct, frozen=True):
    """Part of a listing in key order, all of it as of `revision`. `more` says that keys follow; `remaining` how many."""

    records: list[Record]
    revision: int
    more: bool = False
    remaining: int = 0


class Change(Struct, frozen=True):
    """One write. For a deletion `record` holds the last value and the revision of the deletion; `previous` is the value
    before the write (None for a creation), so that a watcher with a selector sees objects enter and leave it.
    A `progress` carries only a revision: everything up to it has been delivered."""

    type: Literal["created", "updated", "deleted", "progress"]
    revision: int
    record: Record | None = None
    previous: Record | None = None


Take = Callable[[list[Change]], bool]
"""What changes are handed to, in the event loop: it must not wait. It answers whether it takes more for now."""


class Paused(Struct, frozen=True):
    """Why a hand-over ended: what took the changes is `full`, the `time` is over, or the watch was `closed`. Everything up to
    `revision` has been delivered."""

    reason: Literal["full", "time", "closed"]
    revision: int


class Watch(Protocol):
    """One reader's place in the log: an asynchronous iterator over changes."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Change: ...

    async def batch(self, wait_s: float | None = None) -> list[Change]:
        """All changes that have come, waiting for the first. With `wait_s` a single `progress` when none came in that
        many seconds. An empty list after `aclose`. Raises Expired, Unavailable."""
        ...

    async def hand(self, take: Take, wait_s: float | None = None) -> Paused:
        """Hand changes to `take` as they come, without a task that wakes for each: for thousands of readers of one change.
        Ends when `take` is full, after `wait_s` seconds, or with `aclose`. Raises Expired, Unavailable, and what `take`
        raises."""
        ...

    async def aclose(self) -> None:
        """Stop following."""
        ...


class Store(Protocol):
    """All keys are slash-separated paths such as `pods/default/web`; a prefix is a plain string prefix."""

    async def revision(self) -> int:
        """The newest acknowledged revision."""
        ...

    async def get(self, key: str) -> Record:
        """The newest record. Raises NotFound."""
        ...

    async def list(self, prefix: str, *, revision: int | None = None, limit: int = 0, after: str = "") -> Page:
        """Keys under `prefix` that sort after `after`, as of `revision` (None: newest). Raises Expired for a compacted
        revision, Invalid for one of the future."""
        ...

    async def create(self, key: str, value: bytes) -> Record:
        """Raises AlreadyExists."""
        ...

    async def update(self, key: str, value: bytes, *, revision: int) -> Record:
        """Replace the value if the key's last write is `revision`. Raises NotFound, StaleRevision."""
        ...

    async def delete(self, key: str, *, revision: int | None = None) -> Record:
        """Remove it and return the deletion (last value, revision of the deletion). Raises NotFound, StaleRevision."""
        ...

    def watch(self, prefix: str, *, after: int | None = None) -> Watch:
        """Changes under `prefix` with a revision greater than `after` (None: from now on). The subscription is made when
        this is called, not at the first read. Raises Expired when `after` is compacted or the reader fell too far behind.
        Close it with `aclose()`; the end of the store raises Unavailable."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget what was overwritten or deleted before `revision`."""
        ...

    async def close(self) -> None:
        """Flush, end all watches, let go of files."""
        ...
