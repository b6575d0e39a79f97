"""What every test is held to: no leaked task, file descriptor or child process, no event loop blocked for 100 ms; and, at
the end of the whole run, no mount, interface, nft table, control group or process of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import owned

BLOCKED_LIMIT_S = 0.1
BUSY_LIMIT_S = 2.0
SETTLE_S = 2.0
_blocked: list[str] = []


class _Delay:
    """How long this thread has waited for a CPU (proc_pid_schedstat(5)): a busy machine is not a blocked loop."""

    def __init__(self) -> None:
        self._local = threading.local()

    def seconds(self) -> float:
        if not hasattr(self._local, "file"):
            self._local.file = Path("/proc/thread-self/schedstat")
        try:
            return int(self._local.file.read_bytes().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0


class _Collections:
    """Seconds that this thread has spent collecting garbage: far more than in a daemon where many tests have run."""

    def __init__(self) -> None:
        self._local = threading.local()
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._local.began = time.thread_time()
        else:
            self._local.seconds = self.seconds() + time.thread_time() - self._local.began

    def seconds(self) -> float:
        return getattr(self._local, "seconds", 0.0)


_delay = _Delay()
_collections = _Collections()
_original_run = asyncio.events.Handle._run


def _timed_run(self: asyncio.events.Handle) -> None:
    waited, worked, began = _delay.seconds(), time.thread_time(), time.monotonic()
    collected = _collections.seconds()
    try:
        _original_run(self)
    finally:
        wall = time.monotonic() - began
        if wall > BLOCKED_LIMIT_S:
            worked = time.thread_time() - worked
            slept = wall - worked - (_delay.seconds() - waited)
            worked -= _collections.seconds() - collected
            if worked > BLOCKED_LIMIT_S or slept > _sleep_limit_s():
                _blocked.append(f"{wall * 1000:.0f} ms ({worked * 1000:.0f} ms of work) in {self!r}")


def _sleep_limit_s() -> float:
    """A loop that slept waited for the disk, a lock or the GIL. On a machine with more work than cores the holder of the GIL
    may itself have waited for a core, which no counter of ours shows: only a long sleep is then a fault of the code."""
    return BLOCKED_LIMIT_S if os.getloadavg()[0] < (os.cpu_count() or 1) else BUSY_LIMIT_S


asyncio.events.Handle._run = _timed_run  # type: ignore[method-assign]


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(("socket:", "pipe:", "/")) and not target.startswith(("/dev/", "/proc/")):
            found[int(name)] = target
    return found


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaks a descriptor or a child, or that blocked its event loop."""
    if request.node.get_closest_marker("leaks"):
        yield
        return
    _blocked.clear()
    descriptors, children = _descriptors(), _children()
    yield
    deadline = time.monotonic() + SETTLE_S
    while True:
        leaked = {fd: what for fd, what in _descriptors().items() if descriptors.get(fd) != what}
        orphans = _children() - children
        if not (leaked or orphans) or time.monotonic() > deadline:
            break
        gc.collect()
        time.sleep(0.02)
    assert not leaked, f"leaked file descriptors: {leaked}"
    assert not orphans, f"leaked child processes: {orphans}"
    if not request.node.get_closest_marker("may_block"):
        assert not _blocked, f"the event loop was blocked: {_blocked}"


@pytest.fixture(autouse=True)
async def leaves_no_task(request: pytest.FixtureRequest) -> object:
    """Fail an asynchronous test that leaves tasks running."""
    yield
    if not asyncio.iscoroutinefunction(getattr(request.node, "obj", None)):
        return
    current = asyncio.current_task()
    for _ in range(100):
        left = [task for task in asyncio.all_tasks() if task is not current and not task.done() and _ours(task)]
        if not left:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"leaked tasks: {left}")


def _ours(task: asyncio.Task[object]) -> bool:
    return "pytest" not in repr(task.get_coro()) and "fixture" not in repr(task.get_coro())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaks: this test ends processes in a way that leaks on purpose")
    config.addinivalue_line("markers", "may_block: measures or provokes blocking on purpose")
    if not hasattr(config, "workerinput"):
        owned.begin()
    owned.follow()


def pytest_unconfigure(config: pytest.Config) -> None:
    """A run that never began has no end of a session."""
    if not hasattr(config, "workerinput"):
        owned.end()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Only the process that started the run judges the kernel, when the workers have ended."""
    if hasattr(session.config, "workerinput"):
        return
    basetemp = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while (left := owned.left(basetemp)) and time.monotonic() < deadline:
        time.sleep(0.2)
    owned.end()
    if left:
        session.config.get_terminal_writer().line(f"\nleft in the kernel by this run: {left}", red=True)
        if os.environ.get("INSULA_STRICT") == "1":
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
