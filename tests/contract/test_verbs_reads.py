"""Lists in pages, revisions, and watches: what Kubernetes promises about them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from contract.verbs_support import ANYONE, CONFIG_MAPS, PODS, config_map, make_verbs, pod
from insula.errors import DeadlineExceeded, Expired, Invalid, Unavailable
from insula.verbs import watching
from insula.verbs.verbs import Verbs
from insula.verbs.watching import WatchStream


@pytest.fixture
async def verbs() -> AsyncIterator[Verbs]:
    made = await make_verbs()
    yield made
    await made.store.close()


async def make(verbs: Verbs, name: str, **labels: str) -> dict[str, Any]:
    obj = config_map(name)
    obj["metadata"]["labels"] = labels
    return (await verbs.create(ANYONE, CONFIG_MAPS, obj, "default")).object


def names(items: Any) -> list[str]:
    return [one["metadata"]["name"] for one in items]


async def test_text_and_objects_say_the_same(verbs: Verbs) -> None:
    for number in range(5):
        await make(verbs, f"c{number}")
    objects = await verbs.list(CONFIG_MAPS, "default")
    page = await verbs.list_raw(CONFIG_MAPS, "default")
    text = json.loads(page.body())
    assert text["items"] == objects.items and text["kind"] == "ConfigMapList"
    assert text["metadata"] == {"resourceVersion": objects.revision}
    assert b"".join(page.chunks(10)) == page.body()
    assert json.loads(await verbs.get_raw(CONFIG_MAPS, "c1", "default")) == objects.items[1]
    empty = await verbs.list_raw(PODS, "default")
    assert json.loads(empty.body())["items"] == []


async def test_pages_show_one_revision(verbs: Verbs) -> None:
    for number in range(5):
        await make(verbs, f"c{number}")
    first = await verbs.list(CONFIG_MAPS, limit=2)
    assert (names(first.items), first.remaining) == (["c0", "c1"], 3)
    await verbs.delete(ANYONE, CONFIG_MAPS, "c3", "default")
    await make(verbs, "c2b")
    second = await verbs.list(CONFIG_MAPS, limit=2, continue_token=first.continue_token)
    third = await verbs.list(CONFIG_MAPS, limit=2, continue_token=second.continue_token)
    assert names(second.items) + names(third.items) == ["c2", "c3", "c4"]
    assert second.revision == third.revision == first.revision and not third.continue_token


async def test_pages_end_when_their_revision_is_forgotten(verbs: Verbs) -> None:
    for number in range(4):
        await make(verbs, f"c{number}")
    first = await verbs.list(CONFIG_MAPS, limit=2)
    await make(verbs, "d")
    await verbs.store.compact(int(await verbs.revision()))
    with pytest.raises(Expired, match="The provided continue parameter is too old") as caught:
        await verbs.list(CONFIG_MAPS, limit=2, continue_token=first.continue_token)
    rest = await verbs.list(CONFIG_MAPS, continue_token=caught.value.continue_token)
    assert names(rest.items) == ["c2", "c3", "d"]


async def test_pages_with_a_selector_are_full(verbs: Verbs) -> None:
    for number in range(9):
        await make(verbs, f"c{number}", odd=str(number % 2))
    first = await verbs.list(CONFIG_MAPS, labels="odd=1", limit=3)
    assert (names(first.items), first.remaining) == (["c1", "c3", "c5"], None)
    rest = await verbs.list(CONFIG_MAPS, labels="odd=1", limit=3, continue_token=first.continue_token)
    assert (names(rest.items), rest.continue_token) == (["c7"], "")


@pytest.mark.parametrize(
    "question",
    [
        {"continue_token": "!!"},
        {"continue_token": "e30"},
        {"revision": "x"},
        {"revision": "-1"},
        {"revision_match": "Exact"},
        {"revision": "0", "revision_match": "Exact"},
        {"revision": "1", "revision_match": "Never"},
        {"labels": "a in b"},
        {"fields": "spec.nothing=1"},
    ],
)
async def test_bad_questions(verbs: Verbs, question: Any) -> None:
    with pytest.raises(Invalid):
        await verbs.list(CONFIG_MAPS, **question)


async def test_revisions(verbs: Verbs) -> None:
    made = await make(verbs, "a")
    at = made["metadata"]["resourceVersion"]
    await make(verbs, "b")
    assert names((await verbs.list(CONFIG_MAPS, revision=at)).items) == ["a", "b"]
    assert names((await verbs.list(CONFIG_MAPS, revision=at, revision_match="Exact")).items) == ["a"]
    assert names((await verbs.list(CONFIG_MAPS, revision="0")).items) == ["a", "b"]
    with pytest.raises(DeadlineExceeded, match="Too large resource version: 999"):
        await verbs.list(CONFIG_MAPS, revision="999")
    with pytest.raises(DeadlineExceeded):
        await verbs.get(CONFIG_MAPS, "a", "default", revision="999")


async def test_field_selectors(verbs: Verbs) -> None:
    await make(verbs, "a")
    await make(verbs, "b")
    assert names((await verbs.list(CONFIG_MAPS, "default", fields="metadata.name=b")).items) == ["b"]
    assert names((await verbs.list(CONFIG_MAPS, fields="metadata.name!=b")).items) == ["a"]
    assert names((await verbs.list(CONFIG_MAPS, fields="metadata.namespace=other")).items) == []
    assert names((await verbs.list(CONFIG_MAPS, "default", fields="metadata.name=none")).items) == []


# --- watch ------------------------------------------------------------------------------------------------------


async def take(stream: WatchStream, count: int) -> list[tuple[str, str]]:
    found = []
    async with asyncio.timeout(5):
        async for event in stream.events():
            found.append((event.type, event.object["metadata"].get("name", "")))
            if len(found) == count:
                break
    await stream.aclose()
    return found


async def test_a_watch_begins_with_what_is_there(verbs: Verbs) -> None:
    await make(verbs, "a")
    stream = await verbs.watch(CONFIG_MAPS, "default")
    await make(verbs, "b")
    await verbs.delete(ANYONE, CONFIG_MAPS, "a", "default")
    assert await take(stream, 3) == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]


async def test_a_watch_from_a_revision_has_no_gap(verbs: Verbs) -> None:
    made = await make(verbs, "a")
    await make(verbs, "b")
    stream = await verbs.watch(CONFIG_MAPS, revision=made["metadata"]["resourceVersion"])
    await make(verbs, "c")
    assert await take(stream, 2) == [("ADDED", "b"), ("ADDED", "c")]


async def test_objects_enter_and_leave_a_selector(verbs: Verbs) -> None:
    stream = await verbs.watch(CONFIG_MAPS, labels="on=1", revision=await verbs.revision())
    await make(verbs, "a", on="0")
    for value in ("1", "1", "0", "1"):
        patch = {"metadata": {"labels": {"on": value}, "annotations": {"n": value + str(await verbs.revision())}}}
        await verbs.patch(ANYONE, CONFIG_MAPS, "a", patch, "default", type="merge")
    await verbs.delete(ANYONE, CONFIG_MAPS, "a", "default")
    assert [type_ for type_, _ in await take(stream, 5)] == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]


async def test_field_selectors_follow_pods_to_their_node(verbs: Verbs) -> None:
    stream = await verbs.watch(PODS, fields="spec.nodeName=n1", revision=await verbs.revision())
    await verbs.create(ANYONE, PODS, pod("p"), "default")
    await verbs.create(ANYONE, PODS, {"target": {"name": "n1"}}, "default", name="p", sub="binding")
    assert await take(stream, 1) == [("ADDED", "p")]


async def test_streaming_lists(verbs: Verbs) -> None:
    await make(verbs, "a")
    stream = await verbs.watch(CONFIG_MAPS, bookmarks=True, initial=True, revision_match="NotOlderThan")
    events = stream.events()
    first, mark = await anext(events), await anext(events)
    assert (first.type, mark.type) == ("ADDED", "BOOKMARK")
    assert mark.object["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert mark.object["metadata"]["resourceVersion"] == await verbs.revision()
    await events.aclose()  # type: ignore[attr-defined]
    with pytest.raises(Invalid, match="NotOlderThan"):
        await verbs.watch(CONFIG_MAPS, initial=True)


async def test_a_watch_ends_in_time_with_a_bookmark(verbs: Verbs) -> None:
    stream = await verbs.watch(CONFIG_MAPS, bookmarks=True, timeout_s=0.05, revision=await verbs.revision())
    await make(verbs, "a")
    lines = b"".join([line async for line in stream.lines()]).splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["type"] for event in events] == ["ADDED", "BOOKMARK"]
    assert events[1]["object"]["metadata"]["resourceVersion"] == await verbs.revision()


async def test_bookmarks_come_in_quiet_times(verbs: Verbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BOOKMARK_EVERY_S", 0.02)
    stream = await verbs.watch(CONFIG_MAPS, bookmarks=True, revision=await verbs.revision())
    await verbs.create(ANYONE, PODS, pod("p"), "default")
    events = stream.events()
    mark = await anext(events)
    assert (mark.type, mark.object["metadata"]["resourceVersion"]) == ("BOOKMARK", await verbs.revision())
    await events.aclose()  # type: ignore[attr-defined]


async def test_a_watch_too_old_or_of_the_future(verbs: Verbs) -> None:
    await make(verbs, "a")
    await verbs.store.compact(int(await verbs.revision()))
    with pytest.raises(Expired, match="too old resource version: 1"):
        await verbs.watch(CONFIG_MAPS, revision="1")
    with pytest.raises(DeadlineExceeded, match="Too large resource version"):
        await verbs.watch(CONFIG_MAPS, revision="999")


async def test_the_end_of_the_store_is_told(verbs: Verbs) -> None:
    stream = await verbs.watch(CONFIG_MAPS, revision=await verbs.revision())
    reader = asyncio.create_task(take(stream, 1))
    await asyncio.sleep(0)
    await verbs.store.close()
    with pytest.raises(Unavailable):
        await reader


async def test_an_event_is_encoded_once_for_all(verbs: Verbs) -> None:
    streams = [await verbs.watch(CONFIG_MAPS, revision=await verbs.revision()) for _ in range(3)]
    readers = [stream.lines() for stream in streams]
    waiting = [asyncio.ensure_future(anext(reader)) for reader in readers]
    await asyncio.sleep(0)
    await make(verbs, "a")
    lines = await asyncio.gather(*waiting)
    assert lines[0] is lines[1] is lines[2]
    for reader in readers:
        await reader.aclose()  # type: ignore[attr-defined]


async def poured(stream: WatchStream, room: int = 1 << 30) -> tuple[list[bytes], int]:
    """Everything that a watch pours into who has room for `room` bytes before each pause; how often it had to wait."""
    got: list[bytes] = []
    left, waits = room, 0

    def write(data: bytes) -> bool:
        nonlocal left
        assert left > 0, "written to while full"
        got.append(data)
        left -= len(data)
        return left > 0

    async def drained() -> None:
        nonlocal left, waits
        await asyncio.sleep(0.001)
        left, waits = room, waits + 1

    await stream.pour(write, drained)
    return got, waits


@pytest.mark.parametrize("room", [1, 1000, 1 << 30])
async def test_poured_and_read_events_are_the_same(verbs: Verbs, room: int) -> None:
    for name in ("a", "b"):
        await make(verbs, name, app="x")
    ask: dict[str, Any] = {"labels": "app=x", "bookmarks": True, "initial": True, "revision_match": "NotOlderThan"}
    streams = [await verbs.watch(CONFIG_MAPS, **ask, timeout_s=0.3) for _ in range(2)]

    async def read() -> bytes:
        return b"".join([line async for line in streams[0].lines()])

    reading, pouring = asyncio.create_task(read()), asyncio.create_task(poured(streams[1], room))
    for number in range(20):
        await asyncio.sleep(0)
        await make(verbs, f"n{number}", app="x" if number % 3 else "y")
    patch = {"metadata": {"labels": {"app": "y"}}}
    await verbs.patch(ANYONE, CONFIG_MAPS, "a", patch, "default", type="merge")
    want, (got, waits) = await reading, await pouring
    assert b"".join(got) == want
    assert want.count(b'"type":"ADDED"') == 15 and want.count(b'"type":"DELETED"') == 1
    assert want.count(b'"type":"BOOKMARK"') == 2
    assert (waits == 0) == (room == 1 << 30)


async def test_a_poured_watch_tells_how_it_ended(verbs: Verbs) -> None:
    stream = await verbs.watch(CONFIG_MAPS, revision=await verbs.revision())
    pouring = asyncio.create_task(poured(stream))
    await asyncio.sleep(0)
    await verbs.store.close()
    with pytest.raises(Unavailable):
        await pouring


async def test_bookmarks_are_poured_in_quiet_times(verbs: Verbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BOOKMARK_EVERY_S", 0.05)
    stream = await verbs.watch(CONFIG_MAPS, revision=await verbs.revision(), bookmarks=True, timeout_s=0.3)
    got, _ = await poured(stream)
    revisions = [json.loads(line)["object"]["metadata"]["resourceVersion"] for line in b"".join(got).splitlines()]
    assert len(revisions) >= 3 and set(revisions) == {await verbs.revision()}
