"""What hostile and careless clients send: each gets a clear Status, nothing leaks, nothing is lost."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from door.kube_support import Cluster, cluster

_CM = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as made:
        yield made


@pytest.fixture
async def http(door: Cluster) -> AsyncIterator[aiohttp.ClientSession]:
    context = ssl.create_default_context(cadata=door.pki.ca_pem.decode())
    context.load_cert_chain(door.pki.folder / "admin.crt", door.pki.folder / "admin.key")
    async with aiohttp.ClientSession(door.url, connector=aiohttp.TCPConnector(ssl=context)) as made:
        yield made


async def sent(http: aiohttp.ClientSession, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async with http.request(method, path, **more) as response:
        return response.status, await response.json(content_type=None)


@pytest.mark.parametrize(
    ("kind", "body", "code", "sentence"),
    [
        ("application/json", b'{"metadata": {"name": "x"', 400, "error decoding JSON"),
        ("application/json", b"\xff\xfe", 400, "error decoding JSON"),
        ("application/json", b"[1, 2]", 400, "must hold an object of kind ConfigMap"),
        ("application/json", b'{"metadata": []}', 400, "metadata"),
        ("application/json", b'{"metadata": {"name": 5}}', 400, "metadata"),
        ("application/json", b"[" * 100_000, 400, "error decoding JSON"),
        ("application/yaml", b"a: [1, 2", 400, "error converting YAML to JSON"),
        ("application/yaml", b"a: &a [x]\nb: *nope\n", 400, "error converting YAML to JSON"),
        ("application/yaml", b"!!python/object/apply:os.system ['true']", 400, "error converting YAML to JSON"),
        ("text/csv", b"a,b", 415, "unknown format"),
        ("application/vnd.kubernetes.protobuf", b"k8s\x00\xff\xff\xff\xff", 400, "protobuf"),
        ("application/vnd.kubernetes.protobuf", b"no magic", 400, "protobuf"),
        ("application/json", b'{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}', 400, "kind"),
        ("application/json", b'{"metadata": {"name": "x"}, "data": {"a": 1}}', 400, "cannot unmarshal number"),
        ("application/json", b'{"metadata": {"name": "a/b"}}', 422, "metadata.name"),
        ("application/json", b'{"metadata": {"name": "Upper"}}', 422, "metadata.name"),
        ("application/json", b'{"metadata": {"name": ".."}}', 422, "metadata.name"),
        ("application/json", b'{"metadata": {"name": "x", "namespace": "other"}}', 400, "namespace"),
        ("application/json", b'{"metadata": {"name": "x", "labels": {"a b": "c"}}}', 422, "metadata.labels"),
    ],
)
async def test_bodies(http: aiohttp.ClientSession, kind: str, body: bytes, code: int, sentence: str) -> None:
    status, answer = await sent(http, "POST", _CM, data=body, headers={"Content-Type": kind})
    assert (status, answer["kind"], answer["status"]) == (code, "Status", "Failure"), answer
    assert answer["code"] == code
    assert sentence in answer["message"]


async def test_a_yaml_bomb_is_refused_quickly(http: aiohttp.ClientSession) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    body = "\n".join(lines)
    async with asyncio.timeout(20):
        status, answer = await sent(http, "POST", _CM, data=body, headers={"Content-Type": "application/yaml"})
    assert status == 400 and "excessive aliasing" in answer["message"]


async def test_ten_megabytes_are_too_large(http: aiohttp.ClientSession, door: Cluster) -> None:
    body = json.dumps({"metadata": {"name": "x"}, "data": {"a": "x" * 10_000_000}})
    data = io.BytesIO(body.encode())
    status, answer = await sent(http, "POST", _CM, data=data, headers={"Content-Type": "application/json"})
    assert (status, answer["reason"]) == (413, "RequestEntityTooLarge")
    assert answer["message"] == "Request entity too large: limit is 3145728"

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    try:  # without a length: cut off once it is over
        status, answer = await sent(http, "POST", _CM, data=endless(), headers={"Content-Type": "application/json"})
        assert status == 413
    except aiohttp.ClientConnectionError:
        pass
    manifest = door.folder / "big.yaml"
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "ConfigMap", **json.loads(body)}))
    told = await door.kubectl("create", "-f", str(manifest), check=False)
    assert "Request entity too large" in told.err


async def test_a_megabyte_of_values_is_too_much_for_a_config_map(http: aiohttp.ClientSession) -> None:
    body = io.BytesIO(json.dumps({"metadata": {"name": "x"}, "data": {"a": "x" * 1_100_000}}).encode())
    status, answer = await sent(http, "POST", _CM, data=body, headers={"Content-Type": "application/json"})
    assert (status, answer["reason"]) == (422, "Invalid")
    assert "may not be more than 1048576 bytes" in answer["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/namespaces/default/configmaps/a%2Fb",
        "/api/v1/namespaces/default/configmaps/..%2F..%2Fsecrets",
        "/api/v1/namespaces/default/configmaps/%00",
        "/api/v1/namespaces/default/nothings",
        "/apis/none.example.com/v1/things",
        "/api/v2/pods",
        "/apis/apps/v1/namespaces/default/deployments/x/nothing",
        "/nothing",
    ],
)
async def test_paths_that_lead_nowhere(http: aiohttp.ClientSession, path: str) -> None:
    from yarl import URL

    async with http.get(URL(path, encoded=True)) as response:
        answer = await response.json(content_type=None)
        assert (response.status, answer["reason"]) == (404, "NotFound")


async def test_odd_parameters(http: aiohttp.ClientSession) -> None:
    for query, code in (
        ("limit=x", 400),
        ("labelSelector=a%3D%3D%3Db", 400),
        ("fieldSelector=spec.x%3D1", 400),
        ("resourceVersion=abc", 400),
        ("continue=zzz", 400),
        ("resourceVersion=999999999", 504),
        ("watch=true&resourceVersion=xyz", 400),
    ):
        status, answer = await sent(http, "GET", f"{_CM}?{query}")
        assert (status if status != 422 else 400, answer["status"]) == (code, "Failure"), (query, answer)
    status, answer = await sent(http, "POST", f"{_CM}?dryRun=Some", json={"metadata": {"name": "x"}})
    assert status == 400 and "dryRun" in answer["message"]
    status, _ = await sent(http, "POST", f"{_CM}?dryRun=All", json={"metadata": {"name": "x"}})
    assert status == 201
    assert (await sent(http, "GET", f"{_CM}/x"))[0] == 404
    async with http.get(_CM, headers={"Accept": "text/html"}) as response:
        assert response.status == 406


async def test_two_clients_create_the_same_name(http: aiohttp.ClientSession) -> None:
    body = {"metadata": {"name": "same"}}
    codes = sorted([code for code, _ in await asyncio.gather(*(sent(http, "POST", _CM, json=body) for _ in range(20)))])
    assert codes == [201, *[409] * 19]
    _, answer = await sent(http, "POST", _CM, json=body)
    assert (answer["reason"], answer["message"]) == ("AlreadyExists", 'configmaps "same" already exists')
    assert answer["details"] == {"name": "same", "kind": "configmaps"}


async def test_lost_updates_are_refused(http: aiohttp.ClientSession) -> None:
    _, first = await sent(http, "POST", _CM, json={"metadata": {"name": "x"}, "data": {"n": "0"}})
    _, second = await sent(http, "PUT", f"{_CM}/x", json={**first, "data": {"n": "1"}})
    status, answer = await sent(http, "PUT", f"{_CM}/x", json={**first, "data": {"n": "2"}})
    assert (status, answer["reason"]) == (409, "Conflict")
    assert "the object has been modified" in answer["message"]
    assert second["data"] == {"n": "1"}


async def test_a_client_that_leaves_a_watch_is_forgotten(door: Cluster, http: aiohttp.ClientSession) -> None:
    for _ in range(20):
        response = await http.get(f"{_CM}?watch=true")
        assert response.status == 200
        response.close()
    await asyncio.sleep(0.2)
    watching = [task for task in asyncio.all_tasks() if "watch" in repr(task.get_coro())]
    assert not [task for task in watching if "_handle_request" in repr(task)]


async def test_anonymous_and_wrong_credentials(door: Cluster) -> None:
    context = ssl.create_default_context(cadata=door.pki.ca_pem.decode())
    async with aiohttp.ClientSession(door.url, connector=aiohttp.TCPConnector(ssl=context)) as http:
        status, answer = await sent(http, "GET", "/api/v1/nodes")
        assert status == 403
        assert answer["message"] == (
            'nodes is forbidden: User "system:anonymous" cannot list resource "nodes" in API group "" at the cluster scope'
        )
        assert (await sent(http, "GET", "/version"))[0] == 200
        for token in ("nonsense", "a.b.c", "eyJhbGciOiJub25lIn0.e30."):
            status, answer = await sent(http, "GET", "/version", headers={"Authorization": f"Bearer {token}"})
            assert (status, answer["reason"]) == (401, "Unauthorized")
        status, answer = await sent(http, "GET", "/version", headers={"Impersonate-User": "kubernetes-admin"})
        assert status == 403
