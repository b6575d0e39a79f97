"""The present and the recent past of a log, in memory: what the memory and SQLite stores have in common."""

from __future__ import annotations

from collections.abc import Iterable

from insula.errors import Invalid
from insula.store.contract import Change, Page, Record
from insula.store.feed import Feed, too_old
from insula.store.index import Index


def overlay(changes: Iterable[Change], prefix: str) -> dict[str, Record | None]:
    """How the keys that these changes touched were before the first of them (None: absent)."""
    past: dict[str, Record | None] = {}
    for change in changes:
        if change.record is not None and change.record.key.startswith(prefix):
            past.setdefault(change.record.key, change.previous)
    return past


class History:
    """An index of newest records with the feed of changes that led to it."""

    def __init__(self, feed: Feed, records: Iterable[Record] = ()) -> None:
        self.index = Index(records)
        self.feed = feed

    def apply(self, changes: list[Change]) -> None:
        """Take acknowledged changes into the present and tell the readers."""
        for change in changes:
            assert change.record is not None
            if change.type == "deleted":
                self.index.drop(change.record.key)
            else:
                self.index.put(change.record)
        self.feed.publish(changes)

    def page(self, prefix: str, after: str, limit: int, older: Iterable[Change] = (), at: int | None = None) -> Page:
        """A listing of the present, or of the past at `at` given every change since then in `older`."""
        past = overlay(older, prefix)
        records, remaining = self.index.page(prefix, after, limit, past)
        return Page(records, self.feed.revision if at is None else at, remaining > 0, remaining)

    def check(self, revision: int) -> None:
        """Raise Expired for a revision that is gone and Invalid for one of the future."""
        if revision > self.feed.revision:
            raise Invalid(f"revision {revision} is of the future: the newest is {self.feed.revision}")
        if revision < self.feed.oldest:
            raise too_old(revision)


def written(key: str, value: bytes, revision: int, previous: Record | None) -> Change:
    """The change that a creation (no `previous`) or an update makes."""
    created = previous.created if previous else revision
    return Change("updated" if previous else "created", revision, Record(key, value, created, revision), previous)


def removed(previous: Record, revision: int) -> Change:
    """The change that a deletion makes."""
    return Change("deleted", revision, Record(previous.key, previous.value, previous.created, revision), previous)
