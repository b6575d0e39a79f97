"""OpenAPI documents: what kubectl looks for in them."""

from __future__ import annotations

import json
from typing import Any

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
