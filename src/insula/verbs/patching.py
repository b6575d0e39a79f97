"""Patches as changes: from what a client sent to a function over the present object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from insula.errors import AlreadyExists, Cause, Conflict, Invalid, NotFound, Unsupported
from insula.kinds import schemas, validation
from insula.kinds.kind import Kind
from insula.model.patch import json as json_patch
from insula.model.patch import merge as merge_patch
from insula.model.patch import strategic as strategic_patch
from insula.model.resource import Resource
from insula.verbs import faults, meta
from insula.verbs.codec import Codec, copy
from insula.verbs.ownership import Applied
from insula.verbs.request import Answer, PatchType, Request
from insula.verbs.writing import Change, Writer

if TYPE_CHECKING:
    from insula.verbs.verbs import Verbs

_ATTEMPTS = 5


def replacement(kind: Kind, obj: Resource, sub: str = "") -> Change:
    """A PUT: the wished object, whatever is there. A custom kind insists on a resourceVersion, as apiextensions does."""
    if sub != "scale":
        meta.check_shape(kind, obj)
    elif not isinstance(obj, dict) or not isinstance(obj.setdefault("metadata", {}), dict):
        raise Invalid("the request must hold an object of kind Scale")

    def change(old: Resource) -> Resource:
        if isinstance(kind.schema, dict) and not obj["metadata"].get("resourceVersion"):
            cause = meta.wrong_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise faults.invalid(kind, old["metadata"]["name"], [cause])
        wish: Resource = copy(obj)
        return wish

    return change


def _object(patched: Any) -> Resource:
    if not isinstance(patched, dict) or not isinstance(patched.get("metadata"), dict):
        raise Invalid("the patch does not leave an object with metadata", field="metadata")
    return patched


def change_by(kind: Kind, type: PatchType, patch: Any, sub: str = "") -> Change:
    """A patch of one of the three types that change a present object. Raises Invalid, Unsupported."""
    match type:
        case "json":
            return lambda old: _object(json_patch.apply(old, patch))
        case "merge":
            if not isinstance(patch, dict):
                raise Invalid("a merge patch must be an object", field="patch")
            return lambda old: _object(merge_patch.apply(old, copy(patch)))
        case "strategic":
            if not isinstance(kind.schema, str):
                raise Unsupported(
                    "the body of the request was in an unknown format - accepted media types include: "
                    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
                )
            node = None if sub == "scale" else schemas.node(kind)
            return lambda old: _object(strategic_patch.apply(old, copy(patch), node))
    raise Unsupported(f"{type} is no type of patch that changes a present object")


def _check_config(kind: Kind, request: Request, config: Any, namespace: str, name: str) -> None:
    if not request.field_manager:
        cause = Cause("fieldManager", "FieldValueRequired", "Required value: is required for apply patch")
        raise Invalid(
            f'PatchOptions.meta.k8s.io "" is invalid: {cause.field}: {cause.message}', field=cause.field, causes=[cause]
        )
    if not isinstance(config, dict) or not config.get("apiVersion") or not config.get("kind"):
        raise Invalid("an applied configuration must be an object with apiVersion and kind", field="apiVersion")
    meta.check_shape(kind, config)
    given = config["metadata"]
    if given.get("managedFields"):
        raise Invalid("metadata.managedFields must be nil", field="metadata.managedFields")
    if (said := given.setdefault("name", name)) != name:
        raise Invalid(
            f"the name of the object ({said}) does not match the name on the URL ({name})", field="metadata.name"
        )
    if kind.namespaced:
        meta.check_namespace(kind, config, namespace)


async def apply(
    verbs: Verbs, writer: Writer, request: Request, codec: Codec, namespace: str, name: str, config: Any, sub: str
) -> Answer:
    """Server-side apply; makes the object where there is none. Raises Conflict for fields that others own."""
    kind = codec.kind
    if sub == "scale":
        raise Unsupported(
            "server-side apply of a scale is not done; patch it, or apply spec.replicas of the object itself"
        )
    _check_config(kind, request, config, namespace, name)
    warnings = tuple(validation.conform(kind, config, request.field_validation))
    for _ in range(_ATTEMPTS):
        applied = Applied(kind, request, config, sub)
        try:
            answer = await writer.change(request, codec, namespace, name, applied.to, sub=sub, applied=applied)
            return _with_warnings(answer, warnings)
        except NotFound:
            if sub:
                raise
        _check_absent(kind, name, config)
        try:
            answer = await writer.create(request, codec, namespace, copy(config), applied=applied)
            return _with_warnings(answer, warnings)
        except AlreadyExists:
            continue
    raise faults.stale(kind, name)


def _check_absent(kind: Kind, name: str, config: Resource) -> None:
    if uid := config["metadata"].get("uid"):
        why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        raise Conflict(why, kind=faults.resource_of(kind), name=name)
    if config["metadata"].get("resourceVersion"):
        raise faults.not_found(kind, name)


def _with_warnings(answer: Answer, more: tuple[str, ...]) -> Answer:
    if not more:
        return answer
    warnings = tuple(dict.fromkeys((*more, *answer.warnings)))
    return Answer(
        object=answer.object, warnings=warnings, created=answer.created, deleted=answer.deleted, body=answer.body
    )
