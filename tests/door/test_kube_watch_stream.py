"""Watches over HTTP: events in chunks as they come, and readers who do not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from door.kube_support import Cluster, cluster
from insula.api.kube import watching

MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as made:
        yield made


@pytest.fixture
async def http(door: Cluster) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(door.url, connector=aiohttp.TCPConnector(ssl=tls(door))) as made:
        yield made


def tls(door: Cluster) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=door.pki.ca_pem.decode())
    context.load_cert_chain(door.pki.folder / "admin.crt", door.pki.folder / "admin.key")
    return context


async def put(http: aiohttp.ClientSession, name: str, **data: str) -> None:
    body = {"metadata": {"name": name}, "data": data}
    async with http.post(MAPS, json=body) as answer:
        if answer.status != 409:
            assert answer.status == 201
            return
    async with http.put(f"{MAPS}/{name}", json=body) as answer:
        assert answer.status == 200, await answer.text()


async def events(http: aiohttp.ClientSession, query: str) -> AsyncIterator[dict[str, Any]]:
    async with http.get(f"{MAPS}?watch=true&{query}") as answer:
        assert answer.status == 200
        async for line in answer.content:
            yield json.loads(line)


async def test_events_come_at_once_and_the_watch_ends_in_time(http: aiohttp.ClientSession) -> None:
    watch = events(http, "timeoutSeconds=2&allowWatchBookmarks=true")
    first = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.1)
    await put(http, "a", x="1")
    async with asyncio.timeout(1):
        seen = [await first]
        if seen[0]["object"]["metadata"]["name"] != "a":  # the CA's own map is there from the beginning
            seen = [await anext(watch)]
    assert (seen[0]["type"], seen[0]["object"]["data"]) == ("ADDED", {"x": "1"})
    rest = [event async for event in watch]
    assert [event["type"] for event in rest] == ["BOOKMARK"]


async def test_an_error_ends_a_watch_with_a_status(door: Cluster, http: aiohttp.ClientSession) -> None:
    watch = events(http, f"resourceVersion={await door.verbs.revision()}")
    last = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.1)
    await door.verbs.store.close()
    event = await last
    assert event["type"] == "ERROR" and event["object"]["kind"] == "Status"
    assert [each async for each in watch] == []


@pytest.mark.may_block  # both clients live in this loop, and 15 MB go through each
async def test_who_does_not_read_is_hung_up_on_and_slows_nobody(
    door: Cluster, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "STALLED_S", 0.5)
    address = urlsplit(door.url)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (address.hostname, address.port))
    reader, writer = await asyncio.open_connection(
        sock=raw, ssl=tls(door), server_hostname=address.hostname, limit=1024
    )
    revision = await door.verbs.revision()
    writer.write(f"GET {MAPS}?watch=true&resourceVersion={revision} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.transport.pause_reading()
    good = events(http, f"resourceVersion={revision}")
    for number in range(150):
        await put(http, "big", number=str(number), filling="x" * 100_000)
    numbers = []
    async with asyncio.timeout(10):
        while not numbers or numbers[-1] != "149":
            numbers.append((await anext(good))["object"]["data"]["number"])
    assert numbers == [str(number) for number in range(150)]
    await good.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(1)
    writer.transport.resume_reading()
    async with asyncio.timeout(10):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(150 * 100_000)
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_an_old_client_gets_lines_without_chunks(door: Cluster, http: aiohttp.ClientSession) -> None:
    await put(http, "a", x="1")
    address = urlsplit(door.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, ssl=tls(door))
    query = "watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Da"
    writer.write(f"GET {MAPS}?{query} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(10):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert [json.loads(line)["object"]["data"] for line in body.splitlines()] == [{"x": "1"}]
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
