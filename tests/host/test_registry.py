"""Pull and push against a real registry, with and without tokens, and against ones that lie, break off or redirect."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.images_support import chunks, config_of, docker_archive, layer_tar, left_over, sha256
from tests.host.registry_support import ISSUER, SERVICE, Scripted, TokenServer, free_port, real_registry, serving

from insula.errors import Forbidden, InsulaError, Invalid, NotFound, TooManyRequests, Unauthorized, Unavailable
from insula.images.contract import Auth, Progress
from insula.images.store import NodeImages

pytestmark = pytest.mark.root

BASE = layer_tar({"etc": None, "etc/a": os.urandom(300_000), "bin/x": b"#!"})
TOP = layer_tar({"etc/.wh.a": b"", "etc/b": b"top"})


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[NodeImages]:
    store = await NodeImages.open(tmp_path / "data")
    yield store
    await store.close()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[NodeImages]:
    store = await NodeImages.open(tmp_path / "other")
    yield store
    await store.close()


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, str]]:
    registry = Scripted()
    async with serving(registry.app()) as domain:
        yield registry, domain


@pytest.mark.peer
async def test_push_and_pull_through_a_real_registry(images: NodeImages, other: NodeImages, tmp_path: Path) -> None:
    async with real_registry(tmp_path / "registry") as domain:
        name = f"{domain}/team/app:1"
        (image,) = await images.load(chunks(docker_archive([BASE, TOP], [name, f"{domain}/second/app:2"])))
        said: list[Progress] = []
        digest = (await images.push(name, report=said.append)).digest
        assert said[0].status == f"The push refers to repository [{domain}/team/app]"
        assert said[-1].status.startswith(f"1: digest: {digest} size: ")
        assert {each.status for each in said} >= {"Preparing", "Pushing", "Pushed"}
        assert (await images.get(name)).digests == (f"{domain}/team/app@{digest}",)

        said.clear()
        assert (await images.push(name, report=said.append)).digest == digest
        assert [each.status for each in said].count("Layer already exists") == 2
        said.clear()
        await images.push(f"{domain}/second/app:2", report=said.append)
        assert [each.status for each in said].count("Mounted from team/app") == 2

        said.clear()
        pulled = await other.pull(name, report=said.append)
        assert (pulled.id, pulled.names, pulled.digests) == (image.id, (name,), (f"{domain}/team/app@{digest}",))
        assert said[0] == Progress(status="Pulling from team/app", id="1")
        assert said[-2:] == [
            Progress(status=f"Digest: {digest}"),
            Progress(status=f"Status: Downloaded newer image for {name}"),
        ]
        assert {each.status for each in said} >= {
            "Pulling fs layer",
            "Download complete",
            "Extracting",
            "Pull complete",
        }
        assert Path(await other.file(pulled, "/etc/b")).read_text() == "top"
        said.clear()
        await other.pull(name, report=said.append)
        assert said[-1].status == f"Status: Image is up to date for {name}"
        assert "Downloading" not in {each.status for each in said}

        by_digest = await other.pull(f"{domain}/second/app@{digest}")
        assert by_digest.id == image.id and by_digest.names == (name,)
        assert (await other.get(f"{domain}/second/app@{digest}")).id == image.id
        with pytest.raises(NotFound, match=f"^manifest for {name}23 not found: manifest unknown: manifest unknown"):
            await other.pull(name + "23")
        said.clear()
        await other.pull(name, platform="linux/arm64", report=said.append)
        assert "does not match the specified platform: wanted linux/arm64, actual: linux/amd64" in said[-1].status
        with pytest.raises(NotFound, match="does not match the specified platform: wanted linux/arm64"):
            await other.get(name, platform="linux/arm64")
        with pytest.raises(NotFound, match="An image does not exist locally with the tag"):
            await other.push(f"{domain}/nothing")


@pytest.mark.peer
async def test_tokens(images: NodeImages, other: NodeImages, tmp_path: Path) -> None:
    tokens = TokenServer(tmp_path / "tokens")
    async with serving(tokens.app()) as realm:
        auth = {
            "token": {
                "realm": f"http://{realm}/token", "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(tokens.bundle)
            }
        }  # fmt: skip
        async with real_registry(tmp_path / "registry", auth) as domain:
            name = f"{domain}/private/app:1"
            alice = Auth(username="alice", password=tokens.password)
            (image,) = await images.load(chunks(docker_archive([BASE], [name])))
            with pytest.raises(Forbidden, match=r"denied|unauthorized"):
                await images.push(name)
            with pytest.raises(Unauthorized, match="incorrect username or password"):
                await images.push(name, auth=Auth(username="alice", password="wrong"))
            await images.push(name, auth=alice)
            assert (
                "repository:private/app:pull,push" in tokens.asked or "repository:private/app:push,pull" in tokens.asked
            )
            with pytest.raises(NotFound, match=r"pull access denied for .*, repository does not exist or may require"):
                await other.pull(name)
            assert (await other.pull(name, auth=alice)).id == image.id
            await other.remove(name)
            assert (await other.pull(name, auth=Auth(identity_token=tokens.refresh_token))).id == image.id


def publish(registry: Scripted, layers: list[bytes], *, tag: str = "1", **changed: Any) -> dict[str, Any]:
    """Put an image of gzip layers into a scripted registry."""
    packed = [gzip.compress(layer) for layer in layers]
    config = config_of(layers, **changed)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"digest": registry.add_blob(config), "size": len(config)},
        "layers": [{"digest": registry.add_blob(layer), "size": len(layer)} for layer in packed],
    }
    put(registry, tag, manifest)
    return manifest


def put(registry: Scripted, tag: str, manifest: dict[str, Any]) -> str:
    data = json.dumps(manifest).encode()
    for name in (tag, sha256(data)):
        registry.manifests[name] = (manifest["mediaType"], data)
    return sha256(data)


async def test_chooses_the_platform_of_a_list(images: NodeImages, scripted: tuple[Scripted, str]) -> None:
    registry, domain = scripted
    rows = []
    for architecture in ("amd64", "arm64"):
        publish(registry, [TOP], tag=architecture, architecture=architecture)
        data = registry.manifests[architecture][1]
        rows.append(
            {"digest": sha256(data), "size": len(data), "platform": {"os": "linux", "architecture": architecture}}
        )
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": rows}
    digest = put(registry, "1", index)
    image = await images.pull(f"{domain}/x:1", platform="linux/amd64")
    assert image.architecture == "amd64" and image.digests == (f"{domain}/x@{digest}",)
    assert (await images.pull(f"{domain}/x:1", platform="linux/arm64")).architecture == "arm64"
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x in the manifest list entries"):
        await images.pull(f"{domain}/x:1", platform="linux/s390x")


@pytest.mark.parametrize("ranges", [True, False])
async def test_resumes_a_broken_download(images: NodeImages, scripted: tuple[Scripted, str], ranges: bool) -> None:
    registry, domain = scripted
    manifest = publish(registry, [BASE])
    digest = manifest["layers"][0]["digest"]
    registry.ranges = ranges
    registry.break_after[digest] = [100_000, 50_000]
    image = await images.pull(f"{domain}/x:1")
    assert image.layers == (sha256(BASE),)
    asked = [headers.get("Range") for _, path, headers in registry.requests if path.endswith(digest)]
    assert len(asked) == 3 and asked[0] is None and asked[1] is not None


LIES = ["manifest", "digest", "size", "longer", "diff", "count", "config", "nested"]


@pytest.mark.parametrize("lie", LIES)
async def test_a_registry_that_lies(
    images: NodeImages, scripted: tuple[Scripted, str], tmp_path: Path, lie: str
) -> None:
    registry, domain = scripted
    manifest = publish(registry, [BASE, TOP])
    layer = manifest["layers"][0]
    if lie == "manifest":
        registry.promise = "sha256:" + "0" * 64
    elif lie == "digest":
        registry.blobs[layer["digest"]] = os.urandom(layer["size"])
    elif lie == "size":
        registry.blobs[layer["digest"]] = registry.blobs[layer["digest"]][:-10]
    elif lie == "longer":
        registry.blobs[layer["digest"]] += bytes(100_000)
    elif lie == "diff":
        config = config_of([TOP, BASE])
        put(registry, "1", manifest | {"config": {"digest": registry.add_blob(config), "size": len(config)}})
    elif lie == "count":
        put(registry, "1", manifest | {"layers": [layer]})
    elif lie == "config":
        put(registry, "1", manifest | {"config": {"digest": registry.add_blob(b"{"), "size": 1}})
    else:
        row = {
            "digest": sha256(registry.manifests["1"][1]),
            "size": 5,
            "platform": {"os": "linux", "architecture": "amd64"},
        }
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [row]}
        put(registry, "1", index)
    with pytest.raises(Invalid) as fault:
        await images.pull(f"{domain}/x:1", platform="linux/amd64")
    assert len(str(fault.value)) > 20
    assert await images.list() == [] and left_over(tmp_path / "data") == []


async def test_a_registry_that_fails(images: NodeImages, scripted: tuple[Scripted, str]) -> None:
    registry, domain = scripted
    registry.status = {"slow": 429, "broken": 500}
    with pytest.raises(TooManyRequests, match="toomanyrequests: toomanyrequests: slow down") as fault:
        await images.pull(f"{domain}/x:slow")
    assert fault.value.retry_after_s == 7
    with pytest.raises(Unavailable):
        await images.pull(f"{domain}/x:broken")
    with pytest.raises(Unavailable, match=r"dial tcp 127\.0\.0\.1:\d+: connect: connection refused"):
        await images.pull(f"127.0.0.1:{free_port()}/x")


async def test_basic_authentication_and_redirects(images: NodeImages, scripted: tuple[Scripted, str]) -> None:
    """The storage service that blobs are redirected to never sees the password."""
    registry, domain = scripted
    publish(registry, [TOP])
    registry.basic = "Basic " + base64.b64encode(b"bob:secret").decode()
    storage = Scripted()
    storage.blobs = registry.blobs
    async with serving(storage.app()) as elsewhere:
        registry.redirect = f"http://{elsewhere}"
        with pytest.raises(Unauthorized, match="no basic auth credentials"):
            await images.pull(f"{domain}/x:1")
        await images.pull(f"{domain}/x:1", auth=Auth(username="bob", password="secret"))
        assert storage.requests
        assert not [headers for _, _, headers in storage.requests if "Authorization" in headers]


async def test_a_pull_that_is_cancelled_leaves_nothing(
    images: NodeImages, scripted: tuple[Scripted, str], tmp_path: Path
) -> None:
    registry, domain = scripted
    publish(registry, [BASE, TOP])
    for after_ms in (1, 10, 20, 30, 50):
        task = asyncio.create_task(images.pull(f"{domain}/x:1"))
        await asyncio.sleep(after_ms / 1000)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            with contextlib.suppress(NotFound):  # too late, when only the connection was still to be closed
                await images.remove(f"{domain}/x:1")
            async with asyncio.timeout(10):  # a thread that was unpacking clears away after itself
                while left_over(tmp_path / "data"):
                    await asyncio.sleep(0.01)
        except InsulaError as fault:
            pytest.fail(f"a cancelled pull failed: {fault}")
        else:
            await images.remove(f"{domain}/x:1")


async def test_pulls_at_once_share_what_they_fetch(images: NodeImages, scripted: tuple[Scripted, str]) -> None:
    registry, domain = scripted
    publish(registry, [BASE, TOP])
    began = time.monotonic()
    pulled = await asyncio.gather(*(images.pull(f"{domain}/x:1") for _ in range(5)))
    assert len({image.id for image in pulled}) == 1 and time.monotonic() - began < 20
