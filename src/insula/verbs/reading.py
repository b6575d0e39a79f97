"""Get and list: what Kubernetes promises about revisions and pages, over the store.

resourceVersion ""    the newest state
"0"                   any state; here the newest too, which costs nothing
N                     not older than N, or with Exact (or a limit alone) exactly N
continue              the rest of an earlier page, as of that page's revision; Expired when it is gone
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from insula.errors import Cause, Expired, Invalid, NotFound
from insula.kinds.kind import Kind
from insula.model.resource import Resource
from insula.store.contract import Page, Record, Store
from insula.verbs import faults
from insula.verbs.codec import Codec, encode_json
from insula.verbs.filters import Filter
from insula.verbs.request import Listing

_CHUNK = 500
_CONTINUE_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the "
    "continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing "
    "with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the "
    "time the first chunk was returned and now may show up in the list."
)


class Ask(Struct, frozen=True, kw_only=True):
    """What a list asks for, still in the client's words."""

    limit: int = 0
    continue_token: str = ""
    revision: str = ""
    revision_match: str = ""


class _Token(Struct, frozen=True):
    """Where a listing goes on, as kube-apiserver writes it."""

    v: str
    rv: int
    start: str


def write_token(revision: int, last: str) -> str:
    """The opaque word for "after `last`, as of `revision`"."""
    text = encode_json(_Token("meta.k8s.io/v1", revision, last))
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def read_token(text: str) -> _Token:
    """Raises Invalid."""
    try:
        padded = text + "=" * (-len(text) % 4)
        return msgspec.json.decode(base64.urlsafe_b64decode(padded), type=_Token)
    except (ValueError, msgspec.MsgspecError):
        raise Invalid(
            "continue key is not valid: it must be a value that an earlier list returned", field="continue"
        ) from None


def parse_revision(text: str) -> int | None:
    """A resourceVersion as a number, None for "". Raises Invalid."""
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise Invalid(
            f'resourceVersion: Invalid value: "{text[:64]}": it must be a number that the server gave out',
            field="resourceVersion",
            causes=[Cause("resourceVersion", "FieldValueInvalid", f'Invalid value: "{text[:64]}"')],
        )
    return int(text)


def _forbid(why: str) -> Invalid:
    return Invalid(f"resourceVersionMatch: Forbidden: {why}", field="resourceVersionMatch")


def exact_revision(ask: Ask) -> tuple[int | None, int]:
    """The one revision that a list must show (None: the newest) and the one that it must not be older than."""
    asked, match = parse_revision(ask.revision), ask.revision_match
    if ask.continue_token:
        if match:
            raise _forbid("resourceVersionMatch is forbidden when continue is provided")
        if asked:
            raise Invalid("specifying resource version is not allowed when using continue", field="resourceVersion")
        return read_token(ask.continue_token).rv, 0
    if match and asked is None:
        raise _forbid("resourceVersionMatch is forbidden unless resourceVersion is provided")
    if match not in ("", "Exact", "NotOlderThan"):
        raise Invalid(
            f'resourceVersionMatch: Unsupported value: "{match}": supported values: "Exact", "NotOlderThan"',
            field="resourceVersionMatch",
        )
    if match == "Exact" and asked == 0:
        raise _forbid('resourceVersionMatch "exact" is forbidden for resourceVersion "0"')
    if asked and (match == "Exact" or (not match and ask.limit)):
        return asked, asked
    return None, asked or 0


class Found(Struct, frozen=True):
    """Selected records of one page."""

    records: list[Record]
    revision: int
    continue_token: str = ""
    remaining: int | None = None


