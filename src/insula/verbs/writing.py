"""What happens to a write, in order. This file is the list; each step is somewhere else.

create                          update and patch
------                          ----------------
shape and address               the present object, again for each attempt
conform (types, unknown fields) the change: a replacement or a patch of it
default                         conform, default
mutating admission              the part that the (sub)resource owns, merged into the rest
stamp (uid, times)              mutating admission
prepare                         prepare
validate                        validate
admission                       admission
ownership of fields             ownership of fields
store                           nothing changed? done. Nothing left to wait for? remove. Else store, again on a race
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from insula.errors import AlreadyExists, Cause, Invalid, NotFound, StaleRevision
from insula.kinds import validation
from insula.kinds.kind import Kind
from insula.model.resource import Ref, Resource
from insula.store.contract import Record
from insula.verbs import deleting, faults, meta, ownership, parts
from insula.verbs.codec import Codec, copy
from insula.verbs.request import Answer, Attempt, DeleteOptions, Request

if TYPE_CHECKING:
    from insula.verbs.verbs import Verbs

_ATTEMPTS = 8
_JOBS = Ref("batch", "v1", "jobs")
Change = Callable[[Resource], Resource]
"""From the present object, as the (sub)resource shows it, to the wished one. It may change its argument."""


class Writer:
    """The writing half of the verbs."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs
        self._store = verbs.store

    # --- create -------------------------------------------------------------------------------------------------

    async def create(
        self, request: Request, codec: Codec, namespace: str, obj: Resource, *, applied: ownership.Applied | None = None
    ) -> Answer:
        """Make an object. `obj` becomes ours."""
        kind = codec.kind
        meta.check_shape(kind, obj)
        meta.check_namespace(kind, obj, namespace)
        if obj["metadata"].get("resourceVersion"):
            raise Invalid(
                "resourceVersion should not be set on objects to be created", field="metadata.resourceVersion"
            )
        for name in kind.status_fields if "status" in kind.subresources else ():
            obj.pop(name, None)
        given = obj["metadata"].get("name") or ""
        base = "" if given else obj["metadata"].get("generateName") or ""
        for _ in range(_ATTEMPTS if base else 1):
            if base:
                obj["metadata"]["name"] = meta.generated_name(base)
            try:
                return await self._create(request, codec, namespace, copy(obj) if base else obj, applied)
            except AlreadyExists:
                if not base:
                    raise
        raise faults.already_exists(kind, base)

    async def _create(
        self, request: Request, codec: Codec, namespace: str, obj: Resource, applied: ownership.Applied | None
    ) -> Answer:
        kind, name = codec.kind, obj["metadata"].get("name") or ""
        validation.complete(kind, obj)
        warnings = validation.conform(kind, obj, request.field_validation)
        kind.default(obj)
        attempt = Attempt(self._verbs, request, "create", kind, namespace, name, obj=obj)
        await self._mutate(attempt)
        meta.stamp_new(kind, obj)
        kind.prepare(obj, None)
        self._validate(kind, name, obj, None, meta.problems_of_new(kind, obj))
        record = await self._admitted(attempt, lambda: self._store_new(request, codec, namespace, obj, applied))
        obj["metadata"].pop("resourceVersion", None)
        body = codec.body(record) if record else b""
        if record:
            obj["metadata"]["resourceVersion"] = str(record.revision)
        return Answer(object=obj, warnings=(*warnings, *attempt.warnings), created=True, body=body)

    async def _store_new(
        self, request: Request, codec: Codec, namespace: str, obj: Resource, applied: ownership.Applied | None
    ) -> Record | None:
        kind, name = codec.kind, obj["metadata"]["name"]
        ownership.of_new(kind, request, obj, applied)
        key = codec.key(namespace, name)
        try:
            if not request.dry_run:
                return await self._store.create(key, codec.value(obj))
            await self._store.get(key)
        except NotFound:
            return None
        except AlreadyExists:
            pass
        raise faults.already_exists(kind, name, deleting=await self._is_ending(codec, key))

    async def _is_ending(self, codec: Codec, key: str) -> bool:
        try:
            return bool(codec.object(await self._store.get(key))["metadata"].get("deletionTimestamp"))
        except NotFound:
            return False

    # --- update and patch ---------------------------------------------------------------------------------------

    async def change(
        self,
        request: Request,
        codec: Codec,
        namespace: str,
        name: str,
        change: Change,
        *,
        sub: str = "",
        applied: ownership.Applied | None = None,
    ) -> Answer:
        """Read, change, write; again when somebody else wrote in between, unless the change names a revision."""
        parts.check(codec.kind, sub)
        for last in range(_ATTEMPTS):
            record = await self._verbs.record(codec, namespace, name)
            try:
                return await self._change(request, codec, namespace, record, change, sub, applied)
            except _RacedError:
                if last == _ATTEMPTS - 1:
                    break
        raise faults.stale(codec.kind, name)

    async def _change(
        self,
        request: Request,
        codec: Codec,
        namespace: str,
        record: Record,
        change: Change,
        sub: str,
        applied: ownership.Applied | None,
    ) -> Answer:
        kind, old = codec.kind, codec.object(record)
        name = old["metadata"]["name"]
        new, warnings = self._wished(request, codec, namespace, record, change, sub)
        meta.stamp_update(new, old)
        attempt = Attempt(self._verbs, request, "update", kind, namespace, name, sub=sub, obj=new, old=old)
        await self._mutate(attempt)
        if not sub:
            kind.prepare(new, old)
        if kind.has_generation and not _same_wish(kind, new, old):
            new["metadata"]["generation"] = int(old["metadata"].get("generation") or 0) + 1
        self._validate(kind, name, new, old, meta.problems_of_update(new, old))
        stored = await self._admitted(
            attempt, lambda: self._store_changed(request, codec, record, new, old, sub, applied)
        )
        over = stored is None and not request.dry_run
        if stored is not None:
            new = new if stored is not record else old
            new["metadata"]["resourceVersion"] = str(stored.revision)
        body = codec.body(stored) if stored is not None and sub != "scale" else b""
        shown = parts.view(kind, new, sub)
        return Answer(object=shown, warnings=(*warnings, *attempt.warnings), deleted=over, body=body)

    def _wished(
        self, request: Request, codec: Codec, namespace: str, record: Record, change: Change, sub: str
    ) -> tuple[Resource, list[str]]:
        """The whole object as the client wants it. Raises Invalid, StaleRevision."""
        kind, old = codec.kind, codec.object(record)
        name, revision = old["metadata"]["name"], old["metadata"]["resourceVersion"]
        wish = change(parts.view(kind, codec.object(record), sub))
        warnings: list[str] = []
        if sub != "scale":
            meta.check_shape(kind, wish)
            validation.complete(kind, wish)
            warnings = validation.conform(kind, wish, request.field_validation)
            kind.default(wish)
        self._check_identity(kind, name, namespace, wish, old)
        asked = wish["metadata"].get("resourceVersion")
        if asked and asked != revision:
            raise faults.stale(kind, name)
        merged = parts.merge(kind, sub, wish, old)
        merged["metadata"] = {**merged["metadata"], "name": name, "resourceVersion": revision}
        return merged, warnings

    @staticmethod
    def _check_identity(kind: Kind, name: str, namespace: str, wish: Resource, old: Resource) -> None:
        given = wish["metadata"]
        if (said := given.get("name") or name) != name:
            raise Invalid(
                f"the name of the object ({said}) does not match the name on the URL ({name})", field="metadata.name"
            )
        if kind.namespaced and (said := given.get("namespace") or namespace) != namespace:
            raise Invalid(
                f"the namespace of the object ({said}) does not match the namespace on the URL ({namespace})",
                field="metadata.namespace",
            )
        uid = old["metadata"].get("uid")
        if (said := given.get("uid") or uid) != uid:
            raise faults.stale(
                kind, name, f"Precondition failed: UID in precondition: {said}, UID in object meta: {uid}"
            )

    async def _store_changed(
        self,
        request: Request,
        codec: Codec,
        record: Record,
        new: Resource,
        old: Resource,
        sub: str,
        applied: ownership.Applied | None,
    ) -> Record | None:
        """The record that is now there; None when the object is gone, or for a dry run that would change it."""
        ownership.of_changed(codec.kind, request, new, old, sub, applied)
        gone = deleting.is_over(codec.kind, new)
        if not gone and ownership.unchanged(new, old):
            return record
        if request.dry_run:
            return None
        try:
            if gone:
                await self._store.delete(record.key, revision=record.revision)
                return None
            return await self._store.update(record.key, codec.value(new), revision=record.revision)
        except (StaleRevision, NotFound):
            raise _RacedError from None

    # --- delete -------------------------------------------------------------------------------------------------

    async def delete(self, request: Request, codec: Codec, namespace: str, name: str, options: DeleteOptions) -> Answer:
        """Remove an object, or mark it; see `deleting`."""
        for _ in range(_ATTEMPTS):
            record = await self._verbs.record(codec, namespace, name)
            try:
                return await self._delete(request, codec, namespace, record, options)
            except _RacedError:
                continue
        raise faults.stale(codec.kind, name)

    async def _delete(
        self, request: Request, codec: Codec, namespace: str, record: Record, options: DeleteOptions
    ) -> Answer:
        kind, old, obj = codec.kind, codec.object(record), codec.object(record)
        name = old["metadata"]["name"]
        planned = deleting.plan(kind, obj, options)
        attempt = Attempt(self._verbs, request, "delete", kind, namespace, name, obj=obj, old=old, options=options)
        if kind.ref == _JOBS and options.propagation is None:
            attempt.warnings.append(deleting.JOB_WARNING)
        stored = await self._admitted(attempt, lambda: self._store_deletion(request, codec, record, planned))
        if stored is not None:
            obj["metadata"]["resourceVersion"] = str(stored.revision)
        gone = planned.marked is None
        body = codec.body(stored) if stored is not None else b""
        return Answer(object=obj, warnings=tuple(attempt.warnings), deleted=gone, body=body)

    async def _store_deletion(
        self, request: Request, codec: Codec, record: Record, planned: deleting.Deletion
    ) -> Record | None:
        if request.dry_run or planned.unchanged:
            return record if planned.unchanged else None
        try:
            if planned.marked is None:
                return await self._store.delete(record.key, revision=record.revision)
            return await self._store.update(record.key, codec.value(planned.marked), revision=record.revision)
        except (StaleRevision, NotFound):
            raise _RacedError from None

    # --- steps that they share ----------------------------------------------------------------------------------

    async def _mutate(self, attempt: Attempt) -> None:
        for step in self._verbs.admission:
            await step.mutate(attempt)
        if attempt.verb != "delete" and self._verbs.admission:
            attempt.kind.default(attempt.obj)

    async def _admitted(self, attempt: Attempt, write: ownership.Write) -> Record | None:
        """Run the admission steps, then the write; steps let go of what they held whatever the outcome."""
        passed = []
        try:
            for step in self._verbs.admission:
                passed.append(step)
                await step.validate(attempt)
            return await write()
        finally:
            for step in reversed(passed):
                await step.finish(attempt)

    @staticmethod
    def _validate(kind: Kind, name: str, obj: Resource, old: Resource | None, causes: list[Cause]) -> None:
        causes = causes or [*validation.problems(kind, obj)]
        causes = causes or [*kind.validate(obj, old)]
        if causes:
            raise faults.invalid(kind, name, causes)


class _RacedError(Exception):
    """Somebody else wrote between our read and our write."""


def _same_wish(kind: Kind, new: Resource, old: Resource) -> bool:
    """Whether everything but metadata and status is the same."""
    beside = {"metadata", "apiVersion", "kind", *kind.status_fields}
    return all(new.get(name) == old.get(name) for name in (new.keys() | old.keys()) - beside)
