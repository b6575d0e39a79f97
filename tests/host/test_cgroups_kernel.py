"""Control groups against the kernel, whichever version it has here: limits, counters, freezing, killing, removing."""

from __future__ import annotations

import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from insula.drivers.vm import envelope
from insula.host import cgroups
from insula.host.cgroups import Group
from insula.host.cgroupstats import counters
from insula.model.instance import Resources

pytestmark = pytest.mark.root
MIB = 1 << 20
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def group() -> Iterator[Group]:
    layout, parent = cgroups.detect(), f"insula-test-{secrets.token_hex(4)}"
    yield Group(layout=layout, path=f"{parent}/one")
    cgroups.remove(Group(layout=layout, path=parent))


@pytest.fixture
def start(group: Group) -> Iterator[Start]:
    """Start a shell script in the group: it begins when it is there."""
    made: list[subprocess.Popen[bytes]] = []

    def begin(script: str, resources: Resources | None = None) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(["sh", "-c", f"read go; {script}"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        made.append(child)
        envelope.enter(group, child.pid, resources or Resources())
        assert child.stdin
        child.stdin.write(b"go\n")
        child.stdin.close()
        return child

    yield begin
    for child in made:
        child.kill()
        child.wait()


def reached(condition: Callable[[], bool], deadline_s: float = 20) -> bool:
    limit = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def test_limits_are_set_and_changed(group: Group, start: Start) -> None:
    child = start("exec sleep 100", Resources(memory_bytes=64 * MIB, pids_limit=50, cpu_shares=512))
    assert cgroups.pids(group) == [child.pid]
    found = counters(group)
    assert (found.memory_limit_bytes, found.pids_limit, found.pids) == (64 * MIB, 50, 1)
    envelope.limit(group, Resources(memory_bytes=128 * MIB, memory_swap_bytes=128 * MIB, pids_limit=-1))
    found = counters(group)
    assert (found.memory_limit_bytes, found.pids_limit) == (128 * MIB, 0)


def test_cpu_time_is_limited_and_counted(group: Group, start: Start) -> None:
    start("while :; do :; done", Resources(cpu_quota_us=20_000, cpu_period_us=100_000))
    before, began = counters(group), time.monotonic()
    assert reached(lambda: counters(group).throttled_periods >= before.throttled_periods + 5)
    used = (counters(group).cpu_total_ns - before.cpu_total_ns) / 1e9
    assert 0 < used < 0.5 * (time.monotonic() - began) + 0.1


def test_processes_are_limited(group: Group, start: Start) -> None:
    child = start("for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; exec sleep 100", Resources(pids_limit=5))
    assert child.wait(20) == 2
    assert len(cgroups.pids(group)) <= 5


def test_too_much_memory_ends_it_and_is_told(group: Group, start: Start) -> None:
    child = start("exec tail /dev/zero", Resources(memory_bytes=16 * MIB, memory_swap_bytes=16 * MIB))
    assert child.wait(60) == -signal.SIGKILL
    assert cgroups.oom_kills(group) == 1


def test_a_freeze_stops_time(group: Group, start: Start) -> None:
    start("while :; do :; done")
    assert not cgroups.frozen(group)
    cgroups.freeze(group, True)
    assert cgroups.frozen(group)
    before = 0

    def stands() -> bool:  # the last slice of time may be counted a moment after the freeze
        nonlocal before
        before = counters(group).cpu_total_ns
        time.sleep(0.1)
        return counters(group).cpu_total_ns == before

    assert reached(stands)
    cgroups.freeze(group, False)
    assert not cgroups.frozen(group)
    assert reached(lambda: counters(group).cpu_total_ns > before)


@pytest.mark.parametrize("frozen", [False, True])
def test_removing_ends_what_runs_in_it_and_below(group: Group, start: Start, frozen: bool) -> None:
    child = start("trap '' TERM; sleep 100 & wait; sleep 100")
    assert reached(lambda: len(cgroups.pids(group)) == 2)
    for folder in group.directories():
        if folder.exists():
            (folder / "below").mkdir()
    if frozen:
        cgroups.freeze(group, True)
    cgroups.remove(group)
    assert child.wait(5) == -signal.SIGKILL
    assert not any(folder.exists() for folder in group.directories())
    cgroups.remove(group)