async def find(store: Store, codec: Codec, namespace: str, chosen: Filter, ask: Ask) -> Found:
    """The records of a list. Raises Invalid, Expired, DeadlineExceeded."""
    exact, at_least = exact_revision(ask)
    newest = await store.revision()
    if at_least > newest:
        raise faults.too_large(at_least, newest)
    prefix = codec.prefix(namespace)
    after = prefix + read_token(ask.continue_token).start if ask.continue_token else ""
    if not chosen:
        page = await _page(store, prefix, exact, ask.limit, after, ask)
        return _found(prefix, page, page.records, page.remaining or None, page.more)
    if exact is None and (key := chosen.only(namespace)) is not None:
        return await _one(store, key, chosen)
    return await _filtered(store, prefix, chosen, exact, after, ask)


async def _page(store: Store, prefix: str, exact: int | None, limit: int, after: str, ask: Ask) -> Page:
    try:
        return await store.list(prefix, revision=exact, limit=limit, after=after)
    except Expired:
        if not ask.continue_token:
            raise faults.too_old(exact or 0) from None
        fresh = write_token(await store.revision(), after[len(prefix) :])
        raise Expired(_CONTINUE_EXPIRED, continue_token=fresh) from None


def _found(prefix: str, page: Page, records: list[Record], remaining: int | None, more: bool) -> Found:
    token = write_token(page.revision, records[-1].key[len(prefix) :]) if more and records else ""
    return Found(records, page.revision, token, remaining if token else None)


async def _one(store: Store, key: str, chosen: Filter) -> Found:
    revision = await store.revision()
    try:
        record = await store.get(key)
    except NotFound:
        return Found([], revision)
    return Found([record] if chosen.matches(record) else [], max(revision, record.revision))


async def _filtered(store: Store, prefix: str, chosen: Filter, exact: int | None, after: str, ask: Ask) -> Found:
    """Read on until `limit` objects are selected; a page's end lies after the last record that was looked at."""
    page = await _page(store, prefix, exact, 0, after, ask)
    kept: list[Record] = []
    for count, record in enumerate(page.records):
        if count % _CHUNK == _CHUNK - 1:
            await asyncio.sleep(0)
        if not chosen.matches(record):
            continue
        if ask.limit and len(kept) == ask.limit:
            return _found(prefix, page, kept, None, more=True)
        kept.append(record)
    return _found(prefix, page, kept, None, more=False)


async def decode(codec: Codec, found: Found) -> Listing:
    """A page as objects; lets others run while it decodes many."""
    items: list[Resource] = []
    for count, record in enumerate(found.records):
        if count % _CHUNK == _CHUNK - 1:
            await asyncio.sleep(0)
        items.append(codec.object(record))
    return Listing(
        items=items, revision=str(found.revision), continue_token=found.continue_token, remaining=found.remaining
    )


class RawPage:
    """A page as the text of a List object, made piece by piece."""

    def __init__(self, codec: Codec, found: Found) -> None:
        self._codec = codec
        self._records = found.records
        self.revision = str(found.revision)
        self.continue_token = found.continue_token
        self.remaining = found.remaining
        self.count = len(found.records)

    def _opening(self) -> bytes:
        kind: Kind = self._codec.kind
        meta: dict[str, object] = {"resourceVersion": self.revision}
        if self.continue_token:
            meta["continue"] = self.continue_token
        if self.remaining is not None:
            meta["remainingItemCount"] = self.remaining
        opening = {"kind": kind.list_kind or f"{kind.kind}List", "apiVersion": kind.ref.api_version, "metadata": meta}
        return encode_json({**opening, "items": []})[:-2]

    def chunks(self, size: int = 1 << 18) -> Iterator[bytes]:
        """Pieces of about `size` bytes."""
        parts: list[bytes | memoryview] = [self._opening()]
        weight, add = 0, self._codec.add_body
        for record in self._records:
            weight += add(parts, record)
            if weight < size:
                parts.append(b",")
                continue
            yield b"".join(parts)
            parts, weight = [b","], 0
        if self._records and parts[-1] == b",":
            parts.pop()
        parts.append(b"]}\n")
        yield b"".join(parts)

    def body(self) -> bytes:
        """All of it at once."""
        return b"".join(self.chunks(1 << 62))
