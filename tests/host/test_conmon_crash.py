"""Insula is killed, with all of its process group, and containers go on; at any point of a create, and nothing is in the way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from contract.driver_support import OciCase, open_case, until
from insula.drivers.driver import Handle, Phase
from insula.model.instance import InstanceSpec, Process

pytestmark = pytest.mark.root

DAEMON = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    import msgspec
    from insula.drivers.oci import OciDriver
    from insula.drivers.oci.runtime import Runtime
    from insula.model.instance import InstanceSpec

    async def main():
        order = msgspec.json.decode(sys.stdin.readline())
        spec = msgspec.convert(order["spec"], InstanceSpec)
        driver = OciDriver(Path(order["run"]), cgroup_parent=order["parent"])
        driver.adopt(msgspec.convert(order["runtime"], Runtime))
        print("ready", flush=True)
        handle = await driver.create(spec)
        print(msgspec.json.encode(handle).decode(), flush=True)
        streams = await driver.attach(handle)
        await driver.start(handle)
        print("started", flush=True)
        await driver.wait(handle)

    asyncio.run(main())
    """
)


@pytest.fixture
async def case(tmp_path: Path) -> AsyncIterator[OciCase]:
    async for case in open_case("oci", tmp_path):
        yield case


def daemon(case: OciCase, spec: InstanceSpec) -> subprocess.Popen[bytes]:
    """A process that makes, starts and watches a container, as Insula would."""
    order = {"spec": spec, "run": str(case.folder / "run"), "parent": case.parent, "runtime": case.runtime}
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin
    process.stdin.write(msgspec.json.encode(order) + b"\n")
    process.stdin.flush()
    return process


def kill_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe
        pipe.close()


async def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout
    return await asyncio.to_thread(process.stdout.readline)


async def test_a_container_outlives_kill_9_of_the_process_group(case: OciCase) -> None:
    script = "trap 'exit 0' TERM; echo ready; read a; echo got $a; while :; do sleep 1000 & wait $!; done"
    process = daemon(case, case.shell(script, open_stdin=True))
    assert await line(process) == b"ready\n"
    handle = msgspec.json.decode(await line(process), type=Handle)
    assert await line(process) == b"started\n"
    await case.ready(handle)
    kill_group(process)
    driver = case.driver()
    status = await driver.recover(handle)
    assert status.phase is Phase.RUNNING
    wait = asyncio.ensure_future(driver.wait(handle))
    streams = await driver.attach(handle)
    await streams.write(b"again\n")
    await until(streams, b"got again")
    running = await driver.exec(handle, "e1", Process(args=("/bin/true",)))
    assert (await running.wait()).code == 0
    assert (await driver.stop(handle, signal.SIGTERM, 10)).code == 0
    assert (await wait).code == 0
    assert b"got again" in Path(handle.directory, "log").read_bytes()
    await driver.delete(handle)


@pytest.mark.parametrize("pause_ms", [0, 3, 6, 10, 15, 20, 30, 45])
async def test_killed_in_the_middle_of_a_create(case: OciCase, pause_ms: int) -> None:
    spec = case.forever()
    process = daemon(case, spec)
    assert await line(process) == b"ready\n"
    await asyncio.sleep(pause_ms / 1000)
    kill_group(process)
    driver = case.driver()
    handle = await driver.create(spec)
    await driver.start(handle)
    await case.ready(handle)
    assert (await driver.stop(handle, signal.SIGTERM, 10)).code == 0
    await driver.delete(handle)
    assert case.leftovers() == []
