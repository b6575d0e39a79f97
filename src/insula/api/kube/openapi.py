"""OpenAPI documents of everything that is served: v3 per group version with an index, v2 as one JSON document.

kubectl looks in v3 whether PATCH takes `fieldValidation` (then it leaves validation to the server) and explains fields from
its schemas. A list of objects it validates itself, from v2, which it takes as protobuf only. Documents are made in a thread when
first asked for; few are kept.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from insula.api.kube import openapi_protobuf
from insula.api.kube.answers import encode, respond
from insula.api.kube.errors import NotAcceptable
from insula.api.kube.negotiate import parse
from insula.errors import NotFound
from insula.kinds import schemas
from insula.kinds.kind import Kind
from insula.kinds.registry import Registry
from insula.tasks import in_thread

V3_PREFIX = "#/components/schemas/"
V2_PREFIX = "#/definitions/"
_KEPT = 6
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_FIXED_V3: dict[str, dict[str, Any]] = {
    _QUANTITY: {"oneOf": [{"type": "string"}, {"type": "number"}]},
    _INT_OR_STRING: {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
}
_FIXED_V2: dict[str, dict[str, Any]] = {
    _QUANTITY: {"type": "string"},
    _INT_OR_STRING: {"type": "string", "format": "int-or-string"},
}
_PATCH_TYPES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)


class OpenApi:
    """The documents of one registry."""

    def __init__(self, registry: Registry, version: str) -> None:
        self._registry = registry
        self._version = version
        self._kept: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        registry.subscribe(self._kept.clear)

    async def answer(self, request: web.Request, path: str) -> web.StreamResponse:
        """Answer a path under /openapi. Raises NotFound, NotAcceptable."""
        match path.strip("/").split("/"):
            case ["openapi", "v2"]:
                if _wants_protobuf(request.headers.get("Accept", "")):
                    kind = openapi_protobuf.MEDIA_TYPE
                    return await self._respond(request, "v2 protobuf", self._v2_protobuf, kind)
                return await self._respond(request, "v2", lambda: encode(self.v2()))
            case ["openapi", "v3"]:
                return await respond(request, encode(self.index()))
            case ["openapi", "v3", "api", version]:
                return await self._group_version(request, "", version)
            case ["openapi", "v3", "apis", group, version]:
                return await self._group_version(request, group, version)
        raise NotFound("the server could not find the requested resource")

    async def _group_version(self, request: web.Request, group: str, version: str) -> web.StreamResponse:
        if not self._registry.in_version(group, version):
            raise NotFound("the server could not find the requested resource")
        return await self._respond(request, f"v3 {group}/{version}", lambda: encode(self.v3(group, version)))

    def _v2_protobuf(self) -> bytes:
        return openapi_protobuf.document(self.v2())

    async def _respond(
        self, request: web.Request, key: str, make: Callable[[], bytes], content_type: str = ""
    ) -> web.StreamResponse:
        known = self._kept.get(key)
        if known is None:
            body = await in_thread(make)
            known = self._kept[key] = (body, hashlib.sha256(body).hexdigest().upper())
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        body, tag = known
        headers = {"ETag": f'"{tag}"', "Vary": "Accept", "Cache-Control": "public"}
        if request.headers.get("If-None-Match", "").strip('"') == tag:
            return web.Response(status=304, headers=headers)
        response = await respond(request, body, content_type=content_type)
        response.headers.update(headers)
        return response

    # --- version 3 ----------------------------------------------------------------------------------------------------

    def index(self) -> dict[str, Any]:
        """Where each group version's document is; its hash changes when the document does."""
        paths = {}
        for group, versions in self._registry.groups().items():
            for version in versions:
                name = f"apis/{group}/{version}" if group else f"api/{version}"
                paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={self._hash(group, version)}"}
        return {"paths": paths}

    def _hash(self, group: str, version: str) -> str:
        found = hashlib.sha256(f"{self._version} {schemas.VERSION}".encode())
        for kind in self._registry.in_version(group, version):
            inline = b"" if isinstance(kind.schema, str) or kind.schema is None else encode(kind.schema)
            found.update(f"{kind.kind} {kind.ref.plural} {kind.subresources}".encode() + inline)
        return found.hexdigest().upper()

    def v3(self, group: str, version: str) -> dict[str, Any]:
        """The document of one group version. Takes milliseconds."""
        kinds = self._registry.in_version(group, version)
        return {
            "openapi": "3.0.0",
            "info": {"title": "Insula", "version": self._version},
            "paths": _paths(kinds, V3_PREFIX, _operation_v3),
            "components": {"schemas": _definitions(kinds, V3_PREFIX, _FIXED_V3)},
        }

    def v2(self) -> dict[str, Any]:
        """The one document of version 2. Takes tens of milliseconds."""
        kinds = self._registry.all()
        return {
            "swagger": "2.0",
            "info": {"title": "Insula", "version": self._version},
            "paths": _paths(kinds, V2_PREFIX, _operation_v2),
            "definitions": _definitions(kinds, V2_PREFIX, _FIXED_V2),
        }


