"""The relay beside a machine and our connection to it, with machines that are programs of this test: honest and hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.drivers.driver import Channel
from insula.drivers.microvm.link import Link, Refused, Session
from insula.drivers.microvm.sandboxed import frames
from insula.errors import HostFault, Unavailable

PRELUDE = """
import os, socket, sys, time
from insula.drivers.microvm.sandboxed.frames import *
port = socket.socket(fileno=10)
reader = Reader(LARGEST_RUN)
def heard():
    while data := port.recv(65536):
        yield from reader.feed(data)
def say(kind, session, data=b""):
    port.sendall(pack(kind, session, data))
def tell(kind, session, value):
    port.sendall(pack_number(kind, session, value))
"""

HONEST = """
say(HELLO, 0, b"1")
credit = WINDOW
for kind, session, data in heard():
    if kind == RUN and session == 0:
        assert data == b"arg=sh\\0env=A=b\\0", data
        tell(BEGUN, 0, 5)
        say(OUTPUT, 0, b"out\\n")
        say(ERRORS, 0, b"err\\n")
    elif kind == RUN:
        if data == b"arg=bad\\0":
            say(FAILED, session, (127).to_bytes(4, "little") + b"exec: no")
            continue
        tell(BEGUN, session, 77)
    elif kind == INPUT and data:
        say(OUTPUT, session, data)
        tell(MORE_INPUT, session, len(data))
    elif kind == INPUT and session:
        tell(ENDED, session, 3)
    elif kind == SIGNAL and session == 0:
        tell(ENDED, 0, 128 + int.from_bytes(data[:4], "little"))
    elif kind == LIST:
        say(LIST, session, b"pid=1")
        say(LIST, session)
"""


class Machine:
    """A relay with a machine of this test beside it."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self.process = process

    async def link(self) -> Link:
        return await Link.connect(self.folder / "relay")

    async def end(self) -> tuple[int, bytes, bytes]:
        async with asyncio.timeout(20):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out, err

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""


@contextlib.asynccontextmanager
async def machine(folder: Path, program: str, *, stdin: int = asyncio.subprocess.DEVNULL) -> AsyncIterator[Machine]:
    """Start the relay and return when its socket is open."""
    script = folder / "machine.py"
    script.write_text(PRELUDE + textwrap.dedent(program))
    plan = {
        "virtiofsd": ["/bin/sleep", "1000"],
        "qemu": [sys.executable, str(script)],
        "run": [["arg", "sh"], ["env", "A=b"]],
        "input": stdin == asyncio.subprocess.PIPE,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    os.mkfifo(folder / "ready")
    ready = os.open(folder / "ready", os.O_RDONLY | os.O_NONBLOCK)
    start = (
        "import json, os, sys; from insula.drivers.microvm.sandboxed.relay import Relay; "
        f"os._exit(Relay(json.load(open({str(folder / 'plan.json')!r})), {str(folder)!r}).run())"
    )
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", start, stdin=stdin, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
    )
    try:
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(ready, told.set)
        async with asyncio.timeout(20):
            await told.wait()
        loop.remove_reader(ready)
        yield Machine(folder, process)
    finally:
        os.close(ready)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.communicate()


async def test_the_relay_stands_for_the_images_process(tmp_path: Path) -> None:
    async with machine(tmp_path, HONEST) as made:
        link = await made.link()
        assert await asyncio.wait_for(link.image.begun, 10) == 5
        link.signal(0, 15)
        assert await made.end() == (143, b"out\n", b"err\n")
        await link.close()


async def test_input_and_its_end_reach_the_machine(tmp_path: Path) -> None:
    program = """
    say(HELLO, 0, b"1")
    total = 0
    for kind, session, data in heard():
        if kind == INPUT and not data:
            say(OUTPUT, 0, b"%d" % total)
            tell(ENDED, 0, 200)
        elif kind == INPUT:
            total += len(data)
            tell(MORE_INPUT, 0, len(data))
    """
    async with machine(tmp_path, program, stdin=asyncio.subprocess.PIPE) as made:
        assert made.process.stdin
        made.process.stdin.write(bytes(1_000_000))
        made.process.stdin.write_eof()
        assert await made.end() == (200, b"1000000", b"")


async def test_all_output_is_out_before_the_exit(tmp_path: Path) -> None:
    program = """
    say(HELLO, 0, b"1")
    left, credit = 3_000_000, WINDOW
    for kind, session, data in heard():
        if kind == RUN:
            tell(BEGUN, 0, 1)
        if kind == MORE_OUTPUT:
            credit += number(data)
        while left and credit >= 4096:
            say(OUTPUT, 0, b"x" * 4096)
            left, credit = max(0, left - 4096), credit - 4096
        if not left:
            tell(ENDED, 0, 0)
            os._exit(0)
    """
    async with machine(tmp_path, program) as made:
        code, out, _ = await made.end()
        assert code == 0
        assert len(out) >= 3_000_000 and set(out) == {ord("x")}


