"""What the specification of a container depends on besides its InstanceSpec: facts of this host, collected once."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from insula.errors import Invalid
from insula.host import capabilities, limits
from insula.host.cgroups import Layout
from insula.host.spawn import ENVIRONMENT
from insula.model.instance import Device

INIT_PROGRAMS = ("docker-init", "tini-static", "catatonit")
NOT_DEVICES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})  # as dockerd passes over them


class HostFacts(Struct, frozen=True, kw_only=True):
    """Plain values, so that specifications can be made for any host in tests."""

    cgroup_version: Literal[1, 2] = 2
    swap_limit: bool = True  # the kernel can limit swap for each group
    bounding: tuple[str, ...] = capabilities.NAMES  # capabilities that this host can give
    machine: str = "x86_64"  # uname -m
    apparmor: bool = False
    init: str = ""  # a static init program for `init: true`


class DeviceNode(Struct, frozen=True, kw_only=True):
    """A device node to make inside: where, what, and what the container may do with it."""

    path: str
    kind: Literal["c", "b"]
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str = "rwm"


def collect(layout: Layout) -> HostFacts:
    """Look at this host."""
    return HostFacts(
        cgroup_version=layout.version,
        swap_limit=_swap_limit(layout),
        bounding=capabilities.bounding(),
        machine=platform.machine(),
        apparmor=limits.apparmor(),
        init=_static_init(),
    )


def _swap_limit(layout: Layout) -> bool:
    if layout.version == 2:
        return Path("/proc/swaps").exists()
    return Path(layout.roots.get("memory", "/nonexistent"), "memory.memsw.limit_in_bytes").exists()


def _static_init() -> str:
    for name in INIT_PROGRAMS:
        found = shutil.which(name, path=ENVIRONMENT["PATH"] + ":/usr/libexec/podman")
        if found and _is_static(Path(found)):
            return str(Path(found).resolve())
    return ""


def _is_static(program: Path) -> bool:
    """Whether an ELF file names no dynamic loader (its program headers have no PT_INTERP), judged by its first page."""
    with program.open("rb") as file:
        return b"/ld-" not in file.read(4096)


def device_nodes(devices: Sequence[Device], *, all_of_host: bool = False) -> tuple[DeviceNode, ...]:
    """The nodes behind what was asked; a folder stands for all devices in it. With `all_of_host` (a privileged container)
    all of the host's too. Raises Invalid for a path that is no device."""
    nodes = {node.path: node for node in _below(Path("/dev"), "/dev", "rwm")} if all_of_host else {}
    for device in devices:
        source = Path(device.source)
        try:
            source = source.resolve(strict=True)
        except (OSError, RuntimeError) as fault:
            raise _no_device(device, "no such file or directory") from fault
        # dockerd walks through any folder; below /dev is where devices are, and a walk through all of a host has no end
        folder = source.is_dir() and source.is_relative_to("/dev")
        found = list(_below(source, device.target, device.permissions)) if folder else []
        if single := _node(source, device.target, device.permissions):
            found = [single]
        if not found:
            raise _no_device(device, "not a device node")
        nodes.update((node.path, node) for node in found)
    return tuple(nodes.values())


def _no_device(device: Device, why: str) -> Invalid:
    message = f'error gathering device information while adding custom device "{device.source}": {why}'
    return Invalid(message, field="devices")


def _below(folder: Path, target: str, access: str) -> Iterator[DeviceNode]:
    for entry in _entries(folder):
        if entry.name in NOT_DEVICES or entry.is_symlink():
            continue
        inside = f"{target}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), inside, access)
        elif inside != "/dev/console" and (node := _node(Path(entry.path), inside, access)):
            yield node


def _entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _node(source: Path, target: str, access: str) -> DeviceNode | None:
    info = source.lstat()
    if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        return None
    return DeviceNode(
        path=target,
        kind="c" if stat.S_ISCHR(info.st_mode) else "b",
        major=os.major(info.st_rdev),
        minor=os.minor(info.st_rdev),
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        access=access,
    )
