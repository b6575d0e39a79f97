"""The small pure parts: names, signals, life cycle, restarts, host files, events, steps, streams."""

from __future__ import annotations

import asyncio
import time

import pytest

from insula.drivers.driver import Channel
from insula.engine import lifecycle
from insula.engine.checks import check_config, networks_of
from insula.engine.contract import Event
from insula.engine.events import EventLog
from insula.engine.hostfiles import hosts_text, resolv_text
from insula.engine.lifecycle import MOVES, Verb, move, state_of
from insula.engine.names import NameTable, check_name, find
from insula.engine.records import Entry, Stage
from insula.engine.restarting import next_delay_s, wants_restart, wants_start_on_boot
from insula.engine.signals import parse_signal
from insula.engine.steps import Step, Undo, names, set_up, tear_down
from insula.engine.streams import Attachments
from insula.errors import Conflict, Expired, Invalid, NotFound, Unavailable
from insula.images.contract import ImageConfig
from insula.model.instance import InstanceConfig, MountConfig, NetworkAttachment, Resources, RestartPolicy


def entry(stage: Stage = Stage.CREATED, **changes) -> Entry:
    return Entry(id="e" * 64, config=InstanceConfig(name="web"), created="2026-01-01T00:00:00Z", stage=stage, **changes)


# --- names


def test_of_two_who_want_a_name_one_gets_it() -> None:
    table = NameTable()
    table.take("web", "1")
    table.take("web", "1")
    with pytest.raises(Conflict) as refused:
        table.take("web", "2")
    assert refused.value.message == (
        'Conflict. The container name "/web" is already in use by container "1". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
    table.free("web", "2")
    assert table.holder("/web") == "1"
    table.free("web", "1")
    table.take("web", "2")


@pytest.mark.parametrize("name", ["a/b", "..", "-x", "", "a b", "a\n", "ü", "x" * 300])
def test_bad_names(name: str) -> None:
    with pytest.raises(Invalid, match=r"only \[a-zA-Z0-9\]"):
        check_name(name)


def test_finding() -> None:
    table = NameTable()
    table.take("abc", "ffff1")
    things = {"ffff1": 1, "ffff2": 2, "abc0": 3}
    assert find(things, table, "abc") == 1  # a name beats a prefix
    assert find(things, table, "/abc") == 1
    assert find(things, table, "ffff2") == 2
    assert find(things, table, "abc0") == 3
    with pytest.raises(Invalid, match="multiple IDs"):
        find(things, table, "fff")
    for unknown in ("zzz", ""):
        with pytest.raises(NotFound, match=f"No such container: {unknown}"):
            find(things, table, unknown)


# --- signals


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("KILL", 9),
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        ("CLD", 17),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "NOPE", "RTMIN+99", "RTMIN+x", "-9"])
def test_bad_signals(text: str) -> None:
    with pytest.raises(Invalid, match="invalid signal"):
        parse_signal(text)


# --- life cycle


def test_every_stage_can_be_left_and_every_move_leads_to_a_stage() -> None:
    assert set(MOVES) == set(Stage)
    assert {target for moves in MOVES.values() for target in moves.values()} <= set(Stage)
    with pytest.raises(Conflict):
        move(Stage.RUNNING, Verb.REMOVE)


@pytest.mark.parametrize(
    ("stage", "changes", "restarting", "name"),
    [
        (Stage.CREATED, {}, False, "created"),
        (Stage.CREATED, {"finished_at": "x"}, False, "exited"),
        (Stage.STARTING, {}, False, "created"),
        (Stage.STARTING, {"started_at": "x"}, True, "restarting"),
        (Stage.RUNNING, {"pid": 7}, False, "running"),
        (Stage.RUNNING, {"paused": True, "pid": 7}, False, "paused"),
        (Stage.ENDING, {}, False, "running"),
        (Stage.EXITED, {}, False, "exited"),
        (Stage.EXITED, {}, True, "restarting"),
        (Stage.REMOVING, {}, False, "removing"),
    ],
)
def test_states(stage, changes, restarting, name) -> None:
    state = state_of(entry(stage, **changes), restarting=restarting)
    assert state.name == name
    assert state.pid == changes.get("pid", 0)


def test_refusals_name_the_way_out() -> None:
    with pytest.raises(Conflict, match='cannot remove container "/web": container is running: stop the container'):
        lifecycle.refuse_remove(entry(Stage.RUNNING), restarting=False)
    with pytest.raises(Conflict, match="must be unpaused first"):
        lifecycle.refuse_remove(entry(Stage.RUNNING, paused=True), restarting=False)
    with pytest.raises(Conflict, match="is not running"):
        lifecycle.refuse_unless_running(entry(Stage.EXITED))
    with pytest.raises(Conflict, match="try unpause instead"):
        lifecycle.refuse_start(entry(Stage.RUNNING, paused=True))
    with pytest.raises(Conflict, match="marked for removal"):
        lifecycle.refuse_start(entry(Stage.REMOVING))