def _wants_protobuf(accept: str) -> bool:
    """Whether a client likes protobuf at least as much as JSON. Raises NotAcceptable when it takes neither."""
    for media in parse(accept or "*/*"):
        if media.type in openapi_protobuf.ASKED_AS:
            return True
        if media.type in ("application/json", "*/*", "application/*"):
            return False
    raise NotAcceptable(
        f"/openapi/v2 is served as application/json and {openapi_protobuf.MEDIA_TYPE}; other documents are at /openapi/v3"
    )


# --- schemas ----------------------------------------------------------------------------------------------------------


def schema_name(kind: Kind) -> str:
    """The name of a kind's schema: its definition, or for a custom kind the reversed group with version and kind."""
    if isinstance(kind.schema, str):
        return kind.schema
    return f"{'.'.join(reversed(kind.ref.group.split('.')))}.{kind.ref.version}.{kind.kind}"


_NULLABLE = re.compile(rb'"type": \["(\w+)","null"\]')
_INDENT = re.compile(rb"\n\s+")  # never inside a string, where newlines are escaped
_REFERENCE = re.compile(rb'"#/\$defs/([^"]+)"')


def _definitions(kinds: Iterable[Kind], prefix: str, fixed: Mapping[str, dict[str, Any]]) -> dict[str, msgspec.Raw]:
    """The schemas of these kinds and all that they lead to, as JSON text. The package's text is rewritten, not decoded: it
    is large, and other work goes on meanwhile."""
    found: dict[str, msgspec.Raw] = {}
    wanted = [
        _META + name for name in ("DeleteOptions", "Status", "ObjectMeta", "ListMeta", "APIResourceList", "Patch")
    ]
    known = set(schemas.names())
    for kind in kinds:
        if isinstance(kind.schema, str):
            wanted += [kind.schema, *([f"{kind.schema}List"] if f"{kind.schema}List" in known else [])]
        else:
            found |= {name: msgspec.Raw(encode(each)) for name, each in _custom(kind, prefix).items()}
    while wanted:
        name = wanted.pop()
        if name in found or name not in known:
            continue
        if name in fixed:
            found[name] = msgspec.Raw(encode(fixed[name]))
            continue
        text = _NULLABLE.sub(rb'"type": "\1"', _INDENT.sub(b"", schemas.text(name)))
        wanted += [each.decode() for each in _REFERENCE.findall(text)]
        found[name] = msgspec.Raw(text.replace(b"#/$defs/", prefix.encode()))
    return found


def _custom(kind: Kind, prefix: str) -> dict[str, Any]:
    meta = {"$ref": f"{prefix}{_META}ObjectMeta"}
    schema: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}
    if isinstance(kind.schema, Mapping):
        schema = dict(kind.schema) if prefix != V2_PREFIX else _in_v2(kind.schema)
    text = {"type": "string"}
    schema["type"] = "object"
    schema["properties"] = {
        **(schema.get("properties") or {}),
        "apiVersion": text,
        "kind": text,
        "metadata": meta if prefix == V2_PREFIX else {"allOf": [meta]},
    }
    schema["x-kubernetes-group-version-kind"] = [_gvk(kind)]
    name = schema_name(kind)
    listed = {
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": text,
            "kind": text,
            "items": {"type": "array", "items": {"$ref": prefix + name}},
            "metadata": {"$ref": f"{prefix}{_META}ListMeta"},
        },
        "x-kubernetes-group-version-kind": [{**_gvk(kind), "kind": kind.list_kind or f"{kind.kind}List"}],
    }
    return {name: schema, f"{name}List": listed}


_NOT_IN_V2 = ("anyOf", "oneOf", "not", "nullable")


