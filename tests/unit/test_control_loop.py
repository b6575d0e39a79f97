"""The reconcile loop on a real cluster tower in memory: keys, faults, types that come and go; events; expectations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from contract.verbs_support import ANYONE, CONFIG_MAPS, config_map, make_verbs
from insula.client.local import LocalClient
from insula.control.controller import DONE, Context, Controller, Result, TypeInfo, Watch
from insula.control.events import BURST, EVENTS, Recorder
from insula.control.expectations import Expectations
from insula.control.loop import Manager
from insula.control.shared import SharedCaches
from insula.errors import Invalid, StaleRevision
from insula.model.resource import Key, Ref
from insula.tasks import Tasks
from insula.verbs.verbs import Verbs

SECRETS = Ref("", "v1", "secrets")


async def soon(holds: object, timeout_s: float = 5.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # type: ignore[operator]
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(verbs: Verbs, *controllers: Controller, types: Sequence[TypeInfo] = ()) -> AsyncIterator[Manager]:
    """A manager with these controllers."""
    async with Tasks("test") as tasks:
        client = LocalClient(verbs)

        async def all_types() -> Sequence[TypeInfo]:
            return types

        caches = SharedCaches(client, tasks)
        manager = Manager(Context(client=client, caches=caches, types=all_types), caches, controllers)
        try:
            await manager.start()
            yield manager
        finally:
            await manager.close()


def controller(reconcile: object, **fields: object) -> Controller:
    """A controller of ConfigMaps."""
    whole = {"name": "test", "summary": "", "watches": (Watch(ref=CONFIG_MAPS),), "reconcile": reconcile, **fields}
    return Controller(**whole)  # type: ignore[arg-type]


async def test_every_object_is_reconciled_at_the_start_and_after_each_change() -> None:
    verbs, seen = await make_verbs(), []

    async def reconcile(context: Context, key: Key) -> Result:
        obj = context.caches.get(CONFIG_MAPS, key.name, key.namespace)
        seen.append((key.name, (obj or {}).get("data")))
        return DONE

    await verbs.create(ANYONE, CONFIG_MAPS, config_map("old", a="1"), "default")
    async with running(verbs, controller(reconcile)):
        await soon(lambda: seen == [("old", {"a": "1"})])
        await verbs.create(ANYONE, CONFIG_MAPS, config_map("new"), "default")
        await soon(lambda: seen[1:] == [("new", {})])
        await verbs.delete(ANYONE, CONFIG_MAPS, "new", "default")
        await soon(lambda: len(seen) == 3)


async def test_one_key_is_never_worked_twice_at_once_and_a_wake_meanwhile_is_not_lost() -> None:
    verbs, now, most, passes = await make_verbs(), 0, 0, 0
    release = asyncio.Event()

    async def reconcile(_: Context, __: Key) -> Result:
        nonlocal now, most, passes
        now, passes = now + 1, passes + 1
        most = max(most, now)
        await release.wait()
        now -= 1
        return DONE

    await verbs.create(ANYONE, CONFIG_MAPS, config_map("one"), "default")
    async with running(verbs, controller(reconcile, workers=4)):
        await soon(lambda: passes == 1)
        for number in range(3):
            await verbs.patch(ANYONE, CONFIG_MAPS, "one", {"data": {"n": str(number)}}, "default", type="merge")
        await asyncio.sleep(0.05)
        assert (most, passes) == (1, 1)
        release.set()
        await soon(lambda: passes == 2)
        await asyncio.sleep(0.05)
        assert (most, passes) == (1, 2)


@pytest.mark.parametrize(
    "fault", [Invalid("no"), StaleRevision("raced"), RuntimeError("ours"), ExceptionGroup("g", [StaleRevision("r")])]
)
async def test_a_fault_in_one_key_stops_no_other_and_is_tried_again(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    verbs, tries, others = await make_verbs(), 0, []

    async def reconcile(_: Context, key: Key) -> Result:
        nonlocal tries
        if key.name != "bad":
            others.append(key.name)
            return DONE
        tries += 1
        if tries < 3:
            raise fault
        return DONE

    for name in ("bad", "good", "fine"):
        await verbs.create(ANYONE, CONFIG_MAPS, config_map(name), "default")
    with caplog.at_level(logging.WARNING):
        async with running(verbs, controller(reconcile, workers=1)):
            await soon(lambda: tries == 3 and sorted(others) == ["fine", "good"])
    levels = [record.levelname for record in caplog.records if record.name == "insula.control.loop"]
    ordinary = isinstance(fault, StaleRevision | ExceptionGroup)
    assert levels == ([] if ordinary else ["ERROR" if isinstance(fault, RuntimeError) else "WARNING"] * 2)


async def test_looks_again_when_it_said_so() -> None:
    verbs, passes = await make_verbs(), 0

    async def reconcile(_: Context, __: Key) -> Result:
        nonlocal passes
        passes += 1
        return Result(0.02 if passes < 4 else None)

    await verbs.create(ANYONE, CONFIG_MAPS, config_map("one"), "default")
    async with running(verbs, controller(reconcile)):
        await soon(lambda: passes == 4)
        await asyncio.sleep(0.1)
    assert passes == 4


async def test_a_clock_wakes_a_controller_without_watches() -> None:
    verbs, keys = await make_verbs(), []

    async def reconcile(_: Context, key: str) -> Result:
        keys.append(key)
        return DONE

    async with running(verbs, controller(reconcile, watches=(), every_s=0.02)):
        await soon(lambda: len(keys) >= 3)
    assert set(keys) == {""}


async def test_changes_that_do_not_matter_wake_nobody() -> None:
    verbs, seen = await make_verbs(), []

    async def reconcile(_: Context, key: Key) -> Result:
        seen.append(key.name)
        return DONE

    watch = Watch(ref=CONFIG_MAPS, when=lambda old, new: old is None)
    async with running(verbs, controller(reconcile, watches=(watch,))):
        await verbs.create(ANYONE, CONFIG_MAPS, config_map("one"), "default")
        await soon(lambda: seen == ["one"])
        await verbs.patch(ANYONE, CONFIG_MAPS, "one", {"data": {"a": "1"}}, "default", type="merge")
        await asyncio.sleep(0.05)
    assert seen == ["one"]


async def test_types_that_come_are_looked_at_and_types_that_go_are_dropped() -> None:
    verbs, seen = await make_verbs(), []
    types = [TypeInfo(CONFIG_MAPS, "ConfigMap", True)]

    async def reconcile(_: Context, key: Key) -> Result:
        seen.append(key.name)
        return DONE

    watch_all = controller(reconcile, watches=(), every_type=lambda info: Watch(ref=info.ref))
    await verbs.create(ANYONE, SECRETS, {"metadata": {"name": "s"}}, "default")
    async with running(verbs, watch_all, types=types) as manager:
        await verbs.create(ANYONE, CONFIG_MAPS, config_map("c"), "default")
        await soon(lambda: seen == ["c"])
        types[:] = [TypeInfo(SECRETS, "Secret", True)]
        manager.types_changed()
        await soon(lambda: "s" in seen)
        await verbs.create(ANYONE, CONFIG_MAPS, config_map("later"), "default")
        await asyncio.sleep(0.05)
    assert "later" not in seen


async def test_a_listener_that_fails_ends_neither_the_cache_nor_other_listeners() -> None:
    verbs, seen = await make_verbs(), []
    async with Tasks("test") as tasks:
        caches = SharedCaches(LocalClient(verbs), tasks)

        def broken(_old: object, _new: object) -> None:
            raise RuntimeError("listener")

        caches.subscribe(CONFIG_MAPS, broken)
        caches.subscribe(CONFIG_MAPS, lambda _old, new: seen.append(new))
        await caches.start()
        for name in ("a", "b"):
            await verbs.create(ANYONE, CONFIG_MAPS, config_map(name), "default")
        await soon(lambda: len(seen) == 2)
        assert caches.revision(CONFIG_MAPS) >= int(seen[1]["metadata"]["resourceVersion"])


# --- expectations -----------------------------------------------------------------------------------------------


def obj(uid: str, revision: str = "1", **meta: str) -> dict[str, dict[str, str]]:
    """What expectations read of an object."""
    return {"metadata": {"uid": uid, "resourceVersion": revision, **meta}}


def test_creations_are_met_when_the_cache_has_come_that_far() -> None:
    expected = Expectations()
    assert expected.met("o", [], 5)
    expected.wrote("o", obj("a", "7"))
    expected.wrote("o", obj("b", "9"))
    assert not expected.met("o", [obj("a", "7")], 8)
    assert expected.met("other", [], 8)
    assert expected.met("o", [], 9), "also when the object has gone again meanwhile"
    assert expected.met("o", [], 1), "what was met is forgotten"


def test_deletions_are_met_when_the_cache_shows_them_gone_or_going() -> None:
    expected = Expectations()
    expected.deleted("o", "a")
    expected.deleted("o", "b")
    assert not expected.met("o", [obj("a"), obj("b")], 1)
    assert not expected.met("o", [obj("b")], 1)
    assert expected.met("o", [obj("b", deletionTimestamp="now")], 1)
    expected.deleted("o", "c")
    expected.failed("o", "c")
    assert expected.met("o", [obj("c")], 1)


# --- events -----------------------------------------------------------------------------------------------------


async def recorded(verbs: Verbs) -> list[tuple[str, int]]:
    """(message, count) of all events."""
    return sorted((event["message"], event["count"]) for event in (await verbs.list(EVENTS)).items)


async def test_the_same_sentence_is_counted_and_others_stand_apart() -> None:
    verbs = await make_verbs()
    about = (await verbs.create(ANYONE, CONFIG_MAPS, config_map("c"), "default")).object
    recorder = Recorder(LocalClient(verbs), "tester")
    for _ in range(3):
        recorder.record(about, "Crashed", "it crashed")
    recorder.record(about, "Crashed", "it crashed", "Warning")
    recorder.record(about, "Started", "it started")
    await recorder.flush()
    await recorder.close()
    assert await recorded(verbs) == [("it crashed", 1), ("it crashed", 3), ("it started", 1)]


async def test_an_object_that_has_much_to_say_is_cut_short() -> None:
    verbs = await make_verbs()
    about = (await verbs.create(ANYONE, CONFIG_MAPS, config_map("c"), "default")).object
    recorder = Recorder(LocalClient(verbs), "tester")
    for number in range(100):
        recorder.record(about, "Much", f"sentence {number}")
    await recorder.flush()
    await recorder.close()
    assert len(await recorded(verbs)) == int(BURST)


async def test_an_event_that_was_cleared_away_is_told_anew_and_faults_are_survived() -> None:
    verbs = await make_verbs()
    about = (await verbs.create(ANYONE, CONFIG_MAPS, config_map("c"), "default")).object
    recorder = Recorder(LocalClient(verbs), "tester")
    recorder.record(about, "Once", "said")
    await recorder.flush()
    for event in (await verbs.list(EVENTS)).items:
        await verbs.delete(ANYONE, EVENTS, event["metadata"]["name"], "default")
    nowhere = {**about, "metadata": {**about["metadata"], "namespace": "nosuch", "uid": "x"}}
    recorder.record(nowhere, "Lost", "said into the void")
    recorder.record(about, "Once", "said")
    await recorder.flush()
    await recorder.close()
    assert ("said", 1) in await recorded(verbs)
