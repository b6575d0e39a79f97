"""The local and the HTTP client are held to the same contract, over the same kind of cluster."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.verbs_support import CONFIG_MAPS, DEPLOYMENTS, PODS, config_map, deployment, make_verbs, pod
from door.kube_support import cluster
from insula.client.cache import Informer
from insula.client.contract import Client
from insula.client.http import HttpClient
from insula.client.local import LocalClient
from insula.errors import (
    AlreadyExists,
    Conflict,
    Expired,
    Invalid,
    NotFound,
    StaleRevision,
    Unauthorized,
    Unavailable,
)
from insula.model.resource import Ref
from insula.tasks import Tasks
from insula.verbs.verbs import Verbs


def admin_context(config: Path, folder: Path) -> ssl.SSLContext:
    """TLS as a kubeconfig describes it."""
    parsed = yaml.safe_load(config.read_text())
    server, user = parsed["clusters"][0]["cluster"], parsed["users"][0]["user"]
    pair = folder / "client.pem"
    pair.write_bytes(
        base64.b64decode(user["client-certificate-data"]) + b"\n" + base64.b64decode(user["client-key-data"])
    )
    context = ssl.create_default_context(cadata=base64.b64decode(server["certificate-authority-data"]).decode())
    context.load_cert_chain(pair)
    return context


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[tuple[Client, Verbs]]:
    if kind == "local":
        verbs = await make_verbs()
        yield LocalClient(verbs, manager="test"), verbs
        await verbs.store.close()
        return
    async with cluster(folder) as running:
        context = admin_context(running.config, folder)
        async with HttpClient(running.url, ssl_context=context, manager="test") as client:
            yield client, running.verbs


@pytest.fixture(params=["local", "http"])
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Client, Verbs]]:
    async with opened(request.param, tmp_path) as found:
        yield found


@pytest.fixture
async def client(both: tuple[Client, Verbs]) -> Client:
    return both[0]


def name_of(obj: Any) -> str:
    return str(obj["metadata"]["name"])


@pytest.mark.may_block
async def test_the_verbs(client: Client) -> None:
    made = await client.create(CONFIG_MAPS, config_map("a", x="1"), "default")
    assert made["kind"] == "ConfigMap" and made["data"] == {"x": "1"}
    assert await client.get(CONFIG_MAPS, "a", "default") == made
    made["data"]["x"] = "2"
    changed = await client.update(CONFIG_MAPS, made, "default")
    assert changed["data"] == {"x": "2"}
    merged = await client.patch(CONFIG_MAPS, "a", {"data": {"y": "3"}}, "default")
    assert merged["data"] == {"x": "2", "y": "3"}
    applied = await client.patch(
        CONFIG_MAPS,
        "b",
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": {"k": "v"}},
        "default",
        type="apply",
    )
    assert applied["metadata"]["managedFields"][0]["manager"] == "test"
    listing = await client.list(CONFIG_MAPS, "default", fields="metadata.name=a")
    assert listing.items == [merged]
    await client.delete(CONFIG_MAPS, "a", "default", uid=made["metadata"]["uid"])
    with pytest.raises(NotFound):
        await client.get(CONFIG_MAPS, "a", "default")


@pytest.mark.may_block
async def test_faults_are_the_same(client: Client) -> None:
    made = await client.create(CONFIG_MAPS, config_map("a"), "default")
    with pytest.raises(AlreadyExists, match=r'configmaps "a" already exists'):
        await client.create(CONFIG_MAPS, config_map("a"), "default")
    with pytest.raises(NotFound, match=r'configmaps "b" not found') as missing:
        await client.get(CONFIG_MAPS, "b", "default")
    assert missing.value.name == "b"
    await client.patch(CONFIG_MAPS, "a", {"data": {"x": "1"}}, "default")
    with pytest.raises(StaleRevision):
        await client.update(CONFIG_MAPS, {**made, "data": {"x": "2"}}, "default")
    with pytest.raises(StaleRevision):
        await client.delete(CONFIG_MAPS, "a", "default", uid="other")
    with pytest.raises(Invalid) as wrong:
        await client.create(CONFIG_MAPS, config_map("A"), "default")
    assert wrong.value.causes[0].field == "metadata.name"
    await client.patch(DEPLOYMENTS, "d", deployment("d", 1), "default", type="apply", manager="one")
    with pytest.raises(Conflict, match="Apply failed with 1 conflict") as conflict:
        await client.patch(DEPLOYMENTS, "d", deployment("d", 2), "default", type="apply", manager="two")
    assert conflict.value.causes[0].reason == "FieldManagerConflict"


@pytest.mark.may_block
async def test_subresources(client: Client) -> None:
    await client.create(PODS, pod("p"), "default")
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "n1"},
    }
    await client.create(PODS, binding, "default", name="p", sub="binding")
    running = await client.patch(PODS, "p", {"status": {"phase": "Running"}}, "default", sub="status")
    assert (running["spec"]["nodeName"], running["status"]["phase"]) == ("n1", "Running")
    await client.create(DEPLOYMENTS, deployment("d", 2), "default")
    scale = await client.get(DEPLOYMENTS, "d", "default", sub="scale")
    scale["spec"]["replicas"] = 4
    assert (await client.update(DEPLOYMENTS, scale, "default", sub="scale"))["spec"]["replicas"] == 4


@pytest.mark.may_block
async def test_pages(client: Client) -> None:
    for number in range(5):
        await client.create(CONFIG_MAPS, config_map(f"c{number}"), "default")
    names: list[str] = []
    token = ""
    while True:
        page = await client.list(CONFIG_MAPS, "default", limit=2, continue_token=token)
        names += [name_of(one) for one in page.items]
        token = page.continue_token
        if not token:
            break
    assert names == [f"c{number}" for number in range(5)]


@pytest.mark.may_block
async def test_a_watch(both: tuple[Client, Verbs]) -> None:
    client, verbs = both
    await client.create(CONFIG_MAPS, config_map("a"), "default")
    listing = await client.list(CONFIG_MAPS, "default")
    async with aclosing(client.watch(CONFIG_MAPS, "default", revision=listing.revision)) as events:  # type: ignore[type-var]
        await client.create(CONFIG_MAPS, config_map("b", big="x" * 300_000), "default")
        await client.delete(CONFIG_MAPS, "a", "default")
        async with asyncio.timeout(10):
            found = [await anext(events), await anext(events)]
    assert [(event.type, name_of(event.object)) for event in found] == [("ADDED", "b"), ("DELETED", "a")]
    await verbs.store.compact(int(await verbs.revision()))
    with pytest.raises(Expired):
        async with asyncio.timeout(10):
            async for _ in client.watch(CONFIG_MAPS, "default", revision=listing.revision):
                pass


@pytest.mark.may_block
async def test_an_informer_follows(client: Client) -> None:
    owner = {"apiVersion": "v1", "kind": "X", "name": "o", "uid": "u1"}
    obj = config_map("a")
    obj["metadata"]["ownerReferences"] = [owner]
    await client.create(CONFIG_MAPS, obj, "default")
    informer = Informer(client, CONFIG_MAPS, namespace="default")
    told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    informer.subscribe(lambda old, new: told.put_nowait((name_of(old) if old else "", name_of(new) if new else "")))
    async with Tasks("test") as tasks, asyncio.timeout(10):
        tasks.spawn(informer.run(), "informer")
        await informer.synced.wait()
        assert [name_of(one) for one in informer.owned("u1")] == ["a"]
        await client.create(CONFIG_MAPS, config_map("b"), "default")
        await client.patch(CONFIG_MAPS, "a", {"data": {"x": "1"}}, "default")
        await client.delete(CONFIG_MAPS, "b", "default")
        assert [await told.get() for _ in range(4)] == [("", "a"), ("", "b"), ("a", "a"), ("b", "")]
        assert [name_of(one) for one in informer.list("default")] == ["a"]


async def test_a_server_that_is_not_there() -> None:
    async with HttpClient("https://127.0.0.1:9") as client:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await client.get(CONFIG_MAPS, "a", "default")
        with pytest.raises(Unavailable, match="cut off"):
            async for _ in client.watch(CONFIG_MAPS):
                pass


@pytest.mark.may_block
async def test_a_stranger_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as running:
        context = ssl.create_default_context(cadata=running.pki.ca_pem.decode())
        async with HttpClient(running.url, ssl_context=context, token=lambda: "nonsense") as client:
            with pytest.raises(Unauthorized):
                await client.get(Ref("", "v1", "pods"), "a", "default")


async def test_the_local_client_gives_and_takes_copies(tmp_path: Path) -> None:
    async with opened("local", tmp_path) as (client, _):
        mine = config_map("a", x="1")
        first = await client.create(CONFIG_MAPS, mine, "default")
        assert mine == config_map("a", x="1")
        first["data"]["x"] = "9"
        second = await client.get(CONFIG_MAPS, "a", "default")
        assert second["data"] == {"x": "1"}
        patch = {"data": {"y": ["z"]}}
        with pytest.raises(Invalid):
            await client.patch(CONFIG_MAPS, "a", patch, "default")
        assert patch == {"data": {"y": ["z"]}}
