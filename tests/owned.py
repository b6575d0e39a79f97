"""What a test run makes in the kernel under names of its own, so that it can be told from what others on the machine make.

Temporary folders of a run lie below one folder, and everything that an Insula makes is named after its folder. Names that
tests choose otherwise are noted here; a file below that folder gathers them from all workers.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from insula.cli.paths import paths_of

_RUN = "INSULA_TEST_RUN"
_HELPERS = ("conmon", "qemu-system", "dockerd", "containerd", "docker-registry", "insula")


def begin() -> None:
    """For the process that starts a run: a folder for it, inherited by workers and whatever they start."""
    folder = tempfile.mkdtemp(prefix="it")
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path stays where it is kept for a look
    os.environ[_RUN] = os.environ["TMPDIR"] = folder
    tempfile.tempdir = None


def follow() -> None:
    """For every process that runs tests: note the names that follow from each temporary folder."""
    made = tempfile.mkdtemp

    @functools.wraps(made)
    def noted(*arguments: object, **options: object) -> str:
        folder = str(made(*arguments, **options))  # type: ignore[call-overload]
        note_root(folder)
        return folder

    tempfile.mkdtemp = noted  # type: ignore[assignment]


def note(*names: str) -> None:
    """Names, or beginnings of names, of interfaces, tables, control groups and folders."""
    if run := os.environ.get(_RUN):
        with Path(run, "names").open("a") as file:
            file.write("".join(f"{name}\n" for name in names))


def note_root(folder: str | Path) -> None:
    """A folder that may be the root of an Insula."""
    paths = paths_of(str(folder))
    note(str(folder), paths.prefix, paths.table, paths.cgroup)


def left(basetemp: Path) -> dict[str, list[str]]:
    """What of this run is in the kernel now."""
    run = Path(os.environ[_RUN])
    try:
        names = set((run / "names").read_text().split("\n")) - {""}
    except FileNotFoundError:
        names = set()
    folders = (f"{run}/", f"{basetemp}/", *(f"{name}/" for name in names if name.startswith("/")))
    plain = tuple(name for name in names if not name.startswith("/"))
    tables = {f"table {family} {name}" for family in ("inet", "ip", "ip6", "bridge") for name in plain}
    found = {
        "mounts": [mount for mount in _mounts() if mount.startswith(folders)],
        "interfaces": [name for name in os.listdir("/sys/class/net") if plain and name.startswith(plain)],
        "nft tables": [line for line in _lines("nft", "list", "tables") if line in tables],
        "control groups": [str(path) for path in _groups() if path.name in names],
        "processes": [line for line in _processes() if any(folder in line for folder in folders)],
    }
    return {what: sorted(which) for what, which in found.items() if which}


def end() -> None:
    """The run's folder goes, unless something is mounted below it. Repeatable."""
    run = os.environ.pop(_RUN, "")
    if run and not any(mount.startswith(f"{run}/") for mount in _mounts()):
        shutil.rmtree(run, ignore_errors=True)


def _mounts() -> list[str]:
    return [line.split(" ", 5)[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _groups() -> Iterator[Path]:
    root = Path("/sys/fs/cgroup")
    yield from (file.parent for pattern in ("*/cgroup.procs", "*/*/cgroup.procs") for file in root.glob(pattern))


def _lines(*argv: str) -> list[str]:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout.splitlines()
    except OSError:
        return []


def _processes() -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if any(word in command.split(" ", 1)[0] for word in _HELPERS) or "insula.cli" in command:
                yield f"{entry.name} {command}"
