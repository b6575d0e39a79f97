"""What processes cost, read from /proc (proc(5)): proportional and resident memory, CPU time, bytes written to disks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

TICKS = os.sysconf("SC_CLK_TCK")


class Cost(Struct, frozen=True):
    """Of a set of processes. Proportional memory (PSS) divides shared pages among those that map them."""

    pss_bytes: int = 0
    rss_bytes: int = 0
    cpu_s: float = 0.0
    written_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.pss_bytes + other.pss_bytes,
            self.rss_bytes + other.rss_bytes,
            self.cpu_s + other.cpu_s,
            self.written_bytes + other.written_bytes,
        )


def parse_rollup(text: str) -> tuple[int, int]:
    """(PSS, RSS) in bytes of an smaps_rollup file."""
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return int(fields["Pss"].split()[0]) * 1024, int(fields["Rss"].split()[0]) * 1024


def parse_cpu(stat: str) -> float:
    """Seconds of CPU, user and system, of a stat file; its second field may hold spaces and parentheses."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def parse_written(text: str) -> int:
    """Bytes sent to the storage layer, less those of truncated page cache, of an io file."""
    fields = dict(line.split(": ", 1) for line in text.splitlines())
    return int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"])


def cost(pids: Iterable[int]) -> Cost:
    """Of these processes together; those that have ended count nothing."""
    total = Cost()
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        try:
            pss, rss = parse_rollup((folder / "smaps_rollup").read_text())
            cpu = parse_cpu((folder / "stat").read_text())
            total += Cost(pss, rss, cpu, parse_written((folder / "io").read_text()))
        except (OSError, KeyError):
            continue
    return total


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of CPU alone, cheaper than `cost`."""
    total = 0.0
    for pid in pids:
        try:
            total += parse_cpu(Path(f"/proc/{pid}/stat").read_text())
        except OSError:
            continue
    return total


def command_lines() -> dict[int, list[str]]:
    """The arguments of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            except OSError:
                continue
    return found


def helpers(mark: str, *, names: Iterable[str]) -> list[int]:
    """Processes of these program names whose arguments mention `mark`, a folder of one private installation."""
    wanted = frozenset(names)
    return [
        pid
        for pid, argv in command_lines().items()
        if argv and Path(argv[0]).name in wanted and any(mark in word for word in argv)
    ]


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def load_average() -> float:
    """How many tasks wanted to run over the last minute."""
    return os.getloadavg()[0]
