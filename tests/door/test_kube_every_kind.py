"""Every built-in kind of Kubernetes can be created, read, listed, watched, changed and deleted through the door."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path
from typing import Any

import aiohttp

from door.kube_support import Cluster, cluster
from insula.kinds import builtin, schemas
from insula.kinds.kind import Kind
from insula.kinds.schemas import Schema

_POD_SPEC = {"containers": [{"name": "a", "image": "b"}]}
_TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": _POD_SPEC}
_SELECTOR = {"matchLabels": {"a": "b"}}
_JOB = {"template": {"spec": {**_POD_SPEC, "restartPolicy": "Never"}}}
_HOOK = {
    "name": "a.b.c",
    "clientConfig": {"url": "https://example.com"},
    "sideEffects": "None",
    "admissionReviewVersions": ["v1"],
}
_CSR = base64.b64encode(b"-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n").decode()
# what the schemas do not say of a smallest valid object
_PARTS: dict[str, dict[str, Any]] = {
    "Pod": {"spec": _POD_SPEC},
    "PodTemplate": {"template": _TEMPLATE},
    "ReplicationController": {"spec": {"template": _TEMPLATE}},
    "Deployment": {"spec": {"selector": _SELECTOR, "template": _TEMPLATE}},
    "ReplicaSet": {"spec": {"selector": _SELECTOR, "template": _TEMPLATE}},
    "DaemonSet": {"spec": {"selector": _SELECTOR, "template": _TEMPLATE}},
    "StatefulSet": {"spec": {"selector": _SELECTOR, "template": _TEMPLATE, "serviceName": "s"}},
    "Job": {"spec": _JOB},
    "CronJob": {"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": _JOB}}},
    "Service": {"spec": {"ports": [{"port": 80}]}},
    "PersistentVolume": {
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/tmp"}}
    },
    "PersistentVolumeClaim": {
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    },
    "Event": {},
    "Ingress": {"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}},
    "EndpointSlice": {"addressType": "IPv4", "endpoints": []},
    "HorizontalPodAutoscaler": {
        "spec": {"maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}
    },
    "RoleBinding": {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}},
    "ClusterRoleBinding": {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"}},
    "Role": {"rules": []},
    "CertificateSigningRequest": {"spec": {"request": _CSR, "signerName": "a.io/b", "usages": ["client auth"]}},
    "ValidatingWebhookConfiguration": {"webhooks": [_HOOK]},
    "MutatingWebhookConfiguration": {"webhooks": [_HOOK]},
    "StorageClass": {"provisioner": "a.io/b"},
    "CustomResourceDefinition": {
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "names": {"kind": "Thing", "plural": "things"},
            "scope": "Namespaced",
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
            ],
        },
    },
    "APIService": {
        "metadata": {"name": "v1.example.org"},
        "spec": {"group": "example.org", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1},
    },
}
_STORED = [kind for kind in builtin.rows().values() if kind.stored]
_FINAL = {"namespaces", "customresourcedefinitions"}  # go by finalizer, with a controller's help


def smallest(schema: Schema, depth: int = 0) -> Any:
    """A value with all required fields."""
    schema = schemas.resolve(schema)
    if schema.get("x-kubernetes-int-or-string"):
        return 1
    match schema.get("type"):
        case "object":
            if "properties" not in schema:
                return {}
            return {name: smallest(schema["properties"][name], depth + 1) for name in schema.get("required", ())}
        case "array":
            return [smallest(schema["items"], depth + 1)] if depth < 6 else []
        case "string":
            form = schema.get("format")
            return {"quantity": "1", "date-time": "2026-01-02T03:04:05Z", "byte": "YQ=="}.get(str(form), "a")
        case "integer" | "number":
            return 1
        case "boolean":
            return False
    return {}


def sample(kind: Kind) -> dict[str, Any]:
    """A smallest valid object of a kind."""
    schema = schemas.of(kind)
    assert schema is not None
    made: dict[str, Any] = {
        "apiVersion": kind.ref.api_version,
        "kind": kind.kind,
        "metadata": {"name": f"x-{kind.ref.version}"},
    }
    for name in schema.get("required", ()):
        if name not in ("apiVersion", "kind", "metadata", "status"):
            made[name] = smallest(schema["properties"][name])
    made |= _PARTS.get(kind.kind, {})
    return made


def _client(door: Cluster) -> aiohttp.ClientSession:
    context = ssl.create_default_context(cadata=door.pki.ca_pem.decode())
    context.load_cert_chain(door.pki.folder / "admin.crt", door.pki.folder / "admin.key")
    return aiohttp.ClientSession(door.url, connector=aiohttp.TCPConnector(ssl=context), raise_for_status=False)


def _path(kind: Kind) -> str:
    base = f"/apis/{kind.ref.api_version}" if kind.ref.group else f"/api/{kind.ref.version}"
    return f"{base}/namespaces/default/{kind.ref.plural}" if kind.namespaced else f"{base}/{kind.ref.plural}"


async def _json(response: aiohttp.ClientResponse, *codes: int) -> Any:
    async with response:
        body = await response.json(content_type=None)
        assert response.status in (codes or (200,)), f"{response.url}: {response.status} {json.dumps(body)[:2000]}"
        return body


async def test_every_kind_lives_its_whole_life(tmp_path: Path) -> None:
    async with cluster(tmp_path) as door, _client(door) as http:
        for kind in _STORED:
            await _life(http, kind)


async def _life(http: aiohttp.ClientSession, kind: Kind) -> None:
    path, obj = _path(kind), sample(kind)
    name = obj["metadata"]["name"]
    before = await _json(await http.get(path))
    assert before["kind"] == kind.list_kind
    made = await _json(await http.post(path, json=obj, params={"fieldValidation": "Strict"}), 201)
    assert made["apiVersion"], made["kind"] == kind.gvk
    assert made["metadata"]["uid"] and made["metadata"]["creationTimestamp"]
    got = await _json(await http.get(f"{path}/{name}"))
    assert got == made
    listed = await _json(await http.get(path, params={"fieldSelector": f"metadata.name={name}"}))
    assert len(listed["items"]) == 1
    rows = await _json(await http.get(path, headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}))
    assert rows["kind"] == "Table"
    assert all(len(row["cells"]) == len(rows["columnDefinitions"]) for row in rows["rows"])
    await _watched(http, path, before["metadata"]["resourceVersion"], name)
    patch = {"metadata": {"labels": {"changed": "yes"}}}
    headers = {"Content-Type": "application/merge-patch+json"}
    changed = await _json(await http.patch(f"{path}/{name}", data=json.dumps(patch), headers=headers))
    assert changed["metadata"]["labels"]["changed"] == "yes"
    put = await _json(await http.put(f"{path}/{name}", json=changed))
    assert put["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"], (
        f"{kind.kind}: an idle PUT wrote"
    )
    await _json(await http.delete(f"{path}/{name}", params={"propagationPolicy": "Background"}))
    if kind.ref.plural not in _FINAL:
        gone = await _json(await http.get(f"{path}/{name}"), 404)
        assert gone["reason"] == "NotFound"


async def _watched(http: aiohttp.ClientSession, path: str, revision: str, name: str) -> None:
    params = {"watch": "true", "resourceVersion": revision, "timeoutSeconds": "5"}
    async with http.get(path, params=params) as response:
        assert response.status == 200
        event = json.loads(await response.content.readline())
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", name)


def test_the_table_of_kinds_names_every_definition() -> None:
    known = {kind.schema for kind in builtin.rows().values()}
    elsewhere = {
        "Eviction",
        "Scale",
        "TokenRequest",
        "DeleteOptions",
        "Status",
        "APIGroup",
        "APIVersions",
        "WatchEvent",
    }
    missing = []
    for name in schemas.names():
        schema = schemas.raw(name)
        kinds = {each["kind"] for each in schema.get("x-kubernetes-group-version-kind", ())}
        if kinds and name not in known and not (kinds & elsewhere) and not any(kind.endswith("List") for kind in kinds):
            missing.append(name)
    assert not missing
    assert not known - set(schemas.names())