# --- restarts


@pytest.mark.parametrize(
    ("policy", "code", "stopped", "count", "expected"),
    [
        (RestartPolicy(), 1, False, 0, False),
        (RestartPolicy(name="always"), 0, False, 9, True),
        (RestartPolicy(name="always"), 0, True, 0, False),
        (RestartPolicy(name="unless-stopped"), 0, False, 0, True),
        (RestartPolicy(name="unless-stopped"), 0, True, 0, False),
        (RestartPolicy(name="on-failure"), 0, False, 0, False),
        (RestartPolicy(name="on-failure"), 3, False, 50, True),
        (RestartPolicy(name="on-failure", max_retries=2), 3, False, 1, True),
        (RestartPolicy(name="on-failure", max_retries=2), 3, False, 2, False),
    ],
)
def test_restart_policies(policy, code, stopped, count, expected) -> None:
    assert wants_restart(policy, exit_code=code, user_stopped=stopped, restart_count=count) is expected


def test_at_boot_always_forgets_a_stop_and_unless_stopped_does_not() -> None:
    facts = {"exit_code": 0, "user_stopped": True, "restart_count": 0}
    assert wants_start_on_boot(RestartPolicy(name="always"), has_run=True, **facts)
    assert not wants_start_on_boot(RestartPolicy(name="unless-stopped"), has_run=True, **facts)
    assert not wants_start_on_boot(RestartPolicy(name="always"), has_run=False, **facts)


def test_pauses_double_up_to_a_minute_and_a_good_run_resets() -> None:
    delays = [0.0]
    for _ in range(12):
        delays.append(next_delay_s(delays[-1], ran_s=0.1))
    assert delays[1:4] == [0.1, 0.2, 0.4]
    assert delays[-1] == 60.0
    assert next_delay_s(60.0, ran_s=10.0) == 0.1


# --- host files


def test_hosts() -> None:
    text = hosts_text(
        hostname="h",
        domainname="d",
        addresses=["10.0.0.2"],
        extra_hosts=["db:10.1.1.1", "me:host-gateway", "six=[::5]"],
        gateway="10.0.0.1",
    )
    assert text.startswith("127.0.0.1\tlocalhost\n")
    assert text.endswith("10.1.1.1\tdb\n10.0.0.1\tme\n::5\tsix\n10.0.0.2\th.d h\n")


def test_resolv() -> None:
    host = "# c\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch a b\noptions ndots:2\n"
    assert resolv_text(host) == "nameserver 9.9.9.9\nsearch a b\noptions ndots:2\n"
    assert resolv_text(host, keep_local=True).startswith("nameserver 127.0.0.53\nnameserver 9.9.9.9\n")
    assert (
        resolv_text(host, nameservers=["1.1.1.1"], search=["x"], options=["o"])
        == "nameserver 1.1.1.1\nsearch x\noptions o\n"
    )
    assert resolv_text(host, search=["."]) == "nameserver 9.9.9.9\noptions ndots:2\n"
    assert resolv_text("nameserver ::1\n", fallback=["10.0.0.1"]) == "nameserver 10.0.0.1\n"


# --- checks


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (InstanceConfig(name="x", command=("a",), resources=Resources(memory_bytes=1024)), "Minimum memory limit"),
        (InstanceConfig(name="x", command=("a",), stop_signal="NOPE"), "invalid signal"),
        (InstanceConfig(name="x", command=("a",), mounts=(MountConfig(kind="tmpfs", target="a"),)), "must be absolute"),
        (InstanceConfig(name="x", command=("a",), mounts=(MountConfig(kind="tmpfs", target="/"),)), "can't be '/'"),
        (
            InstanceConfig(
                name="x",
                command=("a",),
                mounts=(MountConfig(kind="tmpfs", target="/a"), MountConfig(kind="tmpfs", target="/a/")),
            ),
            "Duplicate mount point: /a",
        ),
        (
            InstanceConfig(name="x", command=("a",), mounts=(MountConfig(kind="bind", target="/a", source="b"),)),
            "must be absolute",
        ),
        (
            InstanceConfig(
                name="x", command=("a",), mounts=(MountConfig(kind="volume", target="/a", source="v", subpath="../b"),)
            ),
            "must stay inside",
        ),
        (
            InstanceConfig(name="x", command=("a",), auto_remove=True, restart=RestartPolicy(name="always")),
            "can't create 'AutoRemove'",
        ),
    ],
)
def test_refused_before_anything_is_made(config, sentence) -> None:
    with pytest.raises((Invalid, Conflict), match=sentence):
        check_config(config, ImageConfig())


