"""A private Insula below a folder of its own, as a user starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from bench.api import Server, of_kubeconfig
from bench.commands import run

IMAGE = "insula/busybox:latest"
DEBUG = {**os.environ, "PYTHONFAULTHANDLER": "1"}  # costs nothing, and a crash tells where


class Insula:
    """`start`, use, `stop`. The folder is kept until the benchmarks end."""

    name = "Insula"

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.env = {**os.environ, "DOCKER_HOST": f"unix://{root}/run/docker.sock", "DOCKER_CONFIG": str(root)}

    def command(self, *words: str) -> list[str]:
        """An `insula` command for this root."""
        return [sys.executable, "-m", "insula.cli", "--root", str(self.root), *words]

    def start(self) -> None:
        """Until `insula up --detach` returns."""
        run(self.command("up", "--detach"), env=DEBUG)

    def stop(self) -> None:
        """The daemon and all that runs."""
        run(self.command("down", "--all"), env=DEBUG)

    def demo_images(self) -> None:
        """Have the demo images."""
        run(self.command("image", "demo"))

    @property
    def socket(self) -> str:
        """The Docker Engine API."""
        return str(self.root / "run" / "docker.sock")

    @property
    def pid(self) -> int:
        """The daemon."""
        pid: int = msgspec.json.decode((self.root / "run" / "insula.lock").read_bytes())["pid"]
        return pid

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.root / "data" / "admin.kubeconfig"

    def server(self) -> Server:
        """Its API server."""
        return of_kubeconfig(self.kubeconfig, self.root)

    def mark(self) -> str:
        """What the arguments of its helper programs mention."""
        return str(self.root)
