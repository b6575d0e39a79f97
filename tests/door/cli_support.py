"""The real `insula` command on a root of its own, and what it may leave behind: nothing."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from insula.cli.paths import paths_of
from insula.host import cgroups, mounts

SOURCES = str(Path(__file__).parents[2] / "src")


class Home:
    """A root for one Insula. The path is short, for sockets below it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="insula-c-"))
        self.paths = paths_of(str(self.folder))

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "insula.cli", "--root", str(self.folder), *words]

    @property
    def env(self) -> Mapping[str, str]:
        """With the interpreter's cache of compiled files, as users have it."""
        mine = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        return {**mine, "PYTHONPATH": SOURCES, "PYTHONPYCACHEPREFIX": str(Path.home() / ".cache/insula-tests/pyc")}

    def run(self, *words: str, stdin: str | None = None, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.argv(*words), input=stdin, capture_output=True, text=True, timeout=timeout, env=self.env, check=False
        )

    def ok(self, *words: str, stdin: str | None = None, timeout: float = 90) -> str:
        """Run a command that must succeed; its output."""
        done = self.run(*words, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, (words, done.stdout, done.stderr, self.log()[-3000:])
        return done.stdout

    def fails(self, *words: str) -> str:
        """Run a command that must fail with a sentence and no trace; what it said."""
        done = self.run(*words)
        assert done.returncode == 1, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("insula: ")
        return done.stderr

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "-o", "json"))

    def spawn(self, *words: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            self.argv(*words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
        )

    def log(self) -> str:
        return self.paths.log.read_text() if self.paths.log.exists() else ""

    def traces(self) -> dict[str, list[str]]:
        """What there is of this Insula in the kernel."""
        links = [name for name in os.listdir("/sys/class/net") if name.startswith(self.paths.prefix)]
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
        groups = [Path(root, self.paths.cgroup) for root in set(cgroups.detect().roots.values())]
        found = {
            "processes": list(self._processes()),
            "links": links,
            "tables": [line for line in tables.splitlines() if line.endswith(f" {self.paths.table}")],
            "mounts": [point.target for point in mounts.mount_points(str(self.folder))],
            "groups": [str(group) for group in groups if group.exists()],
        }
        return {what: each for what, each in found.items() if each}

    def _processes(self) -> Iterator[str]:
        own = {str(os.getpid()), str(os.getppid())}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name not in own:
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if str(self.folder) in words:
                        yield f"{entry.name} {words[:200]}"

    def destroy(self) -> None:
        """End everything; fail when anything stays."""
        try:
            self.ok("down", "--all")
            left = self.traces()
            assert left == {}, left
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, home: Home, *words: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                argv = home.argv(*words)
                os.execve(argv[0], argv, dict(home.env))
            finally:
                os._exit(127)

    def write(self, data: bytes) -> None:
        os.write(self.fd, data)

    def nudge(self, key: bytes, text: bytes) -> None:
        """Wait for a text, pressing a key again every three seconds: a guest's shell may lose one between two programs."""
        for _ in range(10):
            try:
                self.read_until(text, 3)
            except AssertionError:
                self.write(key)
            else:
                return
        raise AssertionError(f"{text!r} never came")

    def read_until(self, text: bytes, deadline_s: float = 40) -> bytes:
        """Everything up to and with a text."""
        seen, deadline = b"", time.monotonic() + deadline_s
        while text not in seen:
            left = deadline - time.monotonic()
            assert left > 0, (text, seen)
            if select.select([self.fd], [], [], left)[0]:
                try:
                    chunk = os.read(self.fd, 4096)
                except OSError:
                    chunk = b""
                assert chunk, (text, seen)
                seen += chunk
        return seen

    def wait(self) -> int:
        """Its exit code; reads what it still says, so that it is not held up."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if select.select([self.fd], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    os.read(self.fd, 4096)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        raise AssertionError("the command did not end")

    def close(self) -> None:
        os.close(self.fd)
