"""A machine is an instance like any other: on the same network, with logs, a console, stop, and recovery."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from host.engine_support import SERVE_DEADLINE_S, Home, direct_machine, fetch_page, home, opened
from host.vm_support import MIB, demo_machine, expect
from insula.drivers.driver import Capability
from insula.engine.node import NodeEngine
from insula.errors import Unsupported
from insula.images import machine
from insula.images.machine import MachineFiles
from insula.model.instance import DiskConfig, InstanceConfig, MachineConfig

pytestmark = [pytest.mark.root, pytest.mark.vm]


@pytest.fixture(scope="module")
def demo() -> MachineFiles:
    return demo_machine()


@pytest.fixture
def place():
    with home() as made:
        yield made
        assert made.traces() == {}


async def add_image(engine: NodeEngine, demo: MachineFiles) -> None:
    await engine.images.add_files_image(machine.NAME, machine.image_files(demo), machine.CONFIG)


async def test_a_machine_boots_serves_and_is_taken_back(place: Home, demo: MachineFiles) -> None:
    async with opened(place, destroy=False) as engine:
        await add_image(engine, demo)
        await engine.create(direct_machine())
        started = await engine.start("machine")
        assert started.state.name == "running"
        (endpoint,) = started.endpoints
        assert endpoint.tap
        assert await fetch_page(endpoint.address, 80, SERVE_DEADLINE_S)
        with pytest.raises(Unsupported):
            await engine.stat_path("machine", "/etc")
        with pytest.raises(Unsupported):
            await engine.console("machine", Capability.EXEC)
    async with opened(place) as engine:
        again = await engine.get("machine")
        assert (again.state.name, again.state.pid) == ("running", started.state.pid)
        assert again.endpoints == (endpoint,)
        assert await fetch_page(endpoint.address, 80, SERVE_DEADLINE_S)
        reader, writer = await asyncio.open_unix_connection(await engine.console("machine", Capability.CONSOLE))
        writer.write(b"\n")
        await expect(reader, b"login:")
        writer.close()
        await writer.wait_closed()
        assert b"login:" in b"".join([line.data async for line in engine.logs("machine")])
        stopped = (await engine.stop("machine", timeout_s=30)).state
        assert (stopped.name, stopped.exit_code) == ("exited", 0)
        await engine.remove("machine")


async def test_a_machine_from_a_container_disk(place: Home, demo: MachineFiles) -> None:
    async with opened(place) as engine:
        await add_image(engine, demo)
        hardware = MachineConfig(
            memory_bytes=160 * MIB,
            graphics=False,
            disks=(
                DiskConfig(name="root", kind="image", source=machine.NAME, boot_order=1),
                DiskConfig(
                    name="seed", kind="cloudinit", files={"meta-data": "instance-id: x\nlocal-hostname: seeded\n"}
                ),
            ),
        )
        made = await engine.create(InstanceConfig(name="disked", driver="vm", machine=hardware))
        started = await engine.start(made.id)
        assert await fetch_page(started.endpoints[0].address, 80, SERVE_DEADLINE_S)
        assert not Path(place.paths.runtime / "instances" / made.id).exists()
        await engine.remove(made.id, force=True)
        assert not any((place.paths.data / "disks").iterdir())


async def test_a_machine_that_starts_paused_says_so(place: Home, demo: MachineFiles) -> None:
    async with opened(place, destroy=False) as engine:
        await add_image(engine, demo)
        wish = direct_machine()
        assert wish.machine is not None
        hardware = msgspec.structs.replace(wish.machine, start_paused=True)
        await engine.create(msgspec.structs.replace(wish, machine=hardware))
        assert (await engine.start("machine")).state.name == "paused"
    async with opened(place, destroy=False) as engine:
        assert (await engine.get("machine")).state.name == "paused"
        assert [line async for line in engine.logs("machine")] == []
        await engine.unpause("machine")
        assert (await engine.get("machine")).state.name == "running"
        address = (await engine.get("machine")).endpoints[0].address
        assert await fetch_page(address, 80, SERVE_DEADLINE_S)
        began = time.monotonic()
        await engine.destroy(grace_s=2.0)  # pulls its plug at once
        assert time.monotonic() - began < 10
        assert place.traces() == {}
    async with opened(place) as engine:
        state = (await engine.get("machine")).state
        assert (state.name, state.exit_code) == ("exited", 137)
        assert (await engine.start("machine")).state.name == "paused"
