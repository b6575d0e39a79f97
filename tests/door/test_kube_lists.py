"""kubectl with manifests that hold many objects: `kind: List`, several documents, folders; and what it reads from OpenAPI v2."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from door.kube_support import Cluster, cluster

pytestmark = pytest.mark.may_block  # every kubectl is a vfork that holds this process until the child runs


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as made:
        yield made


def config(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def service(name: str) -> dict[str, Any]:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": "http"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def list_of(*items: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": list(items)}


async def test_a_list_through_every_verb_that_takes_a_file(door: Cluster) -> None:
    manifest = door.folder / "list.yaml"
    manifest.write_text(yaml.safe_dump(list_of(config("a", x="1"), service("web"))))
    file = ("-f", str(manifest))
    assert (await door.kubectl("diff", *file, check=False)).code == 1
    assert (await door.kubectl("apply", *file)).out == "configmap/a created\nservice/web created\n"
    assert (await door.kubectl("apply", *file)).out == "configmap/a unchanged\nservice/web unchanged\n"
    assert (await door.kubectl("diff", *file)).out == ""
    manifest.write_text(yaml.safe_dump(list_of(config("a", x="2"), service("web"))))
    assert (await door.kubectl("apply", *file)).out == "configmap/a configured\nservice/web unchanged\n"
    assert "replaced" in (await door.kubectl("replace", *file)).out
    assert (await door.kubectl("get", *file, "-o", "name")).out == "configmap/a\nservice/web\n"
    for words in (("label", "a=b"), ("annotate", "c=d")):
        await door.kubectl(words[0], *file, words[1])
    got = (await door.kubectl("get", *file, "-o", "json")).json["items"]
    assert [each["metadata"]["labels"]["a"] + each["metadata"]["annotations"]["c"] for each in got] == ["bd", "bd"]
    await door.kubectl("delete", *file)
    again = await door.kubectl("create", *file)
    assert again.out == "configmap/a created\nservice/web created\n"
    twice = await door.kubectl("create", *file, check=False)
    assert twice.code == 1 and 'configmaps "a" already exists' in twice.err and 'services "web" already' in twice.err


async def test_a_list_is_validated_by_its_schemas(door: Cluster) -> None:
    wrong = config("a", x="1")
    wrong["datta"] = wrong.pop("data")
    told = await door.kubectl("apply", "-f", "-", stdin=list_of(service("web"), wrong), check=False)
    assert told.code == 1 and 'unknown field "datta" in io.k8s.api.core.v1.ConfigMap' in told.err
    bad = service("web")
    bad["spec"]["ports"][0]["port"] = "eighty"
    told = await door.kubectl("apply", "-f", "-", stdin=list_of(bad), check=False)
    assert told.code == 1 and "invalid type for io.k8s.api.core.v1.ServicePort.port" in told.err
    assert (await door.kubectl("get", "svc,cm", "-o", "name")).out == ""
    good = service("web")
    good["spec"]["ports"][0]["targetPort"] = 8080  # a number or a name
    await door.kubectl("apply", "-f", "-", stdin=list_of(good))


async def test_several_documents_and_a_folder(door: Cluster) -> None:
    folder = door.folder / "manifests"
    folder.mkdir()
    documents = "---\n# nothing here\n---\n" + yaml.safe_dump_all([config("a", x="1"), list_of(config("b"))])
    (folder / "one.yaml").write_text(documents)
    (folder / "two.json").write_text(json.dumps(config("c")))
    applied = await door.kubectl("apply", "-f", str(folder))
    assert applied.out == "configmap/a created\nconfigmap/b created\nconfigmap/c created\n"
    (folder / "kustomization.yaml").write_text("resources: [two.json]\nnamePrefix: my-\n")
    assert (await door.kubectl("apply", "-k", str(folder))).out == "configmap/my-c created\n"
    (folder / "kustomization.yaml").unlink()
    assert (await door.kubectl("delete", "-f", str(folder))).out.count("deleted") == 3


async def test_explain_in_the_words_of_version_2(door: Cluster) -> None:
    old = ("--output=plaintext-openapiv2",)
    said = (await door.kubectl("explain", "deployment.spec.template.spec.containers", *old)).out
    assert "RESOURCE: containers <[]Object>" in said and "livenessProbe\t<Object>" in said
    assert "<map[string]string>" in (await door.kubectl("explain", "cm", *old)).out
    schema = {"type": "object", "properties": {"spec": {"type": "object", "description": "what is wished"}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": "things", "singular": "thing", "kind": "Thing"}
    spec = {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version]}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": spec,
    }
    await door.apply(definition)
    await door.kubectl("wait", "crd/things.example.com", "--for=condition=Established", "--timeout=10s")
    assert "what is wished" in (await door.kubectl("explain", "thing", *old)).out
    thing = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {}}
    assert (await door.kubectl("apply", "-f", "-", stdin=list_of(thing))).out == "thing.example.com/t created\n"


async def test_the_document_is_made_once_and_has_a_tag(door: Cluster) -> None:
    import ssl

    import aiohttp

    context = ssl.create_default_context(cadata=door.pki.ca_pem.decode())
    context.load_cert_chain(door.pki.folder / "admin.crt", door.pki.folder / "admin.key")
    asked = {"Accept": "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"}
    async with aiohttp.ClientSession(door.url, connector=aiohttp.TCPConnector(ssl=context)) as http:
        async with http.get("/openapi/v2", headers=asked) as answer:
            assert answer.status == 200 and len(await answer.read()) > 1_000_000
            assert answer.headers["Content-Type"] == "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
            tag = answer.headers["ETag"]
        async with http.get("/openapi/v2", headers={**asked, "If-None-Match": tag}) as answer:
            assert answer.status == 304 and answer.headers["ETag"] == tag
        async with http.get("/openapi/v2", headers={"Accept": "application/json"}) as answer:
            assert (await answer.json())["swagger"] == "2.0" and answer.headers["ETag"] != tag
        async with http.get("/openapi/v2", headers={"Accept": "text/html"}) as answer:
            assert answer.status == 406
