"""Control groups in both versions: cgroups(7), cgroup-v1 and cgroup-v2 of the kernel's admin guide.

`Layout` says what is mounted where. Pure version 2 has one tree; version 1 has one per controller; "hybrid" is version 1 with
a version 2 tree beside it that holds few or no controllers, and is used here as version 1. A `Group` is one path in all
trees of a layout. Counters are read in `cgroupstats`. Functions here touch the kernel's files and may take milliseconds:
call them through `tasks.in_thread`, but for the plain parsers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from insula.errors import HostFault, Unavailable

UNIFIED = ""  # the name of the version 2 tree among the roots


class Layout(Struct, frozen=True, kw_only=True):
    """Where the trees are: controller name (or UNIFIED, or `name=NAME`) to mount point."""

    version: Literal[1, 2]
    hybrid: bool
    roots: dict[str, str]


def parse_layout(mountinfo: str) -> Layout:
    """Read the mounts in the form of proc_pid_mountinfo(5). The first mount of a tree counts. Raises Unavailable when no
    tree is mounted."""
    roots: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) < 5 or len(tail) < 3:
            continue
        if tail[0] == "cgroup2":
            roots.setdefault(UNIFIED, fields[4])
        elif tail[0] == "cgroup":
            for name in _v1_names(tail[2]):
                roots.setdefault(name, fields[4])
    if not roots:
        raise Unavailable("No control groups are mounted on this host; mount cgroup2 at /sys/fs/cgroup.")
    version: Literal[1, 2] = 2 if set(roots) == {UNIFIED} else 1
    return Layout(version=version, hybrid=version == 1 and UNIFIED in roots, roots=roots)


def _v1_names(options: str) -> Iterator[str]:
    flags = {"rw", "ro", "noprefix", "clone_children", "xattr", "none"}
    return (word for word in options.split(",") if word not in flags and not word.startswith("release_agent="))


def detect() -> Layout:
    """The layout of this host."""
    return parse_layout(Path("/proc/self/mountinfo").read_text())


class Group(Struct, frozen=True, kw_only=True):
    """One control group: `path` below the roots of all trees, without a leading slash."""

    layout: Layout
    path: str

    def directory(self, controller: str) -> Path:
        """Its folder for one controller. Raises Unavailable when the host does not have that controller."""
        root = self.layout.roots.get(UNIFIED if self.layout.version == 2 else controller)
        if root is None:
            raise Unavailable(f"The control group controller {controller} is not mounted on this host.")
        return Path(root, self.path)

    def directories(self) -> list[Path]:
        """Its folders in all trees, whether they exist or not."""
        return [Path(root) / self.path for root in sorted(set(self.layout.roots.values()))]

    def members(self) -> Path:
        """A folder whose cgroup.procs lists its processes: in version 1 that of `pids`, or of any other tree."""
        if self.layout.version == 2:
            return Path(self.layout.roots[UNIFIED], self.path)
        for controller in ("pids", "freezer", "devices", "memory"):
            if root := self.layout.roots.get(controller):
                return Path(root, self.path)
        return self.directories()[0]


def read(path: Path) -> str:
    """The file's text, empty when it (or the group) is not there."""
    try:
        return path.read_text()
    except (FileNotFoundError, OSError):
        return ""


def table(text: str) -> dict[str, int]:
    """Lines of `name number` (memory.stat, cpu.stat, memory.events...) as a mapping."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def pids(group: Group) -> list[int]:
    """All processes in it and in the groups below it, as pids of the host, ascending."""
    found: set[int] = set()
    for folder, _, _ in os.walk(group.members()):
        found.update(int(line) for line in read(Path(folder, "cgroup.procs")).split())
    return sorted(found)


def oom_kills(group: Group) -> int:
    """How many of its processes the kernel has killed for want of memory."""
    try:
        folder = group.directory("memory")
    except Unavailable:
        return 0
    name = "memory.events" if group.layout.version == 2 else "memory.oom_control"
    return table(read(folder / name)).get("oom_kill", 0)


def frozen(group: Group) -> bool:
    """Whether it is frozen, wholly or so far in part."""
    if group.layout.version == 2:
        return read(group.directory("") / "cgroup.freeze").strip() == "1"
    try:
        return read(group.directory("freezer") / "freezer.state").strip() in ("FROZEN", "FREEZING")
    except Unavailable:
        return False


def freeze(group: Group, frozen: bool, *, deadline_s: float = 5.0) -> None:
    """Stop or let go all of its processes and return when the kernel says so. Raises HostFault after `deadline_s` seconds, with
    the processes let go.

    Version 1 gives no notice, wants the order repeated while processes fork, and can stick half-way, for a process whose
    threads are frozen one by one in the middle of an execve: so its state is read every millisecond, and now and then
    it is thawed and begun anew.
    """
    limit, tries = time.monotonic() + deadline_s, 0
    while True:
        _order(group, frozen)
        if _is_frozen(group) == frozen:
            return
        tries += 1
        if time.monotonic() > limit:
            _order(group, False)
            raise HostFault(f"The control group {group.path} could not be {'frozen' if frozen else 'thawed'}.")
        if group.layout.version == 1 and frozen and tries % 20 == 0:
            _order(group, False)
            time.sleep(0.01)
        time.sleep(0.001)


def _order(group: Group, frozen: bool) -> None:
    if group.layout.version == 2:
        file, word = group.directory("") / "cgroup.freeze", "1" if frozen else "0"
    else:
        file, word = group.directory("freezer") / "freezer.state", "FROZEN" if frozen else "THAWED"
    try:
        file.write_text(word)
    except OSError as fault:
        raise HostFault(f"Cannot write {word} to {file}: {fault.strerror}.", code=fault.errno) from fault


def _is_frozen(group: Group) -> bool:
    if group.layout.version == 2:
        return table(read(group.directory("") / "cgroup.events")).get("frozen") == 1
    return read(group.directory("freezer") / "freezer.state").strip() == "FROZEN"


def kill(group: Group) -> list[int]:
    """Send SIGKILL to every process in it and below; frozen ones are thawed, for version 1 delivers it only then. Returns the
    pids that were there."""
    if group.layout.version == 2:
        found = pids(group)
        with contextlib.suppress(OSError):  # since Linux 5.14
            (group.directory("") / "cgroup.kill").write_text("1")
            return found
    found = pids(group)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(Unavailable):
        for folder, _, _ in os.walk(group.directory("freezer")):
            with contextlib.suppress(OSError):
                Path(folder, "freezer.state").write_text("THAWED")
    return found


def remove(group: Group, *, deadline_s: float = 5.0) -> None:
    """Kill what is left in it and remove it with all groups below, in every tree. Repeatable. Raises HostFault when it
    is still in use after `deadline_s` seconds (a process that cannot be killed)."""
    limit = time.monotonic() + deadline_s
    pause = 0.0005
    remaining = [folder for folder in group.directories() if folder.is_dir()]
    while remaining := [folder for folder in remaining if not _remove_tree(folder)]:
        left = kill(group)
        if time.monotonic() > limit:
            raise HostFault(f"The control group {remaining[0]} is still in use, by processes {left}.")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def _remove_tree(folder: Path) -> bool:
    """Remove a group's folder and those below; False when one is still in use."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        below = [Path(top, name) for top, names, _ in os.walk(folder, topdown=False) for name in names]
        for child in below:
            with contextlib.suppress(OSError):
                child.rmdir()
        with contextlib.suppress(OSError):
            folder.rmdir()
        return not folder.exists()
    return True
