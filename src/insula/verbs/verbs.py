"""The verbs: what may be done with resources, whoever asks and through whichever door.

    door or client -> Verbs -> kinds (default, prepare, validate), admission -> store
                  <- objects, JSON text or event streams

Reads come in two forms: objects (the caller's own to change) and text (`*_raw`), which is not decoded on its way. Writes
take over the object that they are given. Authorization is the door's part and has happened before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import InsulaError, Invalid, NotFound
from insula.kinds import validation
from insula.kinds.kind import Kind
from insula.kinds.registry import Registry
from insula.model.resource import Key, Ref, Resource
from insula.store.contract import Record, Store
from insula.verbs import faults, parts, patching
from insula.verbs.codec import Codec
from insula.verbs.filters import Facts, Filter
from insula.verbs.reading import Ask, RawPage, decode, find, parse_revision
from insula.verbs.request import Admission, Answer, DeleteOptions, Handler, Listing, PatchType, Request
from insula.verbs.subresources import HANDLERS
from insula.verbs.watching import Lines, WatchAsk, WatchStream, open_watch
from insula.verbs.writing import Writer

# What is posted to a subresource, where that is a kind of its own.
_POSTED = {
    "binding": "io.k8s.api.core.v1.Binding",
    "eviction": "io.k8s.api.policy.v1.Eviction",
    "token": "io.k8s.api.authentication.v1.TokenRequest",
}

INTERNAL = Request()
_KEEP_FILTERS = 1024
_KEEP_LOOKED_AT = 4096


class Verbs:
    """All verbs over one store and one registry. `admission` steps run in their order."""

    def __init__(self, store: Store, registry: Registry, *, admission: Sequence[Admission] = ()) -> None:
        self.store = store
        self.registry = registry
        self.admission = tuple(admission)
        self._handlers: dict[tuple[str, str, str], Handler] = dict(HANDLERS)
        self._codecs: dict[Ref, Codec] = {}
        self._filters: dict[tuple[Codec, str, str], Filter] = {}
        self._looked_at: dict[tuple[bytes, str], tuple[int, Resource]] = {}
        self._facts = Facts()
        self._lines = Lines()
        self.writer = Writer(self)
        registry.subscribe(self._forget_codecs)

    def _forget_codecs(self) -> None:
        self._codecs.clear()
        self._filters.clear()
        self._looked_at.clear()

    # --- what there is ------------------------------------------------------------------------------------------

    def codec(self, ref: Ref) -> Codec:
        """How objects of a type are stored. Raises NotFound for a type that is not served."""
        codec = self._codecs.get(ref)
        if codec is None:
            codec = self._codecs[ref] = Codec(self.registry.by_ref(ref), self.registry)
        return codec

    def handle(self, ref: Ref, handler: Handler, sub: str = "") -> None:
        """Let `handler` answer POSTs to a subresource, or creations of a kind that is not stored."""
        self._handlers[ref.group, ref.plural, sub] = handler

    async def revision(self) -> str:
        """The newest resourceVersion."""
        return str(await self.store.revision())

    # --- read ---------------------------------------------------------------------------------------------------

    async def record(self, codec: Codec, namespace: str, name: str, revision: str = "") -> Record:
        """The stored record of an object. Raises NotFound in Kubernetes' words."""
        at_least = parse_revision(revision)
        if at_least and at_least > (newest := await self.store.revision()):
            raise faults.too_large(at_least, newest)
        try:
            return await self.store.get(codec.key(namespace, name))
        except NotFound:
            raise faults.not_found(codec.kind, name) from None

    async def get(self, ref: Ref, name: str, namespace: str = "", *, sub: str = "", revision: str = "") -> Resource:
        """One object, or a part of it. `revision` asks for a state not older than that."""
        codec = self._allowed(ref, "get")
        parts.check(codec.kind, sub, reading=True)
        return parts.view(codec.kind, codec.object(await self.record(codec, namespace, name, revision)), sub)

    async def look(self, ref: Ref, name: str, namespace: str = "") -> Resource:
        """One object, shared with all who look at it: nobody may change it. For rules that ask for the same few objects at
        every write. Raises NotFound."""
        codec = self.codec(ref)
        return self._shared(codec, await self.record(codec, namespace, name))

    async def look_all(self, ref: Ref, namespace: str = "") -> Sequence[Resource]:
        """All objects of one namespace or ("") of all, shared as `look` shares them."""
        codec = self.codec(ref)
        page = await self.store.list(codec.prefix(namespace))
        return [self._shared(codec, record) for record in page.records]

    def _shared(self, codec: Codec, record: Record) -> Resource:
        at = codec.head, record.key
        known = self._looked_at.get(at)
        if known is None or known[0] != record.revision:
            if len(self._looked_at) >= _KEEP_LOOKED_AT:
                self._looked_at.pop(next(iter(self._looked_at)))
            known = self._looked_at[at] = record.revision, codec.object(record)
        return known[1]

    async def get_raw(self, ref: Ref, name: str, namespace: str = "", *, revision: str = "") -> bytes:
        """One object as JSON text."""
        codec = self._allowed(ref, "get")
        return codec.body(await self.record(codec, namespace, name, revision))

    async def list(
        self,
        ref: Ref,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
        revision: str = "",
        revision_match: str = "",
    ) -> Listing:
        """Objects of one namespace or ("") of all, decoded. Raises Invalid, Expired, DeadlineExceeded."""
        codec = self._allowed(ref, "list")
        ask = Ask(limit=limit, continue_token=continue_token, revision=revision, revision_match=revision_match)
        return await decode(codec, await find(self.store, codec, namespace, self._filter(codec, labels, fields), ask))

    async def list_raw(
        self,
        ref: Ref,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
        revision: str = "",
        revision_match: str = "",
    ) -> RawPage:
        """The same as JSON text: nothing is decoded unless a selector needs it."""
        codec = self._allowed(ref, "list")
        ask = Ask(limit=limit, continue_token=continue_token, revision=revision, revision_match=revision_match)
        return RawPage(codec, await find(self.store, codec, namespace, self._filter(codec, labels, fields), ask))

    async def watch(
        self,
        ref: Ref,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        revision: str = "",
        revision_match: str = "",
        bookmarks: bool = False,
        initial: bool | None = None,
        timeout_s: float | None = None,
    ) -> WatchStream:
        """Open a watch. Read its `events()` or its `lines()`; see `watching` for what the revision means."""
        codec = self._allowed(ref, "watch")
        ask = WatchAsk(
            revision=revision, revision_match=revision_match, bookmarks=bookmarks, initial=initial, timeout_s=timeout_s
        )
        return await open_watch(self.store, codec, self._lines, namespace, self._filter(codec, labels, fields), ask)

    # --- write --------------------------------------------------------------------------------------------------

    async def create(
        self, request: Request, ref: Ref, obj: Resource, namespace: str = "", *, name: str = "", sub: str = ""
    ) -> Answer:
        """Make an object, or with `sub` post to a subresource of `name`. Raises AlreadyExists, Invalid, Forbidden."""
        if sub:
            return await self._post(request, ref, obj, namespace, name, sub)
        codec = self._allowed(ref, "create")
        if codec.kind.stored:
            return await self.writer.create(request, codec, namespace, obj)
        handler = self._handlers.get((ref.group, ref.plural, ""))
        if handler is None:
            raise faults.not_allowed("create")
        warnings = validation.conform(codec.kind, obj, request.field_validation)
        found = await handler(self, request, codec.kind, namespace, "", obj)
        return Answer(object=found, warnings=tuple(warnings), created=True)

    async def _post(self, request: Request, ref: Ref, obj: Resource, namespace: str, name: str, sub: str) -> Answer:
        kind = self.codec(ref).kind
        handler = self._handlers.get((ref.group, ref.plural, sub))
        if sub not in kind.subresources or handler is None:
            raise NotFound("the server could not find the requested resource", kind=f"{faults.resource_of(kind)}/{sub}")
        if schema := _POSTED.get(sub):
            validation.conform(replace(kind, kind=schema.rpartition(".")[2], schema=schema), obj, "Ignore")
        return Answer(object=await handler(self, request, kind, namespace, name, obj), created=True)

    async def update(
        self, request: Request, ref: Ref, name: str, obj: Resource, namespace: str = "", *, sub: str = ""
    ) -> Answer:
        """Replace an object, or the part of it that `sub` is. A resourceVersion in it guards against lost updates.
        An update that changes nothing makes no revision. Raises NotFound, StaleRevision, Invalid."""
        codec = self._allowed(ref, "update")
        parts.check(codec.kind, sub, reading=True)
        return await self.writer.change(
            request, codec, namespace, name, patching.replacement(codec.kind, obj, sub), sub=sub
        )

    async def patch(
        self,
        request: Request,
        ref: Ref,
        name: str,
        patch: Any,
        namespace: str = "",
        *,
        type: PatchType,
        sub: str = "",
    ) -> Answer:
        """Change part of an object. `patch` is decoded JSON (for apply, decoded YAML). An apply makes what is absent.
        Raises NotFound, StaleRevision, Invalid, Conflict (fields owned by others)."""
        codec = self._allowed(ref, "patch")
        parts.check(codec.kind, sub, reading=True)
        if type == "apply":
            return await patching.apply(self, self.writer, request, codec, namespace, name, patch, sub)
        change = patching.change_by(codec.kind, type, patch, sub)
        return await self.writer.change(request, codec, namespace, name, change, sub=sub)

    async def delete(
        self, request: Request, ref: Ref, name: str, namespace: str = "", *, options: DeleteOptions | None = None
    ) -> Answer:
        """Remove an object, or mark it for its finalizers and its agent. Raises NotFound, StaleRevision."""
        codec = self._allowed(ref, "delete")
        return await self.writer.delete(request, codec, namespace, name, options or DeleteOptions())

    async def delete_collection(
        self,
        request: Request,
        ref: Ref,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
        options: DeleteOptions | None = None,
    ) -> Listing:
        """Delete each selected object; returns them as they were found. One that is gone already is no fault."""
        codec = self._allowed(ref, "deletecollection")
        ask = Ask(limit=limit, continue_token=continue_token)
        found = await find(self.store, codec, namespace, self._filter(codec, labels, fields), ask)
        for record in found.records:
            at: Key = codec.address(record.key)
            try:
                await self.writer.delete(request, codec, at.namespace, at.name, options or DeleteOptions())
            except NotFound:
                continue
        return await decode(codec, found)

    # --- helpers ------------------------------------------------------------------------------------------------

    def _allowed(self, ref: Ref, verb: str) -> Codec:
        codec = self.codec(ref)
        kind: Kind = codec.kind
        if verb not in kind.verbs:
            raise faults.not_allowed(verb)
        return codec

    def _filter(self, codec: Codec, labels: str, fields: str) -> Filter:
        """One filter for all who ask the same, so that what it finds is found once."""
        at = codec, labels, fields
        known = self._filters.get(at)
        if known is None:
            try:
                known = Filter(self._facts, codec, labels, fields)
            except InsulaError as fault:
                raise Invalid(fault.message, field=fault.field) from None
            if len(self._filters) >= _KEEP_FILTERS:
                self._filters.pop(next(iter(self._filters)))
            self._filters[at] = known
        return known
