"""Patches as changes: from what a client sent to a function over the present object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from insula.errors import Invalid, Unsupported
from insula.kinds.kind import Kind
from insula.model.resource import Resource
from insula.verbs import faults, meta
from insula.verbs.codec import Codec, copy
from insula.verbs.request import Answer, PatchType, Request
from insula.verbs.writing import Change, Writer

if TYPE_CHECKING:
    from insula.verbs.verbs import Verbs


def replacement(kind: Kind, obj: Resource, sub: str = "") -> Change:
    """A PUT: the wished object, whatever is there. A custom kind insists on a resourceVersion, as apiextensions does."""
    if sub != "scale":
        meta.check_shape(kind, obj)
    elif not isinstance(obj, dict) or not isinstance(obj.setdefault("metadata", {}), dict):
        raise Invalid("the request must hold an object of kind Scale")

    def change(old: Resource) -> Resource:
        if not isinstance(kind.schema, str) and kind.schema is not None and not obj["metadata"].get("resourceVersion"):
            cause = meta.wrong_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise faults.invalid(kind, old["metadata"]["name"], [cause])
        wish: Resource = copy(obj)
        return wish

    return change


def change_by(kind: Kind, type: PatchType, patch: Any) -> Change:
    """A patch of one of the three types that change a present object."""
    raise Unsupported("the body of the request was in an unknown format")


async def apply(
    verbs: Verbs, writer: Writer, request: Request, codec: Codec, namespace: str, name: str, config: Any, sub: str
) -> Answer:
    """Server-side apply."""
    raise Invalid("apply")
