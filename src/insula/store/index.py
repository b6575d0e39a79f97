"""The newest records in memory, in key order: reads of the present never touch a disk.

Keys are kept in buckets by their first path segment (one bucket per resource type), so that an insertion moves few
pointers and a listing of one type looks at nothing else.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping

from insula.store.contract import Record

_LAST = chr(0x10FFFF)


class _Bucket:
    """The keys that share a first segment."""

    __slots__ = ("keys", "records", "sorted")

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.records: dict[str, Record] = {}
        self.sorted = True

    def put(self, record: Record) -> None:
        if record.key not in self.records:
            if not self.sorted or not self.keys or self.keys[-1] < record.key:
                self.keys.append(record.key)
            else:
                insort(self.keys, record.key)
        self.records[record.key] = record

    def drop(self, key: str) -> None:
        if self.records.pop(key, None) is not None:
            at = bisect_left(self.keys, key)
            del self.keys[at]

    def between(self, prefix: str, after: str) -> list[str]:
        start = bisect_left(self.keys, prefix)
        if after >= prefix:
            start = bisect_right(self.keys, after, lo=start)
        end = bisect_right(self.keys, prefix + _LAST, lo=start)
        return self.keys[start:end]


def bucket_of(key: str) -> str:
    """The first path segment."""
    return key.partition("/")[0]


class Index:
    """A sorted mapping from key to Record."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._buckets: dict[str, _Bucket] = {}
        for record in sorted(records, key=lambda one: one.key):
            self.put(record)

    def __len__(self) -> int:
        return sum(len(bucket.records) for bucket in self._buckets.values())

    def get(self, key: str) -> Record | None:
        """The record of a key, None where there is none."""
        bucket = self._buckets.get(bucket_of(key))
        return bucket.records.get(key) if bucket else None

    def put(self, record: Record) -> None:
        """Add or replace."""
        name = bucket_of(record.key)
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket()
        bucket.put(record)

    def drop(self, key: str) -> None:
        """Forget a key; one that is not there is no fault."""
        bucket = self._buckets.get(bucket_of(key))
        if bucket:
            bucket.drop(key)

    def _matching(self, prefix: str) -> Iterator[_Bucket]:
        name, slash, _ = prefix.partition("/")
        if slash:
            if bucket := self._buckets.get(name):
                yield bucket
            return
        for candidate in sorted(self._buckets, key=lambda one: one + "/"):
            if candidate.startswith(name):
                yield self._buckets[candidate]

    def page(
        self, prefix: str, after: str, limit: int, past: Mapping[str, Record | None] | None = None
    ) -> tuple[list[Record], int]:
        """Up to `limit` (0: all) records under `prefix` after `after`, and how many follow. `past` overlays the present
        with how some keys were at an older revision (None: absent then)."""
        if past:
            return self._page_of_past(prefix, after, limit, past)
        found: list[Record] = []
        remaining = 0
        for bucket in self._matching(prefix):
            keys = bucket.between(prefix, after)
            room = len(keys) if not limit else max(0, limit - len(found))
            records = bucket.records
            found.extend([records[key] for key in keys[:room]])
            remaining += max(0, len(keys) - room)
        return found, remaining

    def _page_of_past(
        self, prefix: str, after: str, limit: int, past: Mapping[str, Record | None]
    ) -> tuple[list[Record], int]:
        merged = {record.key: record for record in self.page(prefix, after, 0)[0] if record.key not in past}
        for key, record in past.items():
            if record is not None and key.startswith(prefix) and key > after:
                merged[key] = record
        keys = sorted(merged)
        room = limit or len(keys)
        return [merged[key] for key in keys[:room]], max(0, len(keys) - room)
