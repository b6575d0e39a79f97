"""The vm driver under the driver contract. Its guests are boot sectors of some fifty bytes, so a life takes a tenth of a second.

A machine has one exit code of its own (0, switched off), and its monitor serves one driver at a time, as there is one Insula;
so the tests of `test_driver_contract.py` are said here in a machine's words.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import owned
from insula.drivers import available
from insula.drivers.driver import Capability, Handle, Phase
from insula.drivers.vm import VmDriver
from insula.errors import Conflict
from insula.host import cgroups, qemu
from insula.host.cgroups import Group
from insula.model.instance import Disk, InstanceSpec, MachineConfig, MachineSpec

pytestmark = [pytest.mark.root, pytest.mark.vm]

_SAY = bytes.fromhex("31c08ed8be007dac84c07406baf803eeebf5")  # print the text at 0x7d00 on the serial line
_OFF = bytes.fromhex("b8015331dbcd15b80e5331dbb90201cd15b80753bb0100b90300cd15")  # switch off through APM
_HALT = bytes.fromhex("f4ebfd")


class Case:
    """Machines that boot one sector, in a folder and control group of this test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parent = f"insula-test-{secrets.token_hex(4)}"
        owned.note(self.parent)
        self.made: list[VmDriver] = []
        self.handles: list[Handle] = []

    def driver(self) -> VmDriver:
        """As after a restart of Insula: those before have let go."""
        self.made.append(VmDriver(self.folder / "run"))
        return self.made[-1]

    def spec(self, code: bytes, text: str, **config: bool) -> InstanceSpec:
        id = secrets.token_hex(32)
        directory = self.folder / id[:8]
        directory.mkdir()
        sector = code.ljust(256, b"\0") + text.encode() + b"\0"
        (directory / "disk").write_bytes(sector.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
        disk = Disk(name="boot", path=str(directory / "disk"), format="raw")
        hardware = MachineConfig(memory_bytes=32 << 20, graphics=False, **config)
        return InstanceSpec(
            id=id,
            name=id[:12],
            directory=str(directory),
            log_path=str(directory / "log"),
            cgroup_parent=self.parent,
            machine=MachineSpec(config=hardware, disks=(disk,)),
        )

    def stubborn(self, **config: bool) -> InstanceSpec:
        return self.spec(_SAY + _HALT, "ready", **config)

    def says(self, text: str) -> InstanceSpec:
        return self.spec(_SAY + _OFF + _HALT, text)

    async def make(self, driver: VmDriver, spec: InstanceSpec) -> Handle:
        self.handles.append(await driver.create(spec))
        return self.handles[-1]

    async def started(self, driver: VmDriver) -> Handle:
        spec = self.stubborn()
        handle = await self.make(driver, spec)
        await driver.start(handle)
        async with asyncio.timeout(20):
            while b"ready" not in Path(spec.log_path).read_bytes():
                await asyncio.sleep(0.01)
        return handle

    def leftovers(self) -> list[str]:
        left = [str(path) for path in (self.folder / "run" / "vm").glob("*") if path.is_dir()]
        for root in set(cgroups.detect().roots.values()):
            left += [str(path) for path in Path(root, self.parent).glob("*") if path.is_dir()]
        for pidfile in self.folder.glob("*/qemu.pid"):
            left += [f"qemu {found.pid}" for found in qemu.find_strays(str(pidfile))]
        return left

    async def close(self) -> None:
        for driver in self.made:
            await driver.close()
        last = self.driver()
        for handle in self.handles:
            await last.delete(handle)
        await last.close()
        cgroups.remove(Group(layout=cgroups.detect(), path=self.parent))


@pytest.fixture
async def case(tmp_path: Path) -> AsyncIterator[Case]:
    made = Case(tmp_path)
    yield made
    await made.close()
    assert made.leftovers() == []


@pytest.fixture
def driver(case: Case) -> VmDriver:
    return case.driver()


def test_it_is_registered() -> None:
    assert "vm" in available()


async def test_a_probe_finds_it_available(driver: VmDriver) -> None:
    found = await driver.probe()
    assert found.available
    assert found.facts["accelerator"] in ("kvm", "tcg")
    assert found.notes[0].endswith(".")
    assert not found.notes[0].endswith("..")


async def test_a_life(case: Case, driver: VmDriver) -> None:
    handle = await case.make(driver, case.says("hello"))
    assert (await driver.recover(handle)).phase is Phase.CREATED
    streams = await driver.attach(handle)
    pid = await driver.start(handle)
    assert Path(f"/proc/{pid}").exists()
    seen = b"".join([data async for _, data in streams.read()])
    await streams.close()
    assert seen == b"hello"
    end = await driver.wait(handle)
    assert end.code == 0
    assert end.finished_at
    status = await driver.recover(handle)
    assert (status.phase, status.exit) == (Phase.EXITED, end)
    assert (await driver.stop(handle, signal.SIGTERM, 1)).code == 0
    with pytest.raises(Conflict):
        await driver.kill(handle, signal.SIGTERM)
    await driver.delete(handle)
    assert (await driver.recover(handle)).phase is Phase.GONE
    assert case.leftovers() == []


async def test_wait_answers_many_and_again(case: Case, driver: VmDriver) -> None:
    handle = await case.started(driver)
    waits = [asyncio.ensure_future(driver.wait(handle)) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert not any(wait.done() for wait in waits)
    await driver.kill(handle, signal.SIGKILL)
    assert {done.code for done in await asyncio.gather(*waits)} == {137}
    assert (await driver.wait(handle)).code == 137


async def test_a_cancelled_wait_leaves_it_running(case: Case, driver: VmDriver) -> None:
    handle = await case.started(driver)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(driver.wait(handle), 0.05)
    assert (await driver.recover(handle)).phase is Phase.RUNNING


async def test_stop_pulls_the_plug_of_what_does_not_listen(case: Case, driver: VmDriver) -> None:
    handle = await case.started(driver)
    began = asyncio.get_running_loop().time()
    assert (await driver.stop(handle, signal.SIGTERM, 0.3)).code == 137
    assert 0.25 < asyncio.get_running_loop().time() - began < 5


async def test_another_driver_takes_over_from_the_handle(case: Case, driver: VmDriver) -> None:
    handle = await case.make(driver, case.stubborn())
    await driver.close()
    second = case.driver()
    assert (await second.recover(handle)).phase is Phase.CREATED
    await second.start(handle)
    await second.close()
    third = case.driver()
    assert (await third.recover(handle)).phase is Phase.RUNNING
    waiting = asyncio.ensure_future(third.wait(handle))
    assert (await third.stop(handle, signal.SIGTERM, 0)).code == 137
    assert (await waiting).code == 137


async def test_an_end_while_nobody_watched_is_known(case: Case, driver: VmDriver) -> None:
    spec = case.says("bye")
    handle = await case.make(driver, spec)
    await driver.start(handle)
    await driver.close()
    async with asyncio.timeout(20):
        while b"bye" not in Path(spec.log_path).read_bytes():
            await asyncio.sleep(0.01)
    later = case.driver()
    assert (await asyncio.wait_for(later.wait(handle), 10)).code == 0
    assert (await later.recover(handle)).phase is Phase.EXITED


async def test_create_can_be_repeated_after_a_crash(case: Case, driver: VmDriver) -> None:
    spec = case.stubborn()
    lost = await driver.create(spec)
    await driver.close()
    second = case.driver()
    again = await case.make(second, spec)
    assert (await second.recover(again)).phase is Phase.CREATED
    assert not Path(f"/proc/{lost.data['pid']}").exists()


async def test_delete_is_repeatable_and_ends_what_runs(case: Case, driver: VmDriver) -> None:
    created, running = await case.make(driver, case.stubborn()), await case.started(driver)
    for handle in (created, running):
        await driver.delete(handle)
        await driver.delete(handle)
    assert case.leftovers() == []


async def test_pause_and_resume(case: Case, driver: VmDriver) -> None:
    handle = await case.started(driver)
    await driver.pause(handle)
    assert (await driver.recover(handle)).phase is Phase.PAUSED
    await driver.resume(handle)
    assert (await driver.recover(handle)).phase is Phase.RUNNING
    await driver.pause(handle)
    assert (await driver.stop(handle, signal.SIGKILL, 5)).code == 137


async def test_one_that_starts_paused_has_not_run(case: Case, driver: VmDriver) -> None:
    spec = case.stubborn(start_paused=True)
    handle = await case.make(driver, spec)
    await driver.start(handle)
    assert (await driver.recover(handle)).phase is Phase.PAUSED
    await driver.close()
    later = case.driver()
    assert (await later.recover(handle)).phase is Phase.PAUSED
    assert Path(spec.log_path).read_bytes() == b""
    await later.resume(handle)
    assert (await later.recover(handle)).phase is Phase.RUNNING


async def test_stats_and_pids(case: Case, driver: VmDriver) -> None:
    handle = await case.started(driver)
    stats = await driver.stats(handle)
    assert stats.memory_bytes > 0
    assert stats.pids >= 1
    assert stats.read_bytes >= 512
    assert (await driver.recover(handle)).pid in await driver.pids(handle)


async def test_a_machine_killed_while_insula_was_away(case: Case, driver: VmDriver) -> None:
    handle = await case.started(driver)
    await driver.close()
    os.kill(handle.data["pid"], signal.SIGKILL)
    later = case.driver()
    assert (await later.wait(handle)).code == 137
    assert (await later.recover(handle)).phase is Phase.EXITED


async def test_each_capability_has_its_verb(driver: VmDriver) -> None:
    assert Capability.CONSOLE in driver.capabilities
    assert Capability.EXEC not in driver.capabilities
