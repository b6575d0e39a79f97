"""kill -9 at every step of create, start, stop and remove. Afterwards nothing acknowledged is lost and nothing is leaked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from host.engine_support import Home, config, direct_machine, home, opened, until
from host.vm_support import demo_machine
from insula import clock
from insula.engine import sandboxes
from insula.engine.ending import END, FORGET, REMOVE
from insula.engine.node import NodeEngine
from insula.engine.preparing import PREPARE
from insula.engine.starting import START
from insula.engine.steps import names
from insula.errors import HostFault, NotFound
from insula.host import mounts
from insula.model.instance import NetworkAttachment

pytestmark = [pytest.mark.root, pytest.mark.may_block]

CHILD = Path(__file__).with_name("engine_crash_child.py")
TESTS = CHILD.parents[1]


def child(scenario: str, place: Home, *more: str, crash_at: str = "") -> subprocess.Popen[str]:
    paths = f"{TESTS.parent / 'src'}:{TESTS}"
    return subprocess.Popen(
        [sys.executable, str(CHILD), scenario, str(place.folder), *more],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **({"INSULA_CRASH_AT": crash_at} if crash_at else {})},
    )


def crashed(scenario: str, place: Home, crash_at: str, *more: str) -> list[str]:
    """What was acknowledged before the process killed itself there."""
    with child(scenario, place, *more, crash_at=crash_at) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"the step {crash_at} was never reached"
    return out.split()


@pytest.fixture
async def place():
    with home() as made:
        yield made
        traces = made.traces()
        if traces:  # a failed test leaves the machine clean all the same
            async with opened(made):
                pass
        assert traces == {}


async def state_of(engine: NodeEngine, name: str) -> str:
    try:
        return (await engine.get(name)).state.name
    except NotFound:
        return "gone"


LIFE = [name for plan in (PREPARE, START, END, REMOVE, FORGET) for name in names(plan)]


@pytest.mark.parametrize("step", [*LIFE, *(f"{name}:before" for name in names(START))])
async def test_a_life_cut_short(place: Home, step: str) -> None:
    said = crashed("life", place, step)
    async with opened(place) as engine:
        state = await state_of(engine, "web")
        if "stopped" in said:
            assert state in ("exited", "gone")
        elif "started" in said:  # the stop was asked for: recovery carries it out
            state = (await until(engine, "web", "exited")).state.name
            assert (await engine.get("web")).state.exit_code == 6
        elif "created" in said:
            assert state in ("created", "running")
        else:
            assert state in ("gone", "created")
        if state == "gone":
            assert await engine.volumes.list() == []
            await engine.create(config("true", name="web"))
        else:
            assert (await engine.start("web")).state.name == "running"
            assert (await engine.get("web")).published or state == "running"
        await engine.remove("web", force=True, volumes=True)
        assert await engine.volumes.list() == []
        assert await engine.list() == []


@pytest.mark.parametrize("step", ["start.run", "start.running", *names(REMOVE), *names(FORGET)])
async def test_a_run_that_leaves_nothing_leaves_nothing(place: Home, step: str) -> None:
    crashed("short", place, step)
    async with opened(place) as engine:
        if step.startswith("start."):  # it may still be ending
            async with asyncio.timeout(15):
                while await engine.list():
                    await asyncio.sleep(0.02)
        assert await engine.list() == []
        assert list(place.paths.instances.iterdir()) == []


@pytest.mark.parametrize("step", [*names(sandboxes.MAKE), *names(sandboxes.REMOVE)])
async def test_a_sandbox_cut_short(place: Home, step: str) -> None:
    said = crashed("sandbox", place, step)
    async with opened(place) as engine:
        ids = [box.config.id for box in await engine.list_sandboxes()]
        assert ids == (["pod"] if step == "sandbox.ready" else [])
        assert ("made" in said) == step.startswith("sandbox.drop")
        from insula.engine.contract import SandboxConfig

        await engine.make_sandbox(SandboxConfig(id="pod"))


MOVES = [f"connect.{part}" for part in ("interface", "names", "saved")] + [
    f"disconnect.{part}" for part in ("saved", "interface", "names")
]


@pytest.mark.parametrize("step", MOVES)
async def test_a_connection_cut_short(place: Home, step: str) -> None:
    """It is whole or it is not there: in the kernel, in the names, and after the next start."""
    said = crashed("moving", place, step)
    on_both = step == "connect.saved"
    assert ("connected" in said) == step.startswith("disconnect")
    async with opened(place) as engine:
        web = await engine.get("web")
        extra = await engine.networks.get("extra")
        assert [each.network == extra.id for each in web.endpoints] == [False, True][: 1 + on_both]
        links = await asyncio.to_thread(lambda: Path(f"/proc/{web.state.pid}/net/dev").read_text())
        assert ("eth1:" in links) is on_both
        hosts = await asyncio.to_thread((Path(web.folder) / "hosts").read_text)
        assert hosts.endswith("".join(f"{each.address}\t{web.id[:12]}\n" for each in web.endpoints))
        if on_both:
            await engine.disconnect("web", "extra")
        else:
            await engine.connect("web", NetworkAttachment(network="extra"))
        again = await engine.restart("web", timeout_s=0)
        assert len(again.endpoints) == (1 if on_both else 2)
        await engine.remove("web", force=True)
        await engine.networks.remove("extra")


@pytest.mark.vm
@pytest.mark.parametrize(
    "step",
    ["create.disks", "start.network", "start.make_machine:before", "start.make_machine", "start.remember", "start.run",
     "start.running", "end.driver", "end.settle", "remove.driver", "remove.disks"],
)  # fmt: skip
async def test_a_machines_life_cut_short(place: Home, step: str) -> None:
    files = await asyncio.to_thread(demo_machine)
    said = crashed(
        "machine", place, step, json.dumps({key: str(getattr(files, key)) for key in files.__struct_fields__})
    )
    async with opened(place) as engine:
        if "started" in said and "stopped" not in said:
            await until(engine, "web", "exited")
        if await state_of(engine, "web") == "gone":
            await engine.create(direct_machine(name="web"))
        assert (await engine.start("web")).state.name == "running"
        await engine.remove("web", force=True)
        assert await engine.list() == []


async def test_what_runs_goes_on_and_what_ended_is_known(place: Home) -> None:
    with child("many", place) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "running"
        process.send_signal(signal.SIGKILL)
    killed_at = clock.now()
    time.sleep(1.5)  # three of them end while nobody looks
    async with opened(place) as engine:
        assert {each.config.name for each in await engine.list()} == {
            "plain", "ends", "again", "net", "podded", "paused", "never",
        }  # fmt: skip
        ended = (await engine.get("ends")).state
        assert (ended.name, ended.exit_code) == ("exited", 9)
        assert abs((clock.parse_rfc3339(ended.finished_at) - killed_at).total_seconds()) < 1.4
        for name in ("plain", "net", "podded"):
            assert (await engine.get(name)).state.name == "running"
        assert (await engine.get("paused")).state.name == "paused"
        assert (await engine.get("never")).state.name == "created"
        again = await until(engine, "again", "running")
        assert again.state.restart_count == 1
        net = await engine.get("net")
        assert net.endpoints[0].address
        assert net.published[0].host_port > 0
        await engine.unpause("paused")
        assert [line.data async for line in engine.logs("plain")] == [b"up\n"]
        stopped = (await engine.stop("plain", timeout_s=5)).state
        assert (stopped.name, stopped.exit_code) == ("exited", 6)


async def test_a_crowd_is_taken_back_quickly(place: Home) -> None:
    with child("crowd", place, "20") as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "running"
        process.send_signal(signal.SIGKILL)
    engine = await NodeEngine.open(place.paths, place.settings)
    try:
        began = time.monotonic()
        await engine.recover()
        took = time.monotonic() - began
        assert len([each for each in await engine.list() if each.state.name == "running"]) == 20
        assert took < 2
    finally:
        await engine.destroy()


async def test_a_full_disk_is_told_and_survived(place: Home) -> None:
    """The ledger's own file system is full: what cannot be written is refused, what ends is cleared up, and then it goes on."""
    folder = place.paths.ledger.parent
    folder.mkdir(parents=True)
    mounts.tmpfs(str(folder), size_bytes=2 << 20)
    try:
        async with opened(place) as engine:
            await engine.create(config("sh", "-c", "sleep 0.3; exit 4", name="runs"))
            await engine.start("runs")
            ballast = folder / "ballast"
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            failures = 0
            for number in range(40):  # the log has some room left
                try:
                    await engine.create(config("true", name=f"n{number}", labels={"x": "y" * 4096}))
                except (HostFault, OSError):
                    failures += 1
            assert failures > 0
            assert len(await engine.list()) == 41 - failures
            assert (await until(engine, "runs", "exited")).state.exit_code == 4
            ballast.unlink()
            await engine.create(config("true", name="fits"))
            await engine.start("fits")
            await until(engine, "fits", "exited")
    finally:
        mounts.unmount_below(folder)
