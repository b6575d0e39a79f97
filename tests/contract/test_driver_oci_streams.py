"""Streams of containers: nothing lost, both ways, whatever the speed of the reader; ends of file where they belong."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.driver_support import OciCase, collect, open_case, until
from insula.drivers.driver import Channel, Handle, Phase
from insula.drivers.oci import OciDriver
from insula.errors import Conflict, HostFault
from insula.host.conmonlog import Parser
from insula.model.instance import Process

pytestmark = pytest.mark.root
MIB = 1 << 20


@pytest.fixture
async def case(tmp_path: Path) -> AsyncIterator[OciCase]:
    async for case in open_case("oci", tmp_path):
        yield case


@pytest.fixture
def driver(case: OciCase) -> OciDriver:
    return case.driver()


def noise(size: int) -> bytes:
    """Bytes of every kind, with many line feeds and zeros."""
    return random.Random(size).randbytes(size)


async def feed(streams: object, data: bytes) -> None:
    await streams.write(data)  # type: ignore[attr-defined]
    await streams.close_stdin()  # type: ignore[attr-defined]


async def end(driver: OciDriver, handle: Handle) -> int:
    code = (await driver.wait(handle)).code
    await driver.delete(handle)
    return code


async def test_output_and_errors_are_told_apart(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.shell("echo out; echo err >&2; printf end"))
    streams = await driver.attach(handle)
    await driver.start(handle)
    assert await collect(streams) == (b"out\nend", b"err\n")
    assert await end(driver, handle) == 0


async def test_1_mib_of_binary_goes_in_and_comes_out(case: OciCase, driver: OciDriver) -> None:
    data = noise(MIB)
    handle = await driver.create(case.spec("/bin/cat", open_stdin=True, stdin_once=True))
    streams = await driver.attach(handle)
    await driver.start(handle)
    (output, _), _ = await asyncio.gather(collect(streams), feed(streams, data))
    assert output == data
    assert await end(driver, handle) == 0
    assert read_log(handle) == data


def read_log(handle: Handle) -> bytes:
    parser = Parser()
    return b"".join(entry.data for entry in parser.feed(Path(handle.directory, "log").read_bytes()))


def make_big(path: Path) -> str:
    data = noise(MIB) * 50
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


async def test_50_mib_through_a_slow_reader(case: OciCase, driver: OciDriver) -> None:
    source = Path(case.rootfs, "big")
    wanted = await asyncio.to_thread(make_big, source)
    handle = await driver.create(case.spec("/bin/cat", "/big"))
    streams = await driver.attach(handle)
    await driver.start(handle)
    digest, size, pauses = hashlib.sha256(), 0, 0
    async for _, data in streams.read():
        digest.update(data)
        if size // (5 * MIB) != (size + len(data)) // (5 * MIB):
            pauses += 1
            await asyncio.sleep(0.1)
        size += len(data)
    assert pauses >= 9
    assert size == 50 * MIB
    assert digest.hexdigest() == wanted
    assert await end(driver, handle) == 0


async def test_50_mib_into_a_slow_process(case: OciCase, driver: OciDriver) -> None:
    data = noise(MIB)
    script = "head -c 1048576 >/dev/null; sleep 0.3; cat | wc -c"
    handle = await driver.create(case.shell(script, open_stdin=True, stdin_once=True))
    streams = await driver.attach(handle)
    await driver.start(handle)

    async def write() -> None:
        for _ in range(50):
            await streams.write(data)
        await streams.close_stdin()

    (output, _), _ = await asyncio.gather(collect(streams), write())
    assert int(output) == 49 * MIB
    assert await end(driver, handle) == 0


async def test_a_write_waits_for_a_process_that_does_not_read(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.spec("/bin/sleep", "1000", open_stdin=True, stdin_once=True))
    streams = await driver.attach(handle)
    await driver.start(handle)
    write = asyncio.ensure_future(streams.write(noise(8 * MIB)))
    await asyncio.sleep(0.3)
    assert not write.done()
    await driver.kill(handle, signal.SIGKILL)
    with pytest.raises(HostFault):
        await write
    assert await end(driver, handle) == 137


async def test_a_reader_that_stands_still_does_not_hide_the_end(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(
        case.shell("while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done")
    )
    streams = await driver.attach(handle)
    await driver.start(handle)
    await until(streams, b"a")
    await asyncio.sleep(0.3)
    done = await asyncio.wait_for(driver.stop(handle, signal.SIGTERM, 0.1), 5)
    assert done.code == 137
    rest, _ = await collect(streams)
    assert rest.endswith(b"a\n") or rest.rstrip(b"a") != rest
    await driver.delete(handle)


async def test_several_attached_see_the_same(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.shell("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"))
    several = [await driver.attach(handle) for _ in range(4)]
    await driver.start(handle)
    outputs = await asyncio.gather(*(collect(streams) for streams in several))
    assert len(set(outputs)) == 1
    assert outputs[0][0].count(b"\n") == 2000
    assert await end(driver, handle) == 0


async def test_one_that_leaves_does_not_disturb_the_others(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(
        case.shell("read a; echo got $a; read b; echo got $b", open_stdin=True, stdin_once=True)
    )
    leaving, staying = await driver.attach(handle), await driver.attach(handle)
    await driver.start(handle)
    await leaving.write(b"one\n")
    await until(staying, b"got one")
    await leaving.close()
    await asyncio.sleep(0.05)
    await staying.write(b"two\n")
    await until(staying, b"got two")
    assert await end(driver, handle) == 0


async def test_end_of_file_reaches_the_process_after_all_data(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.spec("/bin/wc", "-c", open_stdin=True, stdin_once=True))
    streams = await driver.attach(handle)
    await driver.start(handle)
    await feed(streams, b"x" * 100_000)
    assert (await collect(streams))[0].strip() == b"100000"
    assert await end(driver, handle) == 0


async def test_an_empty_input_ends_at_once(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.spec("/bin/cat", open_stdin=True, stdin_once=True))
    streams = await driver.attach(handle)
    await streams.close_stdin()
    await driver.start(handle)
    assert await collect(streams) == (b"", b"")
    assert await end(driver, handle) == 0


async def test_without_stdin_once_input_stays_open(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.shell("read a; echo got $a", open_stdin=True))
    first = await driver.attach(handle)
    await driver.start(handle)
    await first.close_stdin()
    await first.close()
    second = await driver.attach(handle)
    await second.write(b"later\n")
    assert (await collect(second))[0] == b"got later\n"
    assert await end(driver, handle) == 0


async def test_without_open_stdin_input_is_empty(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.spec("/bin/wc", "-c"))
    streams = await driver.attach(handle)
    await driver.start(handle)
    await streams.write(b"nobody reads this")
    assert (await collect(streams))[0].strip() == b"0"
    assert await end(driver, handle) == 0


async def test_a_terminal_has_one_stream_and_a_size(case: OciCase, driver: OciDriver) -> None:
    spec = case.shell("stty size; echo err >&2; read a; stty size", tty=True, open_stdin=True, width=90, height=30)
    handle = await driver.create(spec)
    streams = await driver.attach(handle)
    await driver.start(handle)
    seen = await until(streams, b"err")
    assert b"30 90" in seen
    await driver.resize(handle, 132, 43)
    await asyncio.sleep(0.1)
    await streams.write(b"\n")
    output, errors = await collect(streams)
    assert b"43 132" in output
    assert errors == b""
    assert await end(driver, handle) == 0


async def test_a_terminal_can_be_left_and_joined_again(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.spec("/bin/sh", tty=True, open_stdin=True, stdin_once=True))
    first = await driver.attach(handle)
    await driver.start(handle)
    await first.write(b"echo a$((1+1))b\n")
    await until(first, b"a2b")
    await first.close()
    await asyncio.sleep(0.05)
    second = await driver.attach(handle)
    await second.write(b"echo c$((2+2))d\n")
    await until(second, b"c4d")
    await second.write(b"exit 5\n")
    assert (await driver.wait(handle)).code == 5
    await driver.delete(handle)


async def test_attach_to_an_ended_one_is_a_conflict(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.ends(0))
    await driver.start(handle)
    await driver.wait(handle)
    with pytest.raises(Conflict):
        await driver.attach(handle)
    await driver.delete(handle)


# --- exec


async def test_exec_runs_beside(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    running = await driver.exec(
        handle, "e1", Process(args=("/bin/sh", "-c", "echo out; echo err >&2; exit 4"), env=("PATH=/bin",))
    )
    assert await collect(running.streams) == (b"out\n", b"err\n")
    assert (await running.wait()).code == 4
    assert (await running.wait()).code == 4
    assert list(Path(handle.directory, "exec").glob("*")) == []
    assert (await driver.recover(handle)).phase is Phase.RUNNING
    await driver.delete(handle)


async def test_exec_takes_1_mib_and_an_end_of_file(case: OciCase, driver: OciDriver) -> None:
    data = noise(MIB)
    handle = await driver.create(case.forever())
    await driver.start(handle)
    running = await driver.exec(handle, "e1", Process(args=("/bin/cat",), env=("PATH=/bin",), open_stdin=True))
    (output, _), _ = await asyncio.gather(collect(running.streams), feed(running.streams, data))
    assert output == data
    assert (await running.wait()).code == 0
    await driver.delete(handle)


async def test_exec_with_a_terminal(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    process = Process(args=("/bin/sh",), env=("PATH=/bin",), tty=True, open_stdin=True, width=100, height=40)
    running = await driver.exec(handle, "e1", process)
    await running.streams.write(b"stty size\n")
    await until(running.streams, b"40 100")
    await running.resize(70, 20)
    await asyncio.sleep(0.1)
    await running.streams.write(b"stty size\n")
    await until(running.streams, b"20 70")
    await running.streams.write(b"exit 3\n")
    assert (await running.wait()).code == 3
    await driver.delete(handle)


@pytest.mark.parametrize("tty", [False, True])
async def test_a_quick_exec_loses_nothing(case: OciCase, driver: OciDriver, tty: bool) -> None:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    for number in range(8):
        running = await driver.exec(
            handle, f"e{number}", Process(args=("/bin/echo", "quick"), env=("PATH=/bin",), tty=tty)
        )
        assert (await collect(running.streams))[0].strip() == b"quick"
        assert (await running.wait()).code == 0
    await driver.delete(handle)


@pytest.mark.parametrize(("program", "code"), [("/bin/nothing", 127), ("nothing", 127), ("/dev", 126)])
async def test_exec_of_what_cannot_run(case: OciCase, driver: OciDriver, program: str, code: int) -> None:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    with pytest.raises(HostFault) as refused:
        await driver.exec(handle, "e1", Process(args=(program,), env=("PATH=/bin",)))
    assert refused.value.code == code
    assert refused.value.message.startswith("OCI runtime exec failed: exec failed: unable to start container process")
    await driver.delete(handle)


async def test_exec_ends_with_its_container(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    running = await driver.exec(handle, "e1", Process(args=("/bin/sleep", "1000"), env=("PATH=/bin",)))
    await driver.kill(handle, signal.SIGKILL)
    assert (await asyncio.wait_for(running.wait(), 5)).code == 137
    await driver.wait(handle)
    await driver.delete(handle)


async def test_exec_can_be_killed(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    running = await driver.exec(handle, "e1", Process(args=("/bin/sleep", "1000"), env=("PATH=/bin",)))
    await running.kill(signal.SIGKILL)
    assert (await running.wait()).code == 137
    await driver.delete(handle)


async def test_exec_needs_a_running_container(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.forever())
    with pytest.raises(Conflict):
        await driver.exec(handle, "e1", Process(args=("/bin/true",)))
    await driver.start(handle)
    await driver.pause(handle)
    with pytest.raises(Conflict, match="paused"):
        await driver.exec(handle, "e1", Process(args=("/bin/true",)))
    await driver.delete(handle)


async def test_channels_of_a_chunk(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.shell("echo x >&2"))
    streams = await driver.attach(handle)
    await driver.start(handle)
    assert [chunk async for chunk in streams.read()] == [(Channel.STDERR, b"x\n")]
    assert await end(driver, handle) == 0