def _in_v2(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A structural schema in words of version 2, whose readers refuse every field that they do not find: what may be null or
    hold more than is described is left open, as apiextensions-apiserver leaves it."""
    out = {name: value for name, value in schema.items() if name not in _NOT_IN_V2}
    if schema.get("nullable") or schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    if schema.get("nullable") or schema.get("x-kubernetes-preserve-unknown-fields"):
        out.pop("properties", None)
        out.pop("items", None)
    if properties := out.get("properties"):
        out["properties"] = {name: _in_v2(each) for name, each in properties.items()}
    for name in ("items", "additionalProperties"):
        if isinstance(out.get(name), Mapping):
            out[name] = _in_v2(out[name])
    return out


def _gvk(kind: Kind) -> dict[str, str]:
    return {"group": kind.ref.group, "version": kind.ref.version, "kind": kind.kind}


# --- paths ------------------------------------------------------------------------------------------------------------

_Operation = Callable[[Kind, str, str, str], dict[str, Any]]
_ACTIONS = {
    "get": ("get", "get"),
    "put": ("update", "put"),
    "patch": ("patch", "patch"),
    "delete": ("delete", "delete"),
}
_COLLECTION_ACTIONS = {
    "get": ("list", "list"),
    "post": ("create", "post"),
    "delete": ("deletecollection", "deletecollection"),
}
_WRITE_QUERY = ("dryRun", "fieldManager", "fieldValidation")
_LIST_QUERY = (
    "allowWatchBookmarks continue fieldSelector labelSelector limit resourceVersion resourceVersionMatch sendInitialEvents "
    "timeoutSeconds watch"
)


def _paths(kinds: Iterable[Kind], prefix: str, operation: _Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in kinds:
        base = f"/apis/{kind.ref.group}/{kind.ref.version}" if kind.ref.group else f"/api/{kind.ref.version}"
        if kind.namespaced:
            if "list" in kind.verbs:
                found[f"{base}/{kind.ref.plural}"] = {"get": operation(kind, "list", "get", prefix)}
            base += "/namespaces/{namespace}"
        collection, one = f"{base}/{kind.ref.plural}", f"{base}/{kind.ref.plural}/{{name}}"
        found[collection] = _actions(kind, _COLLECTION_ACTIONS, prefix, operation, collection)
        found[one] = _actions(kind, _ACTIONS, prefix, operation, one)
        for sub in {"status", "scale"} & set(kind.subresources):
            found[f"{one}/{sub}"] = _actions(
                kind, {"get": ("get", "get"), "patch": ("patch", "patch")}, prefix, operation, one
            )
    return {path: item for path, item in found.items() if len(item) > 1 or "parameters" not in item}


def _actions(
    kind: Kind, actions: Mapping[str, tuple[str, str]], prefix: str, operation: _Operation, path: str
) -> dict[str, Any]:
    item: dict[str, Any] = {
        method: operation(kind, action, method, prefix)
        for method, (verb, action) in actions.items()
        if verb in kind.verbs
    }
    places = [name for name in ("name", "namespace") if f"{{{name}}}" in path]
    if places:
        item["parameters"] = [_parameter(name, "path", prefix, required=True) for name in places]
    return item


def _parameter(name: str, place: str, prefix: str, *, required: bool = False) -> dict[str, Any]:
    out: dict[str, Any] = {"name": name, "in": place}
    if required:
        out["required"] = True
    type_ = {"type": "string"}
    return {**out, **type_} if prefix == V2_PREFIX else {**out, "schema": type_}


def _common(kind: Kind, action: str, method: str, prefix: str) -> dict[str, Any]:
    names: Iterable[str] = _WRITE_QUERY if method in ("post", "put", "patch") else ()
    if action == "list":
        names = _LIST_QUERY.split()
    if action == "patch":
        names = (*_WRITE_QUERY, "force")
    return {
        "operationId": f"{action}{kind.ref.group.title().replace('.', '')}{kind.ref.version.title()}{kind.kind}",
        "parameters": [_parameter(name, "query", prefix) for name in names],
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _gvk(kind),
    }


def _answer_name(kind: Kind, action: str) -> str:
    return schema_name(kind) + ("List" if action == "list" else "")


def _operation_v3(kind: Kind, action: str, method: str, prefix: str) -> dict[str, Any]:
    out = _common(kind, action, method, prefix)
    answer = {"schema": {"$ref": prefix + _answer_name(kind, action)}}
    if method in ("post", "put"):
        out["requestBody"] = {"content": {"*/*": {"schema": {"$ref": prefix + schema_name(kind)}}}, "required": True}
    elif method == "patch":
        body = {"schema": {"$ref": f"{prefix}{_META}Patch"}}
        out["requestBody"] = {"content": dict.fromkeys(_PATCH_TYPES, body), "required": True}
    out["responses"] = {
        "200": {"description": "OK", "content": {"application/json": answer, "application/yaml": answer}}
    }
    return out


def _operation_v2(kind: Kind, action: str, method: str, prefix: str) -> dict[str, Any]:
    out = _common(kind, action, method, prefix)
    out["consumes"] = list(_PATCH_TYPES) if method == "patch" else ["*/*"]
    out["produces"] = ["application/json", "application/yaml"]
    if method in ("post", "put", "patch"):
        name = f"{_META}Patch" if method == "patch" else schema_name(kind)
        out["parameters"].append({"name": "body", "in": "body", "required": True, "schema": {"$ref": prefix + name}})
    out["responses"] = {"200": {"description": "OK", "schema": {"$ref": prefix + _answer_name(kind, action)}}}
    return out
