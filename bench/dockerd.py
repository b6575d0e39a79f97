"""A private dockerd, the peer of the Docker door: its own folders, and its own network namespace, so that no bridge and no
iptables rule of it meets the host's. It is the distribution's dockerd with its default bridge network, storage driver and log
driver; nothing is switched off."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from bench import processes
from bench.commands import CommandError, run, until

PROGRAMS = ("dockerd", "containerd", "docker", "unshare", "setpriv", "ip")
CGROUP = "insula-bench-dockerd"


def missing() -> str:
    """Which program is absent, or an empty text."""
    return next((name for name in PROGRAMS if shutil.which(name) is None), "")


class Dockerd:
    """`start`, use, `stop`."""

    name = "dockerd"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = str(root / "docker.sock")
        self.env = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(root)}
        self._process: subprocess.Popen[bytes] | None = None
        root.mkdir(parents=True, exist_ok=True)

    def argv(self) -> list[str]:
        """The daemon's command; it ends when the benchmarks' process dies."""
        daemon = [
            "dockerd",
            *("--data-root", str(self.root / "data"), "--exec-root", str(self.root / "exec")),
            *("-H", f"unix://{self.socket}", "-p", str(self.root / "dockerd.pid")),
            *("--bip", "10.213.0.1/24", "--cgroup-parent", f"/{CGROUP}"),
        ]
        script = 'ip link set lo up && exec "$@"'
        return [
            *("unshare", "--net", "--mount", "--propagation", "private", "--"),
            *("setpriv", "--pdeathsig", "TERM", "sh", "-c", script, "sh", *daemon),
        ]

    def start(self) -> None:
        """Until it answers."""
        with (self.root / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(self.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until(self._answers, "an answer of dockerd")
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            tail = (self.root / "dockerd.log").read_text(errors="replace")[-1500:]
            raise CommandError(f"dockerd ended with code {self._process.returncode}: {tail}")
        try:
            run(["docker", "version"], env=self.env)
        except CommandError:
            return False
        return True

    @property
    def pid(self) -> int:
        """The daemon; containerd is its child."""
        assert self._process is not None
        return self._process.pid

    def mark(self) -> str:
        """What the arguments of its helper programs mention."""
        return str(self.root)

    def stop(self) -> None:
        """End it and every shim and container that it left."""
        if self._process is None:
            return
        with suppress(CommandError, subprocess.TimeoutExpired):
            if ids := run(["docker", "ps", "-aq"], env=self.env).decode().split():
                run(["docker", "rm", "-f", *ids], env=self.env)
        left = processes.tree(self._process.pid)[1:]
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(30)
        shims = processes.helpers(self.mark(), names=("containerd-shim-runc-v2", "containerd"))
        for pid in {*left, *shims}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process = None
        time.sleep(0.2)
        for folder in Path("/sys/fs/cgroup").glob(f"*/{CGROUP}"):
            with suppress(OSError):
                folder.rmdir()
