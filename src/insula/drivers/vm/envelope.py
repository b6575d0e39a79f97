"""A machine's control group: QEMU's process with the limits of the instance. (For containers the OCI runtime does this.)

The limits go to QEMU as a whole: the guest's CPUs and QEMU's own threads share the CPU time, and `memory_bytes` must leave
room above the guest's memory. Files and values: the kernel's admin guide, cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

from pathlib import Path

from insula.errors import HostFault
from insula.host.cgroups import Group
from insula.model.instance import Resources

Setting = tuple[str, str, str]  # controller, file, value
_V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "blkio", "pids", "freezer")


def settings(resources: Resources, version: int) -> list[Setting]:
    """What to write where for these limits. Pure."""
    return _v2(resources) if version == 2 else _v1(resources)


def _v1(resources: Resources) -> list[Setting]:
    wishes: list[tuple[str, str, int | str | None]] = [
        ("cpu", "cpu.shares", resources.cpu_shares),
        ("cpu", "cpu.cfs_period_us", resources.cpu_period_us),
        ("cpu", "cpu.cfs_quota_us", resources.cpu_quota_us),
        ("cpuset", "cpuset.cpus", resources.cpuset_cpus),
        ("cpuset", "cpuset.mems", resources.cpuset_mems),
        ("memory", "memory.limit_in_bytes", resources.memory_bytes),
        ("memory", "memory.soft_limit_in_bytes", resources.memory_reservation_bytes),
        ("memory", "memory.memsw.limit_in_bytes", resources.memory_swap_bytes),
        ("pids", "pids.max", _no_limit(resources.pids_limit)),
        ("blkio", "blkio.weight", resources.blkio_weight),
    ]
    return [(controller, file, str(value)) for controller, file, value in wishes if value not in (None, "")]


def _v2(resources: Resources) -> list[Setting]:
    wishes: list[tuple[str, int | str | None]] = [
        ("cpu.weight", cpu_weight(resources.cpu_shares)),
        ("cpu.max", _cpu_max(resources)),
        ("cpuset.cpus", resources.cpuset_cpus),
        ("cpuset.mems", resources.cpuset_mems),
        ("memory.max", resources.memory_bytes),
        ("memory.low", resources.memory_reservation_bytes),
        ("memory.swap.max", _swap(resources)),
        ("pids.max", _no_limit(resources.pids_limit)),
        ("io.weight", resources.blkio_weight),
    ]
    return [("", file, str(value)) for file, value in wishes if value not in (None, "")]


def cpu_weight(shares: int | None) -> int | None:
    """Version 1's shares (2 to 262144) as version 2's weight (1 to 10000), by the formula that runc and crun use."""
    return None if not shares else 1 + (max(2, min(shares, 262144)) - 2) * 9999 // 262142


def _cpu_max(resources: Resources) -> str | None:
    if resources.cpu_quota_us is None:
        return None
    quota = "max" if resources.cpu_quota_us < 0 else str(resources.cpu_quota_us)
    return f"{quota} {resources.cpu_period_us or 100_000}"


def _swap(resources: Resources) -> str | None:
    total, memory = resources.memory_swap_bytes, resources.memory_bytes
    if total is None or (total >= 0 and memory is None):
        return None
    return "max" if total < 0 else str(max(0, total - (memory or 0)))


def _no_limit(pids: int | None) -> str | None:
    return None if pids is None else ("max" if pids <= 0 else str(pids))


def enter(group: Group, pid: int, resources: Resources) -> None:
    """Make the group, set its limits, and put the process with all its threads into it. Raises HostFault."""
    if group.layout.version == 2:
        _switch_on(group)
    for folder in _folders(group):
        folder.mkdir(parents=True, exist_ok=True)
        if group.layout.version == 1 and (folder / "cpuset.cpus").exists():
            _inherit_cpuset(folder)
    limit(group, resources)
    for folder in _folders(group):
        _write(folder / "cgroup.procs", str(pid))


def limit(group: Group, resources: Resources) -> None:
    """Change the limits of a group that exists. Raises HostFault, or Unavailable for a controller that is not there."""
    wishes = [
        (group.directory(controller) / file, value)
        for controller, file, value in settings(resources, group.layout.version)
    ]
    # Memory alone may not exceed memory plus swap, at no moment: what is refused is tried again after the others.
    for path, value in [wish for wish in wishes if not _accepted(*wish)]:
        _write(path, value)


def _accepted(path: Path, value: str) -> bool:
    try:
        _write(path, value)
    except HostFault:
        return False
    return True


def _folders(group: Group) -> list[Path]:
    """The trees that count or limit something; in version 1 not those of systemd, devices and the rest."""
    if group.layout.version == 2:
        return [group.directory("")]
    found = [group.directory(name) for name in _V1_CONTROLLERS if name in group.layout.roots]
    return list(dict.fromkeys(found))


def _switch_on(group: Group) -> None:
    """Version 2: switch the controllers on in every folder above the group's own."""
    root = Path(group.layout.roots[""])
    above = [root]
    for part in Path(group.path).parts[:-1]:
        above.append(above[-1] / part)
    for folder in above:
        folder.mkdir(exist_ok=True)
        offered = (folder / "cgroup.controllers").read_text().split()
        wanted = " ".join(f"+{name}" for name in offered if name in {"cpu", "cpuset", "memory", "pids", "io"})
        if wanted:
            _write(folder / "cgroup.subtree_control", wanted)


def _inherit_cpuset(folder: Path) -> None:
    """Version 1: a new cpuset group is empty and takes no process until it has CPUs and memory nodes; so for its parents."""
    if folder.parent.joinpath("cpuset.cpus").exists() and not (folder / "cpuset.cpus").read_text().strip():
        _inherit_cpuset(folder.parent)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (folder / name).read_text().strip():
                _write(folder / name, (folder.parent / name).read_text().strip())


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as fault:
        raise HostFault(f"Cannot write {value!r} to {path}: {fault.strerror}.", code=fault.errno) from fault
