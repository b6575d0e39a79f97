"""This machine and this process: rights, control groups, room, ports."""

from __future__ import annotations

import grp
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from insula.cli import ports
from insula.cli.doctor.features import existing
from insula.cli.doctor.finding import Finding, State, Subject
from insula.cli.settings import api_port
from insula.errors import Unavailable
from insula.host import capabilities, cgroups
from insula.host.cgroups import UNIFIED, Layout

AREA = "host"
MIB = 1 << 20
NEEDED_CAPABILITIES = frozenset(
    [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_SYS_CHROOT",
        "CAP_SYS_ADMIN",
        "CAP_MKNOD",
        "CAP_AUDIT_WRITE",
        "CAP_SETFCAP",
    ]
)  # what Insula itself and a container without special wishes use
NEEDED_CONTROLLERS = ("memory", "pids", "cpu")
_CONTROLLERS = {
    "cpu": "limits of CPU time",
    "cpuset": "pinning to CPUs",
    "memory": "limits of memory",
    "pids": "limits of the number of processes",
    "io": "limits of disk traffic",
    "freezer": "pausing containers",
    "devices": "keeping containers from devices of the host",
}
_V1_NAMES = {"io": "blkio"}
_ALWAYS_IN_V2 = {"freezer", "devices"}  # part of the core, and done by BPF programs


def findings(subject: Subject) -> list[Finding]:
    """All of this file. Blocking."""
    return [
        daemon(subject),
        rights(os.geteuid()),
        settings(subject),
        *bounding(capabilities.bounding()),
        *control_groups(),
        memory(Path("/proc/meminfo").read_text()),
        disk(existing(subject.paths.data)),
        port(subject),
        group(subject.settings.socket_group),
        architecture(platform.machine()),
    ]


def daemon(subject: Subject) -> Finding:
    """Whether it runs; either is fine."""
    running = subject.running
    if running is None:
        return _line("Insula", State.OK, "does not run", advice="start it with: insula up --detach")
    found = f"runs (pid {running.pid}, version {running.version})" if running.ready else f"starts (pid {running.pid})"
    return _line("Insula", State.OK, found)


def rights(uid: int) -> Finding:
    """Root or not."""
    if uid == 0:
        return _line("root", State.OK, "yes")
    return _line("root", State.MISSING, f"user id {uid}", lost="everything", advice="use sudo")


def settings(subject: Subject) -> Finding:
    """Whether the settings file can be read."""
    if subject.fault:
        advice = "correct the file; insula explain settings lists what it may hold"
        return _line("settings", State.MISSING, subject.fault, lost="Insula does not start", advice=advice)
    there = subject.paths.config.exists()
    return _line("settings", State.OK, str(subject.paths.config) if there else "all defaults")


def bounding(held: Sequence[str]) -> list[Finding]:
    """What this process, and so everything that it starts, can never have."""
    absent = [name for name in capabilities.NAMES if name not in held]
    if not absent:
        return [_line("capabilities", State.OK, "all of them")]
    found = []
    if needed := [name for name in absent if name in NEEDED_CAPABILITIES]:
        lost = "containers" if "CAP_SYS_ADMIN" not in needed else "everything"
        advice = "start Insula outside of a container, or give that container these capabilities"
        found.append(
            _line("capabilities", State.MISSING, f"{' '.join(needed)} cannot be had", lost=lost, advice=advice)
        )
    if others := [name for name in absent if name not in NEEDED_CAPABILITIES]:
        lost = "--privileged and --cap-add of these" + (
            ", limits raised with --ulimit" if "CAP_SYS_RESOURCE" in others else ""
        )
        advice = "nothing inside of this machine; whoever starts it must give them"
        found.append(_line("capabilities", State.LOST, f"{' '.join(others)} cannot be had", lost=lost, advice=advice))
    return found


def control_groups() -> list[Finding]:
    """The layout and the controllers in it."""
    try:
        layout = cgroups.detect()
    except Unavailable as fault:
        advice = "mount -t cgroup2 none /sys/fs/cgroup"
        return [_line("cgroups", State.MISSING, str(fault), lost="limits and counters", advice=advice)]
    return judge_layout(layout, available_controllers(layout))


