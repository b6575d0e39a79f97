"""The roads to a registry: mirrors, own authorities and client certificates, proxies; tags; what a cut-short pull left."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.contract.images_support import chunks, docker_archive, layer_tar, left_over
from tests.host.registry_support import ISSUER, SERVICE, Scripted, TokenServer, real_registry, serving
from tests.host.test_registry import BASE, TOP, publish, put

from insula.cli.issuer import Issuer
from insula.errors import NotFound, Unavailable, Unsupported
from insula.images.contract import Auth, Progress
from insula.images.registries import Registries
from insula.images.store import NodeImages

pytestmark = pytest.mark.root


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Any]:
    """Opens stores with settings of their own."""
    made: list[NodeImages] = []

    async def make(name: str = "data", **settings: Any) -> NodeImages:
        store = await NodeImages.open(tmp_path / name, registries=Registries(**settings))
        made.append(store)
        return store

    yield make
    for store in made:
        await store.close()


async def test_a_mirror_serves_docker_hub(stores: Any) -> None:
    mirror = Scripted()
    publish(mirror, [TOP])
    dead, alive = Scripted(), serving(mirror.app())
    async with serving(dead.app()) as empty, alive as domain:
        images = await stores(mirrors=(f"http://{empty}", f"http://{domain}"))
        image = await images.pull("team/app:1", auth=Auth(username="me", password="secret"))
    assert image.names == ("team/app:1",) and image.digests[0].startswith("team/app@sha256:")
    assert [path for _, path, _ in dead.requests if "manifests" in path] == ["/v2/team/app/manifests/1"]
    assert not [headers for _, _, headers in mirror.requests if "Authorization" in headers]


async def test_the_registry_answers_when_no_mirror_can(stores: Any) -> None:
    registry, mirror = Scripted(), Scripted()
    publish(registry, [TOP])
    mirror.status = {"1": 500}
    async with serving(registry.app()) as domain, serving(mirror.app()) as first:
        images = await stores(mirrors=(f"{domain}=http://{first}", f"{domain}=http://127.0.0.1:9"))
        assert (await images.pull(f"{domain}/x:1")).names == (f"{domain}/x:1",)
        with pytest.raises(NotFound, match="manifest unknown"):
            await images.pull(f"{domain}/x:2")


def tls(pki: Issuer, folder: Path, *, asks: bool) -> ssl.SSLContext:
    """A server's context with a certificate for 127.0.0.1."""
    made = pki.issue("registry", usage="server", names=("127.0.0.1",))
    (folder / "server.pem").write_bytes(made.certificate + made.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    if asks:
        context.load_verify_locations(cadata=pki.ca_pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_an_own_authority_and_a_client_certificate(stores: Any, tmp_path: Path) -> None:
    """127.0.0.1 is insecure by nature, so that only the client's side shows here; the server's is judged as `hub.test`."""
    pki = await asyncio.to_thread(Issuer, tmp_path / "pki")
    registry = Scripted()
    publish(registry, [TOP])
    async with serving(registry.app(), tls(pki, tmp_path, asks=True)) as domain:
        certificates = tmp_path / "certs.d"
        images = await stores(certificates=(str(certificates),))
        with pytest.raises(Unavailable):
            await images.pull(f"{domain}/x:1")
        place = certificates / domain
        place.mkdir(parents=True)
        mine = pki.issue("me")
        (place / "client.cert").write_bytes(mine.certificate)
        (place / "client.key").write_bytes(mine.key)
        (place / "ca.crt").write_bytes(pki.ca_pem)
        await images.pull(f"{domain}/x:1")


async def test_a_certificate_that_nobody_known_signed_is_refused(stores: Any, tmp_path: Path) -> None:
    pki = await asyncio.to_thread(Issuer, tmp_path / "pki")
    registry = Scripted()
    publish(registry, [TOP])
    async with serving(registry.app(), tls(pki, tmp_path, asks=False)) as domain:
        # A name that is this machine to the resolver, and nothing special to the rules.
        name = f"{os.uname().nodename}.invalid:{domain.rpartition(':')[2]}"
        images = await stores()
        with pytest.raises(Unavailable, match="Get"):
            await images.pull(f"{name}/x:1")


async def test_a_proxy_stands_between(stores: Any) -> None:
    registry = Scripted()
    publish(registry, [TOP])
    passed: list[tuple[str, str]] = []

    async def forward(request: web.Request) -> web.Response:
        passed.append((str(request.url), request.headers.get("Proxy-Authorization", "")))
        *_, kind, name = request.path.split("/")
        if kind == "manifests" and name in registry.manifests:
            media_type, data = registry.manifests[name]
            return web.Response(body=data, content_type=media_type)
        if kind == "blobs":
            return web.Response(body=registry.blobs[name])
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    async with serving(app) as proxy:
        images = await stores(insecure=("hub.test:80",), http_proxy=f"http://me:pw@{proxy}", attempts=1)
        image = await images.pull("hub.test:80/x:1")
    assert image.names == ("hub.test:80/x:1",)
    assert passed[0] == ("http://hub.test/v2/", "Basic bWU6cHc=")


@pytest.mark.peer
async def test_every_tag_of_a_repository(stores: Any, tmp_path: Path) -> None:
    here, there = await stores("here"), await stores("there")
    async with real_registry(tmp_path / "registry") as domain:
        names = [f"{domain}/team/app:{tag}" for tag in ("1", "2", "three")]
        await here.load(chunks(docker_archive([BASE], names)))
        for name in names:
            await here.push(name)
        said: list[Progress] = []
        (one, *_) = await there.pull_all(f"{domain}/team/app", report=said.append)
        assert (await there.get(one.id)).names == tuple(names)
        assert sorted(each.id for each in said if each.status.startswith("Pulling from")) == ["1", "2", "three"]
        assert said[-1].status == f"Status: Downloaded newer image for {domain}/team/app"
        look = await there.distribution(names[0])
        assert look.digest == one.digests[0].partition("@")[2]
        assert look.platforms == ({"architecture": "amd64", "os": "linux"},)
        with pytest.raises(NotFound):
            await there.pull_all(f"{domain}/nothing/here")


async def test_tags_come_in_pages(stores: Any) -> None:
    registry = Scripted()
    for tag in "abcde":
        publish(registry, [TOP], tag=tag)
    async with serving(registry.app()) as domain:
        images = await stores()
        assert len(await images.pull_all(f"{domain}/x")) == 5


async def test_a_pull_that_was_killed_goes_on_where_it_was(stores: Any, tmp_path: Path) -> None:
    """As after kill -9: another store opens the same folder, and neither what was whole nor the first half comes again."""
    registry = Scripted()
    big = layer_tar({"big": os.urandom(3_000_000)})
    manifest = publish(registry, [BASE, big])
    whole, half = (layer["digest"] for layer in manifest["layers"])
    registry.break_after[half] = [2_000_000] * 2
    async with serving(registry.app()) as domain:
        first = await stores(attempts=1)
        with pytest.raises(Unavailable, match="broke off"):
            await first.pull(f"{domain}/x:1")
        assert left_over(tmp_path / "data") == []
        again = await stores()
        await again.recover()
        registry.break_after.clear()
        registry.requests.clear()
        said: list[Progress] = []
        await again.pull(f"{domain}/x:1", report=said.append)
    asked = {path.rpartition("/")[2]: headers.get("Range") for _, path, headers in registry.requests}
    assert whole not in asked and asked[half] == "bytes=2000000-"
    assert {each.status for each in said} >= {
        "Pulling fs layer",
        "Verifying Checksum",
        "Download complete",
        "Extracting",
    }
    assert list((tmp_path / "data/blobs/partial").iterdir()) == []


async def test_what_was_left_and_is_damaged_comes_again(stores: Any, tmp_path: Path) -> None:
    registry = Scripted()
    digest = publish(registry, [BASE])["layers"][0]["digest"]
    async with serving(registry.app()) as domain:
        images = await stores()
        (tmp_path / "data/blobs/partial" / digest.removeprefix("sha256:")).write_bytes(bytes(1000))
        await images.pull(f"{domain}/x:1")
    asked = [headers.get("Range") for _, path, headers in registry.requests if path.endswith(digest)]
    assert asked == ["bytes=1000-", None]


async def test_a_foreign_layer_that_the_registry_lacks(stores: Any) -> None:
    registry = Scripted()
    manifest = publish(registry, [TOP])
    layer = manifest["layers"][0]
    layer |= {
        "urls": ["https://elsewhere.test/x"],
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
    put(registry, "2", manifest)
    put(
        registry,
        "3",
        manifest | {"config": manifest["config"] | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}},
    )
    async with serving(registry.app()) as domain:
        images = await stores()
        await images.pull(f"{domain}/x:2")
        await images.remove(f"{domain}/x:2")
        with pytest.raises(Exception, match=r"unsupported media type application/vnd\.cncf\.helm"):
            await images.pull(f"{domain}/x:3")
        del registry.blobs[layer["digest"]]
        for left in images._content.blobs._partial.iterdir():
            left.unlink()
        with pytest.raises(Unsupported, match="outside of the registry"):
            await images.pull(f"{domain}/x:2")


@pytest.mark.peer
async def test_an_identity_token_comes_for_a_password(stores: Any, tmp_path: Path) -> None:
    tokens = TokenServer(tmp_path / "tokens")
    async with serving(tokens.app()) as realm:
        auth = {
            "token": {
                "realm": f"http://{realm}/token", "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(tokens.bundle)
            }
        }  # fmt: skip
        async with real_registry(tmp_path / "registry", auth) as domain:
            images = await stores()
            token = await images.login(domain, Auth(username="alice", password=tokens.password))
            assert token == tokens.refresh_token
            assert await images.login(domain, Auth(identity_token=token)) in ("", token)
