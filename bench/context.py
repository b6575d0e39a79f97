"""What benchmarks share: the private Insula, the peers, a scratch folder. Each is started when first asked for; all are stopped
at the end, whatever happens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from rich.console import Console

from bench import dockerd, kubepeer
from bench.commands import CommandError, run
from bench.dockerd import Dockerd
from bench.insula import IMAGE, Insula
from bench.kubepeer import KubePeer


class Context:
    """One run of benchmarks."""

    def __init__(self, scratch: Path, undo: ExitStack, *, quick: bool, console: Console) -> None:
        self.scratch = scratch
        self.quick = quick
        self._undo = undo
        self._console = console
        self._roots = 0

    def times(self, full: int, quick: int) -> int:
        """How often to repeat."""
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """What happens now."""
        self._console.print(f"[dim]{text}[/dim]", highlight=False)

    @cached_property
    def insula(self) -> Insula:
        """An Insula with the demo images, for all benchmarks that do not need one of their own."""
        self.say("starting a private Insula")
        return self._undo.enter_context(self.fresh_insula(images=True))

    @contextmanager
    def fresh_insula(self, *, images: bool = False) -> Iterator[Insula]:
        """An Insula with empty folders, stopped at the end of the block."""
        self._roots += 1
        made = Insula(self.scratch / f"i{self._roots}")
        try:
            made.start()
            if images:
                made.demo_images()
            yield made
        finally:
            made.stop()

    def new_root(self) -> Path:
        """A folder for an Insula that a benchmark starts itself."""
        self._roots += 1
        return self.scratch / f"i{self._roots}"

    @cached_property
    def dockerd(self) -> Dockerd | None:
        """The peer with the same busybox image, or None where Debian's docker.io is not installed."""
        if dockerd.missing():
            return None
        self.say("starting a private dockerd")
        made = Dockerd(self.scratch / "dockerd")
        self._undo.callback(made.stop)
        try:
            made.start()
        except CommandError as fault:
            self.say(f"no dockerd: {fault}")
            return None
        archive = self.busybox_archive()
        run(["docker", "load", "-i", str(archive)], env=made.env)
        return made

    def busybox_archive(self) -> Path:
        """The demo image as `docker save` writes it."""
        archive = self.scratch / "busybox.tar"
        if not archive.exists():
            run(["docker", "save", "-o", str(archive), IMAGE], env=self.insula.env)
        return archive

    @contextmanager
    def kube_peer(self) -> Iterator[KubePeer | None]:
        """A fresh kube-apiserver over etcd, and a kube-scheduler; None where they are not installed."""
        if kubepeer.missing():
            yield None
            return
        self._roots += 1
        made = KubePeer(self.scratch / f"k{self._roots}")
        try:
            made.start()
            yield made
        finally:
            made.stop()

    def no_dockerd(self) -> str:
        """Why there is no dockerd to compare with."""
        return "" if self.dockerd else f"no peer: {dockerd.missing() or 'dockerd'} is not installed"


@contextmanager
def opened(*, quick: bool, console: Console) -> Iterator[Context]:
    """A context whose scratch folder is short, for sockets have to fit into it."""
    scratch = Path(f"/tmp/ib{os.getpid()}")
    scratch.mkdir(mode=0o755)
    try:
        with ExitStack() as undo:
            yield Context(scratch, undo, quick=quick, console=console)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
