"""Watch: the store's changes as one kind's events, through a selector, each encoded once for all who follow.

resourceVersion "" or "0"   the present objects as ADDED first, then changes
N                           changes after N; Expired when N is gone
initial events              the present objects, then a bookmark that says so, then changes (streaming lists)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

from msgspec import Struct

from insula.errors import Expired, Invalid
from insula.store.contract import Change, Paused, Record, Store
from insula.store.contract import Watch as StoreWatch
from insula.verbs import faults
from insula.verbs.codec import Codec, decode_json, encode_json
from insula.verbs.filters import Filter
from insula.verbs.reading import Ask, find, parse_revision
from insula.verbs.request import Event, EventType

BOOKMARK_EVERY_S = 60.0
_CHUNK = 200
_KEEP_LINES = 4096
INITIAL_EVENTS_END = "k8s.io/initial-events-end"


class WatchAsk(Struct, frozen=True, kw_only=True):
    """What a watch asks for. `initial` is sendInitialEvents (None: not said), `timeout_s` ends the watch normally."""

    revision: str = ""
    revision_match: str = ""
    bookmarks: bool = False
    initial: bool | None = None
    timeout_s: float | None = None


class Told(Struct, frozen=True):
    """One event before it has a form: a record, or for a bookmark only a revision."""

    type: EventType
    record: Record | None
    revision: int
    initial_end: bool = False


class Lines:
    """Encoded events, shared by all watchers of the same kind and version, and by all with the same selector what each change
    is for them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, str, int, str], bytes] = {}
        self._seen: dict[tuple[Filter, int], bytes] = {}
        self._last: tuple[Filter, Change, bytes] | None = None

    def of(self, codec: Codec, chosen: Filter, changes: list[Change]) -> bytes:
        """The lines of these changes for a selector: empty where it sees none of them."""
        if len(changes) == 1:
            change, last = changes[0], self._last
            if last is not None and last[1] is change and last[0] is chosen:
                return last[2]
            found = self._one(codec, chosen, change)
            self._last = chosen, change, found
            return found
        return b"".join([self._one(codec, chosen, change) for change in changes])

    def _one(self, codec: Codec, chosen: Filter, change: Change) -> bytes:
        at = (chosen, change.revision)
        known = self._seen.get(at)
        if known is None:
            if len(self._seen) >= _KEEP_LINES:
                self._seen.pop(next(iter(self._seen)))
            told = seen(change, chosen) if change.record is not None else None
            known = self._seen[at] = self.line(codec, told) if told is not None else b""
        return known

    def line(self, codec: Codec, told: Told) -> bytes:
        """The event as one line of JSON text."""
        record = told.record
        if record is None:
            return b'{"type":"BOOKMARK","object":%b}\n' % bookmark(codec, told)
        at = (codec.head, record.key, record.revision, told.type)
        known = self._kept.get(at)
        if known is None:
            if len(self._kept) >= _KEEP_LINES:
                self._kept.pop(next(iter(self._kept)))
            known = b'{"type":"%b","object":%b}\n' % (told.type.encode(), codec.body(record))
            self._kept[at] = known
        return known


def bookmark(codec: Codec, told: Told) -> bytes:
    """An object of the watched kind that carries only a revision."""
    meta: dict[str, object] = {"resourceVersion": str(told.revision), "creationTimestamp": None}
    if told.initial_end:
        meta["annotations"] = {INITIAL_EVENTS_END: "true"}
    api_version, kind = codec.kind.gvk
    return encode_json({"kind": kind, "apiVersion": api_version, "metadata": meta})


def seen(change: Change, chosen: Filter) -> Told | None:
    """How a change looks through a selector: objects enter and leave it. None: not at all."""
    record, previous = change.record, change.previous
    assert record is not None
    if change.type == "created":
        return Told("ADDED", record, change.revision) if not chosen or chosen.matches(record) else None
    was = previous is not None and (not chosen or chosen.matches(previous))
    if change.type == "deleted":
        return Told("DELETED", record, change.revision) if was else None
    now = not chosen or chosen.matches(record)
    if now:
        return Told("MODIFIED" if was else "ADDED", record, change.revision)
    if not was or previous is None:
        return None
    last = Record(previous.key, previous.value, previous.created, change.revision)
    return Told("DELETED", last, change.revision)


