"""OpenAPI documents: what kubectl looks for in them."""

from __future__ import annotations

import json
import struct
from typing import Any

from insula.api.kube import openapi_protobuf
from insula.api.kube.answers import encode
from insula.api.kube.openapi import OpenApi
from insula.kinds.kind import Kind
from insula.kinds.registry import Registry
from insula.model.resource import Ref


def made(registry: Registry | None = None) -> OpenApi:
    return OpenApi(registry or Registry.builtin(), "v1.37.0")


def decoded(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode(document))
    return found


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(each) for each in value.values()))
    if isinstance(value, list):
        return set().union(*(references(each) for each in value))
    return set()


def test_patch_takes_field_validation() -> None:
    paths = decoded(made().v3("apps", "v1"))["paths"]
    patch = paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert "fieldValidation" in [each["name"] for each in patch["parameters"]]
    assert patch["x-kubernetes-group-version-kind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}


def test_every_reference_leads_somewhere() -> None:
    api = made()
    for group, version in (("", "v1"), ("apps", "v1"), ("resource.k8s.io", "v1beta1"), ("apiextensions.k8s.io", "v1")):
        document = decoded(api.v3(group, version))
        names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
        assert references(document) <= names
    old = decoded(api.v2())
    assert references(old) <= {f"#/definitions/{name}" for name in old["definitions"]}
    assert '"null"' not in json.dumps(old)


def test_the_index_changes_with_what_is_served() -> None:
    registry = Registry.builtin()
    api = made(registry)
    before = api.index()["paths"]
    assert before["api/v1"]["serverRelativeURL"].startswith("/openapi/v3/api/v1?hash=")
    schema = {"type": "object", "properties": {"spec": {"type": "object", "description": "wishes"}}}
    kind = Kind(ref=Ref("example.com", "v1", "things"), kind="Thing", singular="thing", namespaced=True, schema=schema)
    registry.add(kind)
    after = api.index()["paths"]
    assert after.pop("apis/example.com/v1")
    assert after == before
    document = decoded(api.v3("example.com", "v1"))
    thing = document["components"]["schemas"]["com.example.v1.Thing"]
    assert thing["properties"]["spec"]["description"] == "wishes"
    assert thing["x-kubernetes-group-version-kind"] == [{"group": "example.com", "version": "v1", "kind": "Thing"}]


# --- version 2 in protobuf --------------------------------------------------------------------------------------------


def fields(data: bytes) -> list[tuple[int, Any]]:
    """Numbers and values of one message, by the rules of the wire alone."""
    found: list[tuple[int, Any]] = []
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            found.append((tag >> 3, number()))
            continue
        size = 8 if tag & 7 == 1 else number()
        found.append((tag >> 3, data[at : at + size]))
        at += size
    return found


def under(data: bytes, *numbers: int) -> list[Any]:
    """The values at a path of field numbers."""
    values: list[Any] = [data]
    for wanted in numbers:
        values = [value for each in values for number, value in fields(each) if number == wanted]
    return values


def entries(data: bytes, *numbers: int) -> dict[str, bytes]:
    """A map at a path: names (1) and values (2)."""
    return {under(each, 1)[0].decode(): under(each, 2)[0] for each in under(data, *numbers)}


def test_protobuf_schemas_have_the_numbers_of_gnostic() -> None:
    schema = {
        "description": "d",
        "type": "object",
        "required": ["a", "b"],
        "properties": {
            "a": {"$ref": "#/definitions/x", "default": {}},
            "b": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "c": {"type": "object", "additionalProperties": {"type": "integer", "format": "int64", "minimum": 1.5}},
            "e": {"type": "object", "additionalProperties": True, "enum": ["p", 1]},
        },
        "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "A"}],
    }
    spec = {"swagger": "2.0", "info": {"title": "t", "version": "v"}, "definitions": {"A": schema}}
    data = openapi_protobuf.document(spec)
    assert under(data, 1) == [b"2.0"] and under(data, 2, 1) == [b"t"] and under(data, 2, 2) == [b"v"]
    found = entries(data, 9, 1)["A"]
    assert under(found, 4) == [b"d"] and under(found, 22, 1) == [b"object"] and under(found, 19) == [b"a", b"b"]
    parts = entries(found, 25, 1)
    assert under(parts["a"], 1) == [b"#/definitions/x"] and under(parts["a"], 5, 2) == [b"{}"]
    assert under(parts["b"], 23, 1, 22, 1) == [b"string"]
    assert under(entries(parts["b"], 31)["x-kubernetes-list-type"], 2) == [b'"set"']
    assert under(parts["c"], 21, 1, 2) == [b"int64"] and under(parts["c"], 21, 1, 9) == [struct.pack("<d", 1.5)]
    assert under(parts["e"], 21, 2) == [1] and under(parts["e"], 20, 2) == [b'"p"', b"1"]
    kinds = json.loads(under(entries(found, 31)["x-kubernetes-group-version-kind"], 2)[0])
    assert kinds == [{"group": "", "version": "v1", "kind": "A"}]


def test_the_protobuf_document_says_what_the_json_one_says() -> None:
    api = made()
    old = decoded(api.v2())
    data = openapi_protobuf.document(old)
    assert data == openapi_protobuf.document(api.v2())
    assert set(entries(data, 9, 1)) == set(old["definitions"])
    paths = entries(data, 8, 2)
    assert set(paths) == set(old["paths"])
    patch = under(paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"], 8)[0]
    query = under(patch, 8, 1, 2, 3)  # what Go clients of 1.2x look for: the query parameters of PATCH
    assert {under(each, 4)[0] for each in query} >= {b"fieldValidation", b"dryRun"}
    assert {under(each, 2)[0] for each in query} == {b"query"}
    assert under(patch, 8, 1, 1, 3) == [b"body"]
    reply = entries(patch, 9, 1)["200"]
    assert under(reply, 1, 2, 1, 1) == [b"#/definitions/io.k8s.api.apps.v1.Deployment"]


def test_version_2_leaves_open_what_it_cannot_say() -> None:
    registry = Registry.builtin()
    inner = {
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"a": {}}},
        "size": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "maybe": {"type": "string", "nullable": True},
        "list": {"type": "array", "items": {"type": "object", "oneOf": [{}]}},
    }
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": inner}}}
    registry.add(
        Kind(ref=Ref("example.com", "v1", "things"), kind="Thing", singular="thing", namespaced=True, schema=schema)
    )
    thing = decoded(made(registry).v2())["definitions"]["com.example.v1.Thing"]["properties"]["spec"]["properties"]
    assert thing == {
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "size": {"x-kubernetes-int-or-string": True},
        "maybe": {},
        "list": {"type": "array", "items": {"type": "object"}},
    }