async def test_processes_beside_the_image(tmp_path: Path) -> None:
    async with machine(tmp_path, HONEST) as made:
        link = await made.link()
        session = await link.start(b"arg=cat\0", tty=False, stdin=True)
        assert session.pid == 77
        sent = os.urandom(1_000_000)
        writing = asyncio.create_task(fill(session, sent))
        got = b""
        async for channel, data in session.read():
            assert channel is Channel.STDOUT
            got += data
        await writing
        assert got == sent
        assert (await session.wait()).code == 3
        with pytest.raises(HostFault, match="does not take input"):
            await refill(session)
        with pytest.raises(Refused) as refused:
            await link.start(b"arg=bad\0", tty=False, stdin=False)
        assert (refused.value.code, refused.value.words) == (127, "exec: no")
        assert await link.list() == [b"pid=1"]
        await link.close()
        again = await made.link()  # as after a restart of Insula: it is told how things are
        assert await asyncio.wait_for(again.image.begun, 10) == 5
        await again.close()


async def fill(session: Session, data: bytes) -> None:
    await session.write(data)
    await session.close_stdin()


async def refill(session: Session) -> None:
    session._stdin = True
    await session.write(b"x")


async def test_a_session_ends_with_its_machine(tmp_path: Path) -> None:
    async with machine(tmp_path, HONEST) as made:
        link = await made.link()
        session = await link.start(b"arg=cat\0", tty=False, stdin=True)
        link.signal(0, 9)
        assert (await asyncio.wait_for(session.wait(), 10)).code == 137
        assert (await made.end())[0] == 137
        for _ in range(200):
            if not link.open:
                break
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await link.start(b"arg=cat\0", tty=False, stdin=False)
        with pytest.raises(Unavailable):
            await made.link()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("port.sendall(b'\\xff' * 100); time.sleep(100)", "a frame of type"),
        (
            "say(HELLO, 0); [say(OUTPUT, 0, b'x' * 60000) for _ in range(100)]; time.sleep(100)",
            "more output than it may",
        ),
        ("say(HELLO, 0); say(OUTPUT, 0); time.sleep(100)", "output without bytes"),
        ("say(HELLO, 0); say(ENDED, 0, b'x'); time.sleep(100)", "a number is missing"),
        ("say(HELLO, 0); os._exit(5)", "ended with code 5"),
        ("os.kill(os.getpid(), 11)", "was killed by signal 11"),
    ],
)
async def test_a_machine_that_breaks_the_rules_is_ended_with_a_word(tmp_path: Path, program: str, words: str) -> None:
    async with machine(tmp_path, program) as made:
        made.process._transport.get_pipe_transport(1).pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            while words not in made.log():
                await asyncio.sleep(0.02)
        made.process._transport.get_pipe_transport(1).resume_reading()  # type: ignore[attr-defined]
        assert (await made.end())[0] == 255


@pytest.mark.parametrize(
    "flood",
    [
        "say(OUTPUT, session, b'y' * 60000)",  # beyond the window
        "say(OUTPUT, session)",
        "say(ENDED, session, b'')",
    ],
)
async def test_a_session_that_breaks_the_rules_costs_the_connection_only(tmp_path: Path, flood: str) -> None:
    program = f"""
    say(HELLO, 0, b"1")
    for kind, session, data in heard():
        if kind == RUN and session == 0:
            tell(BEGUN, 0, 5)
        elif kind == RUN:
            tell(BEGUN, session, 6)
            for _ in range(50):
                {flood}
        elif kind == SIGNAL:
            tell(ENDED, 0, 7)
    """
    async with machine(tmp_path, program) as made:
        link = await made.link()
        session = await link.start(b"arg=x\0", tty=False, stdin=False)
        assert (await asyncio.wait_for(session.wait(), 10)).code == 137
        async with asyncio.timeout(10):
            while link.open:
                await asyncio.sleep(0.01)
        again = await made.link()
        await asyncio.wait_for(again.image.begun, 10)
        again.signal(0, 1)
        assert (await made.end())[0] == 7
        await again.close()


async def test_unknown_sessions_and_types_are_passed_over(tmp_path: Path) -> None:
    program = """
    say(HELLO, 0, b"1")
    for kind, session, data in heard():
        if kind == RUN:
            say(OUTPUT, 999, b"nobody's")
            say(b"?", 0, b"what")
            say(HELLO, 0, b"again")
            tell(BEGUN, 0, 5)
        elif kind == SIGNAL:
            tell(ENDED, 0, 300)
    """
    async with machine(tmp_path, program) as made:
        link = await made.link()
        await asyncio.wait_for(link.image.begun, 10)
        link.signal(0, 1)
        assert (await made.end())[0] == 300 & 0xFF
        await link.close()


def test_a_window_is_several_frames() -> None:
    assert frames.WINDOW >= 2 * frames.LARGEST
