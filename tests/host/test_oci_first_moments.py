"""The first milliseconds of a container, in which its process is the runtime's own."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from insula.drivers.oci import runtime as runtimes
from insula.drivers.oci.runtime import Runtime, own_program
from insula.host import pidfd
from insula.host.pidfd import ProcessId

AFTER_S = 0.3
SET_NAME = 15  # an operation of prctl(2)
SLEEP = f"print(1, flush=True); time.sleep({AFTER_S}); os.execv('/bin/sleep', ['sleep', '60'])"
SAME = f"import os, time; {SLEEP}"
NAMED = f"import ctypes, os, time; ctypes.CDLL(None).prctl({SET_NAME}, b'runc:[2:INIT]'); {SLEEP}"


@asynccontextmanager
async def process(program: str) -> AsyncIterator[ProcessId]:
    child = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", program, stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        await child.stdout.readline()
        found = pidfd.identify(child.pid)
        assert found is not None
        yield found
    finally:
        child.kill()
        await child.communicate()


def runtime(folder: Path, path: str = "/bin/true") -> Runtime:
    return Runtime(name="runc", path=path, root=str(folder))


@pytest.mark.parametrize(("program", "path"), [(NAMED, "/bin/true"), (SAME, sys.executable)], ids=["name", "program"])
async def test_waits_for_the_containers_own_program(tmp_path: Path, program: str, path: str) -> None:
    async with process(program) as init:
        await own_program(runtime(tmp_path, path), "c", init)
        assert Path(f"/proc/{init.pid}/comm").read_text() == "sleep\n"
        began = time.monotonic()
        await own_program(runtime(tmp_path, path), "c", init)
        assert time.monotonic() - began < 0.05


async def test_waits_neither_for_one_that_was_not_started_nor_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(NAMED.replace(str(AFTER_S), "60")) as init:
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "exec.fifo").touch()
        began = time.monotonic()
        await own_program(runtime(tmp_path), "c", init)
        assert time.monotonic() - began < 0.05
        monkeypatch.setattr(runtimes, "EXEC_DEADLINE_S", 0.1)
        await own_program(runtime(tmp_path), "gone", init)
    await own_program(runtime(tmp_path), "gone", init)
