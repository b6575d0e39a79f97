"""A real root file system of Debian, thousands of small files: `docker load`, and `docker pull` with unpacking. Turn by
turn with dockerd; each daemon has a registry of its own on loopback, over the same files."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.benchmark import AT_MOST, Benchmark, Budget, Row, summary
from bench.commands import CommandError, timed, until
from bench.commands import run as run_command
from bench.context import Context
from bench.dockerd import Dockerd
from bench.insula import Insula

NAME = "bench/debian:latest"
WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")  # about 120 MB are left


def write_root(path: Path) -> None:
    """The distribution's smallest root. Raises CommandError where mmdebstrap is not installed or finds no packages."""
    if shutil.which("mmdebstrap") is None:
        raise CommandError("mmdebstrap is not installed: it makes the root file system")
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in WITHOUT]
    run_command(["mmdebstrap", "--quiet", "--variant=minbase", *options, "bookworm", str(path)])


def registry_argv(settings: Path, namespace_of: int) -> list[str]:
    """The registry, in the network namespace of a process (0: in ours)."""
    enter = ["nsenter", "--target", str(namespace_of), "--net", "--"] if namespace_of else []
    return [*enter, "docker-registry", "serve", str(settings)]


@contextmanager
def registry(folder: Path, port: int, namespace_of: int, daemon: Insula | Dockerd) -> Iterator[str]:
    """`127.0.0.1:port`, as the daemon sees it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "registry.yml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/storage}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n"
    )
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen(registry_argv(settings, namespace_of), stdout=log, stderr=log)
    name = f"127.0.0.1:{port}/debian:1"
    try:
        run_command(["docker", "tag", NAME, name], env=daemon.env)
        until(lambda: _pushes(name, daemon), "a push to the registry", every_s=0.2)
        yield name
    finally:
        child.kill()
        child.wait()


def _pushes(name: str, daemon: Insula | Dockerd) -> bool:
    try:
        run_command(["docker", "push", "-q", name], env=daemon.env)
    except CommandError:
        return False
    return True


def free_port() -> int:
    """One that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(context: Context) -> list[Row]:
    """Whole commands."""
    root, archive = context.scratch / "root.tar", context.scratch / "debian.tar"
    context.say("making a Debian root file system")
    write_root(root)
    run_command(["docker", "import", str(root), NAME], env=context.insula.env)
    run_command(["docker", "save", "-o", str(archive), NAME], env=context.insula.env)
    megabytes = root.stat().st_size / 1e6
    root.unlink()
    daemons = [daemon for daemon in (context.insula, context.dockerd) if daemon is not None]
    rows = [_row(context, f"docker load of a Debian root of {megabytes:.0f} MB", daemons, lambda d: _load(d, archive))]
    for daemon in daemons:
        run_command(["docker", "load", "-q", "-i", str(archive)], env=daemon.env)
    if shutil.which("docker-registry") is None:
        raise CommandError("docker-registry is not installed")
    with ExitStack() as undo:
        names = {}
        for daemon in daemons:
            inside = daemon.pid if isinstance(daemon, Dockerd) else 0
            place = context.scratch / f"registry-{daemon.name}"
            names[daemon.name] = undo.enter_context(registry(place, free_port(), inside, daemon))
            run_command(["docker", "rmi", "-f", NAME], env=daemon.env)
        rows.append(_row(context, "docker pull of the same, unpacked", daemons, lambda d: _pull(d, names[d.name])))
    archive.unlink()
    return rows


def _load(daemon: Insula | Dockerd, archive: Path) -> float:
    run_command(["sh", "-c", f"docker rmi -f {NAME} || true"], env=daemon.env)
    return timed(["docker", "load", "-q", "-i", str(archive)], env=daemon.env)


def _pull(daemon: Insula | Dockerd, name: str) -> float:
    run_command(["docker", "rmi", "-f", name], env=daemon.env)
    return timed(["docker", "pull", "-q", name], env=daemon.env)


def _row(
    context: Context, what: str, daemons: list[Insula | Dockerd], once: Callable[[Insula | Dockerd], float]
) -> Row:
    taken: dict[str, list[float]] = {daemon.name: [] for daemon in daemons}
    for _ in range(context.times(6, 2)):
        for daemon in daemons:
            taken[daemon.name].append(once(daemon))
    peers = taken.get("dockerd")
    return Row(
        what=what,
        unit="s",
        insula=summary(taken["Insula"]),
        peer=summary(peers) if peers else None,
        peer_name="dockerd",
        absent=context.no_dockerd(),
        budgets=(Budget(AT_MOST, 1, times=True),),
    )


BENCHMARK = Benchmark("image-root", "docker load and pull of a Debian root", run)
