"""Starting helper programs: what they get, what comes back, what happens when they hang or are not there."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from insula.errors import DeadlineExceeded, HostFault
from insula.host import pidfd, spawn


async def test_output_input_and_code() -> None:
    done = await spawn.run(["sh", "-c", "cat; echo err >&2"], input=b"in\0put")
    assert (done.code, done.stdout, done.stderr) == (0, b"in\0put", b"err\n")


async def test_a_failure_carries_the_command_and_the_last_words() -> None:
    with pytest.raises(HostFault) as failed:
        await spawn.run(["sh", "-c", "echo first >&2; echo 'last words' >&2; exit 3"])
    assert failed.value.code == 3
    assert failed.value.message == "sh ended with code 3: last words"
    assert failed.value.command == "sh -c 'echo first >&2; echo '\"'\"'last words'\"'\"' >&2; exit 3'"
    assert (await spawn.run(["false"], check=False)).code == 1
    assert (await spawn.run(["sh", "-c", "kill -9 $$"], check=False)).code == -9


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(HostFault, match="Cannot start no-such-program: No such file"):
        await spawn.run(["no-such-program", "x"])
    with pytest.raises(HostFault, match="Permission denied"):
        await spawn.run(["/etc/passwd"])


async def test_a_hanging_program_is_killed_at_its_deadline() -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="sleep did not end within"):
        await spawn.run(["sleep", "100"], deadline_s=0.2)
    assert time.monotonic() - began < 2


async def test_a_cancelled_caller_leaves_no_program() -> None:
    task = asyncio.ensure_future(spawn.run(["sleep", "100"]))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nothing_is_inherited_by_accident() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    os.environ["INSULA_SECRET"] = "x"
    try:
        listed = (await spawn.run(["ls", "/proc/self/fd"])).stdout.split()
        assert len(listed) == 4  # 0, 1, 2 and the folder that it reads
        assert b"INSULA_SECRET" not in (await spawn.run(["env"])).stdout
        listed = (await spawn.run(["ls", "/proc/self/fd"], pass_fds=(writing,))).stdout.split()
        assert str(writing).encode() in listed
    finally:
        del os.environ["INSULA_SECRET"]
        os.close(reading)
        os.close(writing)


async def test_large_output_needs_no_reader() -> None:
    done = await spawn.run(["head", "-c", "10000000", "/dev/zero"])
    assert len(done.stdout) == 10_000_000


async def test_a_session_of_its_own_and_a_folder() -> None:
    child = spawn.start(["sleep", "100"], new_session=True)
    assert os.getsid(child.pid) == child.pid
    child.kill(signal.SIGTERM)
    assert await asyncio.gather(child.wait(), child.wait()) == [-15, -15]
    child.kill()
    assert (await spawn.run(["pwd"], cwd="/usr")).stdout == b"/usr\n"


async def test_a_start_is_cheap_and_does_not_block() -> None:
    took = []
    for _ in range(20):
        began = time.perf_counter()
        child = spawn.start(["true"])
        took.append(time.perf_counter() - began)
        await child.wait()
    assert sorted(took)[10] < 0.01


async def test_processes_are_told_apart_by_their_start_time() -> None:
    child = spawn.start(["sleep", "100"])
    process = pidfd.identify(child.pid)
    assert process
    assert pidfd.alive(process)
    assert pidfd.parent(child.pid) == os.getpid()
    other = pidfd.ProcessId(process.pid, process.start + 1)
    assert not pidfd.alive(other)
    assert not pidfd.send(other, signal.SIGKILL)
    await pidfd.gone(other)
    assert not await pidfd.gone_within(process, 0.02)
    assert pidfd.send(process, signal.SIGKILL)
    assert await pidfd.gone_within(process, 5)
    assert not pidfd.alive(process)
    assert await child.wait() == -9
    assert pidfd.identify(child.pid) is None
