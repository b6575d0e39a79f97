"""The build cache as its users see it: what it holds, how it is pruned, how it stays within its share of the disk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from insula import clock
from insula.engine.building.contract import CACHE_FILTERS, CacheRecord
from insula.errors import Invalid
from insula.images.buildcache import CacheMount, Record
from insula.images.drafts import Drafts
from insula.tasks import in_thread

_RECORDS = 5_000  # more are not kept, the least recently used go first


async def listed(drafts: Drafts) -> Sequence[CacheRecord]:
    """Layers and cache mounts; records without a layer take no room and are not shown."""
    needed = drafts.needed_chains()

    def look() -> list[CacheRecord]:
        seen: set[str] = set()
        rows = []
        for record in reversed(drafts.cache.records()):
            if record.chain and record.chain not in seen:
                seen.add(record.chain)
                rows.append(_row(record, record.chain in needed))
        return rows + [_mount_row(each, _in_use(drafts, each)) for each in drafts.cache.mounts()]

    return await in_thread(look)


def _in_use(drafts: Drafts, mount: CacheMount) -> bool:
    return mount.id in drafts.cache.mounts_in_use()


def _row(record: Record, shared: bool) -> CacheRecord:
    return CacheRecord(
        id=record.key[:25],
        parent=record.parent[:25],
        kind="regular",
        description=record.description,
        size_bytes=record.size_bytes,
        created=record.created,
        last_used=_text(record.last_used),
        uses=record.uses,
        in_use=False,
        shared=shared,
    )


def _mount_row(mount: CacheMount, in_use: bool) -> CacheRecord:
    return CacheRecord(
        id=mount.id[:25],
        parent="",
        kind="exec.cachemount",
        description="cached mount of RUN steps",
        size_bytes=mount.size_bytes,
        created=_text(mount.created),
        last_used=_text(mount.last_used),
        uses=1,
        in_use=in_use,
        shared=False,
    )


def _text(seconds: float) -> str:
    return clock.rfc3339_nano(datetime.fromtimestamp(seconds, UTC))


async def prune(drafts: Drafts, *, all: bool, keep_bytes: int, filters: Mapping[str, Any]) -> tuple[Sequence[str], int]:
    """Drop records and cache mounts, the least recently used first, until `keep_bytes` are left. Without `all` what images share
    is spared: dropping it frees nothing. Raises Invalid (filters)."""
    matches = _matcher(filters)
    needed = drafts.needed_chains()

    def work() -> tuple[list[str], int]:
        # A record without a layer takes no room: only `all` drops those.
        rows: list[tuple[float, CacheRecord, Record | CacheMount]] = [
            (each.last_used, _row(each, not each.chain or each.chain in needed), each)
            for each in drafts.cache.records()
        ]
        rows += [(each.last_used, _mount_row(each, _in_use(drafts, each)), each) for each in drafts.cache.mounts()]
        left = sum(row.size_bytes for _, row, _ in rows if not row.shared)
        gone, freed = [], 0
        seen: set[str] = set()
        for _, row, each in sorted(rows, key=lambda item: item[0]):
            if row.in_use or (row.shared and not all) or not matches(row) or (keep_bytes and left <= keep_bytes):
                continue
            if isinstance(each, CacheMount):
                drafts.cache.drop_mount(each.id)
                size = row.size_bytes
            else:
                drafts.cache.drop(each.key)
                size = row.size_bytes if each.chain not in seen and not row.shared else 0
                seen.add(each.chain)
            gone.append(row.id)
            freed += size
            left -= size
        return gone, freed

    gone, freed = await in_thread(work)
    if gone:
        await drafts.sweep()
    return gone, freed


async def collect(drafts: Drafts) -> None:
    """Keep what no image needs within its share of the disk."""
    limit = await in_thread(drafts.cache.limit_bytes)
    records = drafts.cache.records()
    for record in [each for each in records if not each.chain][: max(0, len(records) - _RECORDS)]:
        await in_thread(drafts.cache.drop, record.key)
    total = sum(record.size_bytes for record in drafts.cache.records())
    if total > limit:
        await prune(drafts, all=False, keep_bytes=limit, filters={})


def _matcher(filters: Mapping[str, Any]) -> Any:
    wrong = [name for name in filters if name not in CACHE_FILTERS]
    if wrong:
        raise Invalid(f"invalid filter '{wrong[0]}'", field="filters")
    until = max((_moment(text) for name in ("until", "unused-for") for text in filters.get(name, ())), default=None)

    def matches(row: CacheRecord) -> bool:
        used = clock.parse_rfc3339(row.last_used).timestamp()
        return (
            (until is None or used < until)
            and _any(filters, "id", row.id, prefix=True)
            and _any(filters, "parent", row.parent, prefix=True)
            and _any(filters, "type", row.kind)
            and _any(filters, "description", row.description)
            and _flag(filters, "inuse", row.in_use)
            and _flag(filters, "shared", row.shared)
            and _flag(filters, "private", not row.shared)
        )

    return matches


def _any(filters: Mapping[str, Any], name: str, value: str, *, prefix: bool = False) -> bool:
    wanted = list(filters.get(name, ()))
    return not wanted or any(
        value == each or (prefix and each and (value.startswith(each) or each.startswith(value))) for each in wanted
    )


def _flag(filters: Mapping[str, Any], name: str, value: bool) -> bool:
    wanted = [str(each).lower() for each in filters.get(name, ())]
    return not wanted or ("true" in wanted or "1" in wanted or "" in wanted) == value


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _moment(text: str) -> float:
    """`24h`, `30m`, or a time, as seconds since the epoch. Raises Invalid."""
    try:
        if text[-1:] in _UNITS and text[:-1].replace(".", "", 1).isdigit():
            return time.time() - float(text[:-1]) * _UNITS[text[-1]]
        if text.isdigit():
            return float(text)
        return clock.parse_rfc3339(text).timestamp()
    except ValueError:
        raise Invalid(
            f"invalid value {text!r} for the filter until: a duration (24h) or a time is needed", field="filters"
        ) from None
