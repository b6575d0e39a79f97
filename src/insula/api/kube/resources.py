"""The verbs over HTTP: get, list, create, update, patch, delete. Watches are in `watching`, deeds in `reviews` and `streams`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from msgspec import structs

from insula import clock
from insula.api.kube import bodies, options
from insula.api.kube.answers import encode, respond, respond_value
from insula.api.kube.context import Call
from insula.api.kube.errors import UnsupportedMediaType, success
from insula.api.kube.negotiate import Form
from insula.api.kube.table import Layout, metadata_only, table
from insula.api.kube.watching import watch
from insula.errors import Invalid, Unsupported
from insula.model.resource import Resource
from insula.tasks import in_thread
from insula.verbs.reading import RawPage
from insula.verbs.request import Answer, Listing, PatchType

_PATCHES: dict[str, PatchType] = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}
_STREAMED_FROM = 500  # objects; a shorter list goes out in one piece
_ROWS_IN_THREAD = 200


def list_arguments(query: Mapping[str, str]) -> dict[str, Any]:
    """The query parameters of a list, in the words of the verbs."""
    return {
        "labels": query.get("labelSelector", ""),
        "fields": query.get("fieldSelector", ""),
        "limit": options.number(query, "limit") or 0,
        "continue_token": query.get("continue", ""),
        "revision": query.get("resourceVersion", ""),
        "revision_match": query.get("resourceVersionMatch", ""),
    }


async def get(call: Call) -> web.StreamResponse:
    """One object, or its status or scale."""
    asked, query = call.asked, call.request.query
    revision = query.get("resourceVersion", "")
    form = call.form()
    if form.shape == "object" and not asked.sub:
        body = await call.door.verbs.get_raw(call.ref, asked.name, asked.namespace, revision=revision)
        return await respond(call.request, body + b"\n", form=form)
    obj = await call.door.verbs.get(call.ref, asked.name, asked.namespace, sub=asked.sub, revision=revision)
    return await show(call, obj, form)


async def show(call: Call, obj: Resource, form: Form, *, status: int = 200, warnings: Any = ()) -> web.Response:
    """One object in the form that the client likes."""
    if form.shape == "table":
        meta = {"resourceVersion": (obj.get("metadata") or {}).get("resourceVersion", "")}
        value = table(Layout(call.kind), [obj], clock.now(), version=form.version, include=call.include(), meta=meta)
    elif form.shape == "metadata":
        value = metadata_only(obj, form.version)
    else:
        value = obj
    return await respond_value(call.request, value, form=form, status=status, warnings=warnings)


async def list_(call: Call) -> web.StreamResponse:
    """A page of objects."""
    form = call.form()
    arguments = list_arguments(call.request.query)
    if form.shape != "object":
        listing = await call.door.verbs.list(call.ref, call.asked.namespace, **arguments)
        return await respond(call.request, await _shaped(call, listing, form), form=form)
    page = await call.door.verbs.list_raw(call.ref, call.asked.namespace, **arguments)
    if page.count < _STREAMED_FROM or form.yaml:
        return await respond(call.request, page.body(), form=form)
    return await _stream(call.request, page)


async def _stream(request: web.Request, page: RawPage) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_type = "application/json"
    if "gzip" in request.headers.get("Accept-Encoding", "") and request.remote not in ("127.0.0.1", "::1"):
        response.enable_compression(web.ContentCoding.gzip)
    await response.prepare(request)
    for chunk in page.chunks():
        await response.write(chunk)
    await response.write_eof()
    return response


def _list_meta(listing: Listing) -> dict[str, Any]:
    meta: dict[str, Any] = {"resourceVersion": listing.revision}
    if listing.continue_token:
        meta["continue"] = listing.continue_token
    if listing.remaining is not None:
        meta["remainingItemCount"] = listing.remaining
    return meta


async def _shaped(call: Call, listing: Listing, form: Form) -> bytes:
    meta = _list_meta(listing)
    if form.shape == "metadata":
        value: dict[str, Any] = {
            "kind": "PartialObjectMetadataList",
            "apiVersion": f"meta.k8s.io/{form.version}",
            "metadata": meta,
            "items": [metadata_only(obj, form.version) for obj in listing.items],
        }
        return encode(value) + b"\n"
    include, layout, moment = call.include(), Layout(call.kind), clock.now()

    def rows() -> bytes:
        made = table(layout, listing.items, moment, version=form.version, include=include, meta=meta)
        return encode(made) + b"\n"

    return await in_thread(rows) if len(listing.items) > _ROWS_IN_THREAD else rows()


# --- writes -----------------------------------------------------------------------------------------------------------


async def _body(call: Call) -> Any:
    data = await bodies.read(call.request)
    if not data:
        return None
    return await bodies.decode(bodies.content_type(call.request), data)


async def _object(call: Call) -> Resource:
    obj = await _body(call)
    if not isinstance(obj, dict):
        raise Invalid(f"the request must hold an object of kind {call.kind.kind}")
    return obj


async def _written(call: Call, answer: Answer, status: int) -> web.Response:
    form = call.form()
    if form.shape == "object" and answer.body:
        return await respond(call.request, answer.body + b"\n", form=form, status=status, warnings=answer.warnings)
    return await show(call, answer.object, form, status=status, warnings=answer.warnings)


async def create(call: Call) -> web.StreamResponse:
    """POST an object, or a deed to a subresource."""
    asked = call.asked
    obj = await _object(call)
    if asked.name and not asked.sub:
        raise Unsupported("the server does not allow this method on the requested resource")
    answer = await call.write(
        call.door.verbs.create(call.write_request(), call.ref, obj, asked.namespace, name=asked.name, sub=asked.sub)
    )
    return await _written(call, answer, 201)


async def update(call: Call) -> web.StreamResponse:
    """PUT an object or a part of it. One that is absent is made only where a kind allows that: none does here."""
    asked = call.asked
    obj = await _object(call)
    answer = await call.write(
        call.door.verbs.update(call.write_request(), call.ref, asked.name, obj, asked.namespace, sub=asked.sub)
    )
    return await _written(call, answer, 201 if answer.created else 200)


async def patch(call: Call) -> web.StreamResponse:
    """PATCH, of any of the four types."""
    asked = call.asked
    kind = bodies.content_type(call.request)
    type_ = _PATCHES.get(kind)
    if type_ is None:
        listed = ", ".join(_PATCHES)
        raise UnsupportedMediaType(
            f"the body of the request was in an unknown format - accepted media types include: {listed}"
        )
    data = await bodies.read(call.request)
    body = await bodies.from_yaml(data) if type_ == "apply" else bodies.from_json(data)
    request = call.write_request()
    if type_ == "apply" and not request.field_manager:
        raise Invalid(
            'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
        )
    if type_ != "apply" and request.force:
        raise Invalid(
            'PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch'
        )
    answer = await call.write(
        call.door.verbs.patch(request, call.ref, asked.name, body, asked.namespace, type=type_, sub=asked.sub)
    )
    return await _written(call, answer, 201 if answer.created else 200)


_SHOWN_WHEN_GONE = {
    "": (
        "persistentvolumeclaims",
        "persistentvolumes",
        "pods",
        "podtemplates",
        "resourcequotas",
        "serviceaccounts",
        "services",
    ),
    "storage.k8s.io": ("csidrivers", "csinodes", "storageclasses", "volumeattachments", "volumeattributesclasses"),
    "resource.k8s.io": ("deviceclasses", "resourceclaims", "resourceclaimtemplates", "resourceslices"),
}
"""Types whose deletion is answered with the object and not with a Status, as the published OpenAPI says."""


async def delete(call: Call) -> web.StreamResponse:
    """DELETE one object: a Status when it is gone, for some types the object; the object when it is only marked."""
    asked = call.asked
    wanted, dry_run = options.delete_options(await _body(call), call.request.query)
    request = structs.replace(call.write_request(), dry_run=dry_run)
    answer = await call.write(call.door.verbs.delete(request, call.ref, asked.name, asked.namespace, options=wanted))
    if not answer.deleted or call.ref.plural in _SHOWN_WHEN_GONE.get(call.ref.group, ()):
        return await _written(call, answer, 200)
    gone = success(
        group=call.ref.group,
        kind=call.ref.plural,
        name=asked.name,
        uid=(answer.object.get("metadata") or {}).get("uid", ""),
    )
    return await respond_value(call.request, gone, warnings=answer.warnings)


async def delete_collection(call: Call) -> web.StreamResponse:
    """DELETE all that a selector finds; answers with what there was."""
    wanted, dry_run = options.delete_options(await _body(call), call.request.query)
    request = structs.replace(call.write_request(), dry_run=dry_run)
    arguments = list_arguments(call.request.query)
    for name in ("revision", "revision_match"):
        arguments.pop(name)
    listing = await call.write(
        call.door.verbs.delete_collection(request, call.ref, call.asked.namespace, options=wanted, **arguments)
    )
    value = {
        "kind": call.kind.list_kind or f"{call.kind.kind}List",
        "apiVersion": call.ref.api_version,
        "metadata": _list_meta(listing),
        "items": listing.items,
    }
    return await respond_value(call.request, value, form=Form())


Handler = Callable[[Call], Awaitable[web.StreamResponse]]

HANDLERS: dict[str, Handler] = {
    "get": get,
    "list": list_,
    "watch": watch,
    "create": create,
    "update": update,
    "patch": patch,
    "delete": delete,
    "deletecollection": delete_collection,
}
