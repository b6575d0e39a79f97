"""Every store is held to the contract of `store/contract.py`: the same tests for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from insula.errors import AlreadyExists, Expired, Invalid, NotFound, StaleRevision, Unavailable
from insula.store.contract import Change, Paused, Record, Store
from insula.store.memory import MemoryStore
from insula.store.sqlite import SqliteStore


@pytest.fixture(params=["memory", "sqlite", "sqlite with a ring of two"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    keep = 2 if "ring" in request.param else 1000
    made: Store = MemoryStore() if request.param == "memory" else await SqliteStore.open(tmp_path / "s.db", keep=keep)
    yield made
    await made.close()


async def collect(watch: AsyncIterator[Change], count: int) -> list[Change]:
    found = []
    async with asyncio.timeout(5):
        while len(found) < count:
            found.append(await anext(watch))
    return found


async def test_a_write_gets_the_next_revision(store: Store) -> None:
    assert await store.revision() == 0
    first = await store.create("pods/a/x", b"1")
    second = await store.create("pods/a/y", b"2")
    assert (first.revision, second.revision) == (1, 2)
    changed = await store.update("pods/a/x", b"3", revision=1)
    assert changed == Record("pods/a/x", b"3", 1, 3)
    assert await store.get("pods/a/x") == changed
    gone = await store.delete("pods/a/x", revision=3)
    assert gone == Record("pods/a/x", b"3", 1, 4)
    assert await store.revision() == 4


async def test_refusals(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.get("pods/a/x")
    with pytest.raises(NotFound):
        await store.update("pods/a/x", b"1", revision=1)
    with pytest.raises(NotFound):
        await store.delete("pods/a/x")
    await store.create("pods/a/x", b"1")
    with pytest.raises(AlreadyExists):
        await store.create("pods/a/x", b"1")
    with pytest.raises(StaleRevision):
        await store.update("pods/a/x", b"2", revision=7)
    with pytest.raises(StaleRevision):
        await store.delete("pods/a/x", revision=7)
    assert await store.revision() == 1


async def test_a_recreated_key_is_a_new_one(store: Store) -> None:
    await store.create("a/x", b"1")
    await store.delete("a/x")
    again = await store.create("a/x", b"2")
    assert (again.created, again.revision) == (3, 3)


async def test_two_creations_at_once_have_one_winner(store: Store) -> None:
    outcomes = await asyncio.gather(*(store.create("a/x", b"%d" % n) for n in range(20)), return_exceptions=True)
    assert sum(isinstance(one, Record) for one in outcomes) == 1
    assert sum(isinstance(one, AlreadyExists) for one in outcomes) == 19


async def test_two_updates_of_one_revision_have_one_winner(store: Store) -> None:
    base = await store.create("a/x", b"0")
    outcomes = await asyncio.gather(
        *(store.update("a/x", b"%d" % n, revision=base.revision) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(one, Record) for one in outcomes) == 1
    assert sum(isinstance(one, StaleRevision) for one in outcomes) == 19


async def test_who_loses_a_race_can_read_what_won_it(store: Store) -> None:
    first = await store.create("pods/a/x", b"1")
    won = asyncio.create_task(store.update("pods/a/x", b"2", revision=first.revision))
    await asyncio.sleep(0)
    with pytest.raises(StaleRevision):
        await store.update("pods/a/x", b"3", revision=first.revision)
    assert await store.get("pods/a/x") == await won


async def test_listing_in_order_and_in_pages(store: Store) -> None:
    for name in ("b/2", "a/1", "a.x/9", "a/3", "a/2"):
        await store.create(name, name.encode())
    page = await store.list("a/")
    assert [one.key for one in page.records] == ["a/1", "a/2", "a/3"]
    assert (page.revision, page.more, page.remaining) == (5, False, 0)
    first = await store.list("a/", limit=2)
    assert ([one.key for one in first.records], first.more, first.remaining) == (["a/1", "a/2"], True, 1)
    rest = await store.list("a/", limit=2, after="a/2")
    assert ([one.key for one in rest.records], rest.more) == (["a/3"], False)
    assert [one.key for one in (await store.list("")).records] == ["a.x/9", "a/1", "a/2", "a/3", "b/2"]


async def test_listing_of_the_past(store: Store) -> None:
    await store.create("a/1", b"1")
    await store.create("a/2", b"1")
    await store.update("a/1", b"2", revision=1)
    await store.delete("a/2")
    await store.create("a/3", b"1")
    values = {at: {one.key: one.value for one in (await store.list("a/", revision=at)).records} for at in range(1, 6)}
    assert values == {
        1: {"a/1": b"1"},
        2: {"a/1": b"1", "a/2": b"1"},
        3: {"a/1": b"2", "a/2": b"1"},
        4: {"a/1": b"2"},
        5: {"a/1": b"2", "a/3": b"1"},
    }
    page = await store.list("a/", revision=2, limit=1)
    assert ([one.key for one in page.records], page.revision, page.remaining) == (["a/1"], 2, 1)
    with pytest.raises(Invalid):
        await store.list("a/", revision=6)


async def test_a_watch_tells_every_change_once_and_in_order(store: Store) -> None:
    watch = store.watch("a/")
    created = await store.create("a/1", b"1")
    await store.create("b/1", b"1")
    updated = await store.update("a/1", b"2", revision=1)
    deleted = await store.delete("a/1")
    assert await collect(watch, 3) == [
        Change("created", 1, created),
        Change("updated", 3, updated, created),
        Change("deleted", 4, deleted, updated),
    ]
    await watch.aclose()


async def test_a_watch_from_the_past_has_no_gap(store: Store) -> None:
    for number in range(10):
        await store.create(f"a/{number}", b"")
    watch = store.watch("a/", after=4)
    await store.create("a/last", b"")
    assert [change.revision for change in await collect(watch, 7)] == [5, 6, 7, 8, 9, 10, 11]
    await watch.aclose()


async def test_a_batch_is_all_that_came_or_progress(store: Store) -> None:
    watch = store.watch("a/")
    await store.create("a/1", b"")
    await store.create("a/2", b"")
    assert [change.revision for change in await watch.batch()] == [1, 2]
    await store.create("b/1", b"")
    assert await watch.batch(0.01) == [Change("progress", 3)]
    await watch.aclose()
    assert await watch.batch() == []


async def test_changes_are_handed_over_without_a_gap(store: Store) -> None:
    for number in range(6):
        await store.create(f"a/{number}", b"")
    watch, seen = store.watch("a/", after=2), list[int]()

    def take(changes: list[Change]) -> bool:
        seen.extend(change.revision for change in changes)
        return True

    handing = asyncio.create_task(watch.hand(take))
    for number in range(6, 10):
        await store.create(f"a/{number}", b"")
        await store.create(f"b/{number}", b"")
    while len(seen) < 8:
        await asyncio.sleep(0)
    assert seen == [3, 4, 5, 6, 7, 9, 11, 13]
    await watch.aclose()
    assert await handing == Paused("closed", 14)


async def test_a_hand_over_ends_in_time(store: Store) -> None:
    watch = store.watch("a/")
    await store.create("b/1", b"")
    assert await watch.hand(lambda _: True, 0.01) == Paused("time", 1)
    await store.create("a/1", b"")
    taken: list[Change] = []
    assert await watch.hand(lambda changes: bool(taken.extend(changes)) or True, 0.01) == Paused("time", 2)
    assert [change.revision for change in taken] == [2]
    await watch.aclose()


async def test_who_is_full_is_not_handed_more_until_he_asks(store: Store) -> None:
    watch, seen = store.watch("a/"), list[int]()

    def take(changes: list[Change]) -> bool:
        seen.extend(change.revision for change in changes)
        return False

    await store.create("a/1", b"")
    assert await watch.hand(take) == Paused("full", 1)
    handing = asyncio.create_task(watch.hand(take))
    await asyncio.sleep(0)
    await store.create("a/2", b"")
    await store.create("a/3", b"")
    await store.create("a/4", b"")
    assert (await handing).reason == "full"
    assert seen[:2] == [1, 2]  # the rest came with it or waits
    while len(seen) < 4:
        await watch.hand(take)
    assert seen == [1, 2, 3, 4]
    await watch.aclose()


async def test_a_fault_of_who_takes_ends_only_his_watch(store: Store) -> None:
    bad, good, seen = store.watch("a/"), store.watch("a/"), list[int]()

    def fails(_: list[Change]) -> bool:
        raise ZeroDivisionError

    def takes(changes: list[Change]) -> bool:
        seen.extend(change.revision for change in changes)
        return True

    both = [asyncio.create_task(bad.hand(fails)), asyncio.create_task(good.hand(takes))]
    await asyncio.sleep(0)
    await store.create("a/1", b"")
    with pytest.raises(ZeroDivisionError):
        await both[0]
    await store.create("a/2", b"")
    while len(seen) < 2:
        await asyncio.sleep(0)
    await good.aclose()
    await both[1]


async def test_many_are_handed_one_change(store: Store) -> None:
    watches, seen = [store.watch("a/") for _ in range(500)], list[int]()

    def take(changes: list[Change]) -> bool:
        seen.extend(change.revision for change in changes)
        return True

    handing = [asyncio.create_task(watch.hand(take)) for watch in watches]
    await asyncio.sleep(0)
    for number in range(3):
        await store.create(f"a/{number}", b"")
    while len(seen) < 1500:
        await asyncio.sleep(0)
    assert [seen.count(revision) for revision in (1, 2, 3)] == [500, 500, 500]
    await store.close()
    assert all(isinstance(end, Unavailable) for end in await asyncio.gather(*handing, return_exceptions=True))


async def test_compaction_forgets_the_past_only(store: Store) -> None:
    await store.create("a/1", b"1")
    await store.update("a/1", b"2", revision=1)
    await store.create("a/2", b"1")
    await store.delete("a/2")
    await store.compact(3)
    with pytest.raises(Expired):
        await store.list("a/", revision=2)
    with pytest.raises(Expired):
        store.watch("a/", after=2)
    assert [one.key for one in (await store.list("a/", revision=3)).records] == ["a/1", "a/2"]
    watch = store.watch("a/", after=3)
    (change,) = await collect(watch, 1)
    assert (change.type, change.revision, change.previous) == ("deleted", 4, Record("a/2", b"1", 3, 3))
    await watch.aclose()
    await store.compact(99)
    assert (await store.get("a/1")).value == b"2"
    assert await store.revision() == 4


async def test_closing_a_watch_wakes_its_reader(store: Store) -> None:
    watch = store.watch("a/")
    reader = asyncio.create_task(collect(watch, 1))
    await asyncio.sleep(0)
    await watch.aclose()
    with pytest.raises((StopAsyncIteration, RuntimeError)):
        await reader


async def test_closing_the_store_ends_watches(store: Store) -> None:
    watch = store.watch("a/")
    await store.close()
    with pytest.raises(Unavailable):
        await watch.batch()
    with pytest.raises(Unavailable):
        await store.get("a/1")
    with pytest.raises(Unavailable):
        store.watch("a/")


@pytest.mark.parametrize("make", ["memory", "sqlite"])
async def test_a_slow_reader_is_dropped(make: str, tmp_path: Path) -> None:
    store = MemoryStore(backlog=5) if make == "memory" else await SqliteStore.open(tmp_path / "s.db", backlog=5)
    watch = store.watch("a/")
    for number in range(10):
        await store.create(f"a/{number}", b"")
    with pytest.raises(Expired):
        await watch.batch()
    other = store.watch("a/")
    await other.hand(lambda _: False, 0.001)
    for number in range(10):
        await store.update(f"a/{number}", b"", revision=number + 1)
    with pytest.raises(Expired):
        await other.hand(lambda _: True)
    await store.close()


Step = tuple[str, str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "compact"]), st.sampled_from("abcd"), st.integers(0, 255)), max_size=40
)
Maker = Callable[[], Awaitable[Store]]


async def _play(store: Store, steps: list[Step]) -> None:
    """A model beside the store: every state that was, by revision."""
    states: list[dict[str, bytes]] = [{}]
    floor = 0
    watch = store.watch("k/")
    for action, name, number in steps:
        key, now = f"k/{name}", dict(states[-1])
        if action == "compact":
            floor = max(floor, number % len(states))
            await store.compact(floor)
            continue
        if action == "put":
            value = b"%d" % number
            await (
                store.update(key, value, revision=(await store.get(key)).revision)
                if key in now
                else store.create(key, value)
            )
            now[key] = value
        elif key in now:
            await store.delete(key)
            del now[key]
        else:
            continue
        states.append(now)
    for revision, state in enumerate(states):
        if revision < floor:
            with pytest.raises(Expired):
                await store.list("k/", revision=revision)
        else:
            page = await store.list("k/", revision=revision)
            assert {one.key: one.value for one in page.records} == state
    await _follow(watch, states)


async def _follow(watch: AsyncIterator[Change], states: list[dict[str, bytes]]) -> None:
    followed: dict[str, bytes] = {}
    for change in await collect(watch, len(states) - 1):
        assert change.record is not None
        assert (change.previous.value if change.previous else None) == followed.get(change.record.key)
        if change.type == "deleted":
            del followed[change.record.key]
        else:
            followed[change.record.key] = change.record.value
        assert followed == states[change.revision]
    await watch.aclose()  # type: ignore[attr-defined]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_any_history_memory(steps: list[Step]) -> None:
    store = MemoryStore()
    await _play(store, steps)
    await store.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_any_history_sqlite(steps: list[Step], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("store") / "store.db"
    store = await SqliteStore.open(path, keep=5)
    await _play(store, steps)
    before = await store.list("")
    oldest = store._history.feed.oldest
    await store.close()
    again = await SqliteStore.open(path)
    assert await again.list("") == before
    watch = again.watch("k/", after=oldest)
    if before.revision > oldest:
        assert [one.revision for one in await collect(watch, before.revision - oldest)] == list(
            range(oldest + 1, before.revision + 1)
        )
    await watch.aclose()
    await again.close()