def test_segments_in_order() -> None:
    both = InstanceConfig(
        name="x", network_mode="a", networks=(NetworkAttachment(network="b"), NetworkAttachment(network="a"))
    )
    assert networks_of(both) == ["a", "b"]
    assert networks_of(InstanceConfig(name="x")) == ["default"]
    assert networks_of(InstanceConfig(name="x", network_mode="host")) == []
    assert networks_of(InstanceConfig(name="x", network_mode="sandbox:1")) == []


# --- steps


async def test_a_failed_set_up_stops_and_a_tear_down_does_not() -> None:
    seen: list[str] = []

    def step(name: str, fault: Exception | None = None) -> Step[None]:
        async def run(_: None) -> None:
            seen.append(name)
            if fault:
                raise fault

        return Step(name, run)

    plan = ((step("a"), step("b", ValueError("b"))), (step("c"),))
    assert names(plan) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="b"):
        await set_up(plan, None)
    assert seen == ["a", "b"]
    seen.clear()
    with pytest.raises(ValueError, match="b"):
        await tear_down(plan, None, "tearing")
    assert seen == ["a", "b", "c"]
    with pytest.raises(BaseExceptionGroup):
        await tear_down((*plan, (step("d", KeyError("d")),)), None, "tearing")


async def test_undo_runs_backwards_and_to_its_end() -> None:
    seen: list[int] = []

    async def back(number: int) -> None:
        seen.append(number)
        if number == 2:
            raise OSError("no")

    undo = Undo()
    for number in (1, 2, 3):
        undo.push(back, number)
    await undo.run()
    await undo.run()
    assert seen == [3, 2, 1]


# --- events


async def test_past_events_then_live_ones() -> None:
    log = EventLog(history=3, backlog=10)
    for number in range(5):
        log.publish(Event(type="container", action=str(number), id="x"))
    newest = log.last(3)
    assert [event.action for event in newest] == ["2", "3", "4"]
    assert len({event.time_ns for event in newest}) == 3
    listener = log.listen(since_ns=newest[1].time_ns)
    log.publish(Event(type="container", action="live", id="x"))
    got = [(await anext(listener)).action for _ in range(3)]
    assert got == ["3", "4", "live"]
    log.close()
    assert [event async for event in listener] == []
    assert [event async for event in log.listen()] == []


async def test_until_ends_a_stream() -> None:
    log = EventLog(history=3, backlog=10)
    log.publish(Event(type="container", action="a", id="x"))
    got = [event.action async for event in log.listen(since_ns=0, until_ns=time.time_ns() + 20_000_000)]
    assert got == ["a"]


async def test_a_slow_reader_is_dropped_with_an_error() -> None:
    log = EventLog(history=3, backlog=2)
    slow, fast = log.listen(), log.listen()
    for number in range(3):
        log.publish(Event(type="container", action=str(number), id="x"))
        if number < 2:
            await anext(fast)
    assert [(await anext(slow)).action for _ in range(2)] == ["0", "1"]
    with pytest.raises(Expired, match="too slow"):
        await anext(slow)
    assert (await anext(fast)).action == "2"
    await fast.aclose()
    log.close()


# --- attachments


class FakeStreams:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    async def read(self):
        yield Channel.STDOUT, b"hello"

    async def write(self, data: bytes) -> None:
        self.written += data

    async def close_stdin(self) -> None:
        self.written += b"<eof>"

    async def close(self) -> None:
        self.closed = True


async def test_an_attachment_made_early_joins_the_process() -> None:
    attachments, real = Attachments(), FakeStreams()
    pending, left = attachments.wait_for_start(), attachments.wait_for_start()
    await left.close()
    writing = asyncio.create_task(pending.write(b"in"))
    await asyncio.sleep(0)
    connections = []

    async def connect() -> FakeStreams:
        connections.append(real)
        return real

    await attachments.join(connect)
    await writing
    await pending.close_stdin()
    assert [chunk async for chunk in pending.read()] == [(Channel.STDOUT, b"hello")]
    await pending.close()
    await pending.close()
    assert (real.written, real.closed, len(connections)) == (b"in<eof>", True, 1)


async def test_an_attachment_to_nothing_ends() -> None:
    attachments = Attachments()
    pending = attachments.wait_for_start()
    attachments.abandon()
    assert [chunk async for chunk in pending.read()] == []
    with pytest.raises(Unavailable):
        await pending.write(b"x")
    await pending.close()