class WatchStream:
    """An open watch: a `Stream`."""

    def __init__(
        self, codec: Codec, lines: Lines, source: StoreWatch, chosen: Filter, ask: WatchAsk, initial: Iterable[Told]
    ) -> None:
        self._codec = codec
        self._lines = lines
        self._source = source
        self._chosen = chosen
        self._bookmarks = ask.bookmarks
        self._initial: Iterator[Told] | None = iter(initial)
        now = asyncio.get_running_loop().time()
        self._deadline = None if ask.timeout_s is None else now + ask.timeout_s
        self._next_bookmark = now + BOOKMARK_EVERY_S

    async def batches(self) -> AsyncIterator[list[Told]]:
        """Events as they come, some at once; the other forms are made of these."""
        try:
            async for batch in self._initial_batches():
                yield batch
            async for batch in self._following():
                yield batch
        finally:
            await self._source.aclose()

    async def _initial_batches(self) -> AsyncIterator[list[Told]]:
        batch: list[Told] = []
        for told in self._initial or ():
            batch.append(told)
            if len(batch) == _CHUNK:
                yield batch
                batch = []
                await asyncio.sleep(0)
        self._initial = None
        if batch:
            yield batch

    def _wait_s(self, now: float) -> float | None:
        ends = [] if self._deadline is None else [self._deadline]
        if self._bookmarks:
            ends.append(self._next_bookmark)
        return max(0.0, min(ends) - now) if ends else None

    async def _following(self) -> AsyncIterator[list[Told]]:
        clock = asyncio.get_running_loop().time
        while True:
            try:
                changes = await self._source.batch(self._wait_s(clock()))
            except Expired as fault:
                raise Expired(f"too old resource version: {fault.message}") from None
            if not changes:
                return
            over = self._deadline is not None and clock() >= self._deadline
            batch = [told for change in changes if (told := self._tell(change)) is not None]
            if self._bookmarks and (over or clock() >= self._next_bookmark):
                self._next_bookmark = clock() + BOOKMARK_EVERY_S
                batch.append(Told("BOOKMARK", None, changes[-1].revision))
            if batch:
                yield batch
            if over:
                return

    def _tell(self, change: Change) -> Told | None:
        return None if change.type == "progress" else seen(change, self._chosen)

    async def lines(self) -> AsyncIterator[bytes]:
        """The text form."""
        line, codec = self._lines.line, self._codec
        async for batch in self.batches():
            if len(batch) == 1:
                yield line(codec, batch[0])
            else:
                yield b"".join([line(codec, told) for told in batch])

    async def pour(self, write: Callable[[bytes], bool], drained: Callable[[], Awaitable[None]]) -> None:
        """The text form through `write`, which must not wait and answers whether it takes more for now; where it does not,
        `drained` is awaited before it is asked again. Costs no task's waking for each event."""
        line, codec = self._lines.line, self._codec
        try:
            async for batch in self._initial_batches():
                if not write(b"".join([line(codec, told) for told in batch])):
                    await drained()
            await self._pour_following(write, drained)
        finally:
            await self._source.aclose()

    async def _pour_following(self, write: Callable[[bytes], bool], drained: Callable[[], Awaitable[None]]) -> None:
        of, codec, chosen = self._lines.of, self._codec, self._chosen
        clock = asyncio.get_running_loop().time

        def take(changes: list[Change]) -> bool:
            data = of(codec, chosen, changes)
            return write(data) if data else True

        while True:
            try:
                paused: Paused = await self._source.hand(take, self._wait_s(clock()))
            except Expired as fault:
                raise Expired(f"too old resource version: {fault.message}") from None
            if paused.reason == "closed":
                return
            over = self._deadline is not None and clock() >= self._deadline
            full = paused.reason == "full"
            if self._bookmarks and (over or clock() >= self._next_bookmark):
                self._next_bookmark = clock() + BOOKMARK_EVERY_S
                full = not write(self._lines.line(codec, Told("BOOKMARK", None, paused.revision)))
            if over:
                return
            if full:
                await drained()

    async def events(self) -> AsyncIterator[Event]:
        """The decoded form; each event is the caller's own."""
        codec = self._codec
        async for batch in self.batches():
            for told in batch:
                if told.record is None:
                    yield Event("BOOKMARK", decode_json(bookmark(codec, told)))
                else:
                    yield Event(told.type, codec.object(told.record))

    async def aclose(self) -> None:
        """Stop watching."""
        await self._source.aclose()


def _check(ask: WatchAsk) -> None:
    if ask.initial is None:
        if ask.revision_match:
            raise Invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents "
                "is provided",
                field="resourceVersionMatch",
            )
        return
    if ask.revision_match != "NotOlderThan":
        raise Invalid(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            field="resourceVersionMatch",
        )


async def open_watch(
    store: Store, codec: Codec, lines: Lines, namespace: str, chosen: Filter, ask: WatchAsk
) -> WatchStream:
    """Begin a watch; what cannot be served is refused here, before the first event. Raises Invalid, Expired."""
    _check(ask)
    asked, newest = parse_revision(ask.revision), await store.revision()
    if asked and asked > newest:
        raise faults.too_large(asked, newest)
    prefix = codec.prefix(namespace)
    if ask.initial or (ask.initial is None and not asked):
        found = await find(store, codec, namespace, chosen, Ask())
        told = [Told("ADDED", record, record.revision) for record in found.records]
        if ask.initial and ask.bookmarks:
            told.append(Told("BOOKMARK", None, found.revision, initial_end=True))
        return WatchStream(codec, lines, store.watch(prefix, after=found.revision), chosen, ask, told)
    try:
        source = store.watch(prefix, after=asked or newest)
    except Expired:
        raise faults.too_old(asked or 0) from None
    return WatchStream(codec, lines, source, chosen, ask, ())
