"""Which limits this host's kernel can set on a group, by the files of its control groups (cgroup-v1 and cgroup-v2 of the kernel's
admin guide), and which processors and memory nodes there are.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from msgspec import Struct

from insula.host.cgroups import UNIFIED, Layout, read

_RANGES = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*\Z", re.ASCII)
_MOST = 8192


class Limits(Struct, frozen=True, kw_only=True):
    """What can be limited. `cpus` and `mems` in the list format of cpuset(7), empty when unknown."""

    memory: bool = True
    swap: bool = True
    swappiness: bool = True
    reservation: bool = True
    oom_kill_disable: bool = True
    pids: bool = True
    shares: bool = True
    cfs: bool = True
    realtime: bool = True
    cpuset: bool = True
    blkio_weight: bool = True
    blkio_weight_device: bool = True
    blkio_throttle: bool = True
    apparmor: bool = False
    cpus: str = ""
    mems: str = ""


def detect(layout: Layout) -> Limits:
    """Look at this host. Reads a dozen small files."""
    found = _second(layout) if layout.version == 2 else _first(layout)
    return msgspec.structs.replace(found, apparmor=apparmor())


def apparmor() -> bool:
    """Whether AppArmor confines programs here."""
    return read(Path("/sys/module/apparmor/parameters/enabled")).strip() == "Y"


def _second(layout: Layout) -> Limits:
    root = Path(layout.roots[UNIFIED])
    have = set(read(root / "cgroup.controllers").split())
    memory, io, cpuset = "memory" in have, "io" in have, "cpuset" in have
    return Limits(
        memory=memory,
        swap=memory and Path("/proc/swaps").exists(),
        swappiness=False,
        reservation=memory,
        oom_kill_disable=False,
        pids="pids" in have,
        shares="cpu" in have,
        cfs="cpu" in have,
        realtime=False,
        cpuset=cpuset,
        blkio_weight=io,
        blkio_weight_device=io,
        blkio_throttle=io,
        cpus=read(root / "cpuset.cpus.effective").strip() if cpuset else "",
        mems=read(root / "cpuset.mems.effective").strip() if cpuset else "",
    )


def _first(layout: Layout) -> Limits:
    def has(controller: str, name: str) -> bool:
        root = layout.roots.get(controller)
        return root is not None and Path(root, name).exists()

    cpuset = layout.roots.get("cpuset")
    return Limits(
        memory="memory" in layout.roots,
        swap=has("memory", "memory.memsw.limit_in_bytes"),
        swappiness=has("memory", "memory.swappiness"),
        reservation=has("memory", "memory.soft_limit_in_bytes"),
        oom_kill_disable=has("memory", "memory.oom_control"),
        pids="pids" in layout.roots,
        shares=has("cpu", "cpu.shares"),
        cfs=has("cpu", "cpu.cfs_quota_us"),
        realtime=has("cpu", "cpu.rt_runtime_us"),
        cpuset=cpuset is not None,
        blkio_weight=has("blkio", "blkio.weight"),
        blkio_weight_device=has("blkio", "blkio.weight_device"),
        blkio_throttle=has("blkio", "blkio.throttle.read_bps_device"),
        cpus=read(Path(cpuset, "cpuset.cpus")).strip() if cpuset else "",
        mems=read(Path(cpuset, "cpuset.mems")).strip() if cpuset else "",
    )


def numbers(text: str) -> set[int] | None:
    """The list format of cpuset(7), `0-3,7`, as numbers; None when it is not in that format."""
    if not text:
        return set()
    if not _RANGES.match(text):
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not int(first) <= int(last or first) < _MOST:
            return None
        found |= set(range(int(first), int(last or first) + 1))
    return found