def available_controllers(layout: Layout) -> frozenset[str]:
    """The controllers, in the names of version 2."""
    if layout.version == 2:
        listed = Path(layout.roots[UNIFIED], "cgroup.controllers").read_text().split()
        return frozenset(listed) | _ALWAYS_IN_V2
    return frozenset(name for name in _CONTROLLERS if _V1_NAMES.get(name, name) in layout.roots)


def judge_layout(layout: Layout, controllers: frozenset[str]) -> list[Finding]:
    """What the layout and its controllers mean."""
    found = [_line("cgroups", State.OK, "version 2")]
    if layout.version == 1:
        kind = "version 1, hybrid" if layout.hybrid else "version 1"
        lost = (
            "crun refuses the hybrid layout; runc is used" if layout.hybrid else "no delegation, coarser memory limits"
        )
        advice = "boot with systemd.unified_cgroup_hierarchy=1"
        found = [_line("cgroups", State.LOST, kind, lost=lost, advice=advice)]
    for name, lost in _CONTROLLERS.items():
        if name not in controllers:
            state = State.MISSING if name in NEEDED_CONTROLLERS else State.LOST
            word = name if layout.version == 2 else _V1_NAMES.get(name, name)
            advice = f"boot with cgroup_enable={word}, or use a kernel that has it"
            found.append(_line(f"cgroup {word}", state, "no such controller", lost=lost, advice=advice))
    return found


def memory(meminfo: str) -> Finding:
    """What can be given to instances now: proc_meminfo(5)."""
    table = {
        line.partition(":")[0]: int(line.split()[1]) // 1024 for line in meminfo.splitlines() if len(line.split()) > 1
    }
    free, total = table.get("MemAvailable", 0), table.get("MemTotal", 0)
    found = f"{free} of {total} MiB free"
    if free >= 768:
        return _line("memory", State.OK, found)
    state = State.MISSING if free < 192 else State.LOST
    return _line("memory", state, found, lost="room for machines", advice="end something, or add memory")


def disk(folder: Path) -> Finding:
    """Room and inodes where the data lies."""
    usage, nodes = shutil.disk_usage(folder), os.statvfs(folder)
    return judge_disk(str(folder), usage.free // MIB, nodes.f_favail if nodes.f_files else None)


def judge_disk(folder: str, free_mib: int, inodes: int | None) -> Finding:
    """`inodes` is None for a file system that does not count them."""
    few = inodes is not None and inodes < 50_000
    found = f"{free_mib} MiB free at {folder}" + (f", {inodes} inodes" if few else "")
    if free_mib >= 4096 and not few:
        return _line("disk", State.OK, found)
    state = State.MISSING if free_mib < 256 or (inodes is not None and inodes < 1000) else State.LOST
    return _line("disk", state, found, lost="room for images", advice="docker system prune, or a larger disk")


def port(subject: Subject) -> Finding:
    """Whether the API's port can be had."""
    running, address = subject.running, subject.settings.api_address
    if running is not None and running.ready:
        return _line("API port", State.OK, f"Insula listens at {running.api}")
    wanted = api_port(subject.settings, subject.paths.root)
    if wanted == 0:
        return _line("API port", State.OK, "any free one")
    if ports.is_free(address, wanted):
        return _line("API port", State.OK, f"{address}:{wanted} is free")
    other = ports.holder(address, wanted) or "another program"
    return _line(
        "API port",
        State.MISSING,
        f"{other} listens on {address}:{wanted}",
        lost="Insula does not start",
        advice=f"end that program, or set api_port in {subject.paths.config}",
    )


def group(name: str) -> Finding:
    """The group that may use the Docker socket."""
    try:
        members = grp.getgrnam(name).gr_mem
    except KeyError:
        advice = f"groupadd --system {name}, then usermod -aG {name} USER"
        return _line("group", State.LOST, f"no group {name}", lost="docker for users that are not root", advice=advice)
    return _line("group", State.OK, f"{name}: {', '.join(members) or 'nobody in it'}")


def architecture(machine: str) -> Finding:
    """What the processor is."""
    if machine == "x86_64":
        return _line("processor", State.OK, f"{machine}, {os.cpu_count()} CPUs")
    advice = "use a machine with x86_64 for these"
    return _line("processor", State.LOST, machine, lost="virtual machines and the demo machine", advice=advice)


def _line(name: str, state: State, found: str, *, lost: str = "", advice: str = "") -> Finding:
    return Finding(area=AREA, name=name, state=state, found=found, lost=lost, advice=advice)
