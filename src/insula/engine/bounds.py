"""What the kernel and a runtime can be told: numbers, paths and texts beyond it are refused before anything is made.

A runtime that meets such a value fails when the container starts, in the words of a parser; here it is told when it is asked
for, with the field. Sources: cgroups(7), the kernel's limits (PID_MAX_LIMIT, cpu.max), runc's specification (int64 numbers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from insula.errors import Invalid
from insula.host.limits import numbers
from insula.model.instance import Device, InstanceConfig, MountConfig, Resources, Security, Ulimit

INT64 = (1 << 63) - 1
LEAST_MEMORY = 6 * 1024 * 1024
_MOST_PIDS = 4_194_304  # PID_MAX_LIMIT of 64-bit kernels
_MOST_QUOTA_US = (1 << 44) - 1  # MAX_BW of kernel/sched
_PERIOD_US = (1000, 1_000_000)
_MOST_MODE = 0o7777
_MOST_PATH, _MOST_NAME = 4095, 255  # PATH_MAX and NAME_MAX of limits.h, without the final NUL
_MOST_HOSTNAME = 64  # sethostname(2)
_NAMESPACED = frozenset(  # as docker's `--sysctl` lists them; what begins with net. or fs.mqueue. is namespaced too
    {"kernel.domainname", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
     "kernel.shmmni", "kernel.shm_rmid_forced"}
)  # fmt: skip
_SYSCTL = re.compile(r"[A-Za-z0-9_]+([./][A-Za-z0-9_:-]+)+\Z")
_TMPFS = re.compile(  # tmpfs(5) and the flags of mount(8)
    r"(size=\d{1,19}[kmgKMG%]?|nr_(blocks|inodes)=\d{1,19}[kmgKMG]?|mode=[0-7]{1,4}|[ug]id=\d{1,10}|mpol=[a-z:,0-9-]+"
    r"|huge=(never|always|within_size|advise)|ro|rw|defaults|r?bind|(r?(private|shared|slave|unbindable))"
    r"|(no)?(suid|dev|exec|(dir|rel|strict)?atime)|sync|async|dirsync)\Z",
    re.ASCII,
)
_encode = msgspec.json.Encoder().encode


def check_bounds(config: InstanceConfig) -> None:
    """Raises Invalid for a value that no runtime could be told."""
    check_texts(config)
    check_resources(config.resources)
    _check_security(config.security)
    for limit in config.ulimits:
        _check_ulimit(limit)
    for device in config.devices:
        _check_device(device)
    for mount in config.mounts:
        _check_mount(mount)
    _within(config.shm_size_bytes, 0, INT64, "shm_size_bytes")
    for name in config.sysctls:
        _check_sysctl(name)
    for field in ("hostname", "domainname"):
        if len(getattr(config, field).encode()) > _MOST_HOSTNAME:
            raise Invalid(f"the {field} is too long: at most {_MOST_HOSTNAME} bytes are possible", field=field)


def check_texts(record: Any) -> None:
    """No text in a record holds a NUL byte, which ends a text for the kernel. Raises Invalid with the text."""
    if rb"\u0000" not in _encode(record):
        return
    for text in _texts(msgspec.to_builtins(record)):
        if "\0" in text:
            raise Invalid(f"{text[:80]!r} holds a NUL byte, which no text may")


def _texts(value: Any) -> Iterable[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value


def check_resources(resources: Resources) -> None:
    """Raises Invalid for an envelope that cannot be set."""
    _within(resources.cpu_shares, 0, INT64, "cpu_shares")
    _within(resources.cpu_quota_us, -INT64, _MOST_QUOTA_US, "cpu_quota_us")
    _within(resources.cpu_period_us, *_PERIOD_US, "cpu_period_us")
    _within(resources.pids_limit, -1, _MOST_PIDS, "pids_limit")
    _within(resources.memory_reservation_bytes, 0, INT64, "memory_reservation_bytes")
    _within(resources.memory_swap_bytes, -1, INT64, "memory_swap_bytes")
    _within(resources.memory_bytes, 0, INT64, "memory_bytes")
    memory, swap = resources.memory_bytes, resources.memory_swap_bytes
    if memory is not None and 0 < memory < LEAST_MEMORY:
        raise Invalid("Minimum memory limit allowed is 6MB", field="resources.memory_bytes")
    if memory and swap is not None and 0 < swap < memory:
        message = "Minimum memoryswap limit should be larger than memory limit, see usage"
        raise Invalid(message, field="resources.memory_swap_bytes")
    _within(resources.memory_swappiness, 0, 100, "memory_swappiness")
    for name in ("blkio_weight_devices", "read_bps", "write_bps", "read_iops", "write_iops"):
        for limit in getattr(resources, name):
            check_path(limit.path, name)
            _within(limit.value, 0, INT64, name)
    _check_set(resources.cpuset_cpus, "cpus")
    _check_set(resources.cpuset_mems, "mems")


def _within(value: int | None, least: int, most: int, field: str) -> None:
    if value is not None and not least <= value <= most:
        raise Invalid(f"{field} of {value} is not possible: it must be from {least} to {most}", field=field)


def _check_set(text: str | None, what: str) -> None:
    if numbers(text or "") is None:
        raise Invalid(f"Invalid value {(text or '')[:80]} for cpuset {what}.", field=f"cpuset_{what}")


def _check_ulimit(limit: Ulimit) -> None:
    _within(limit.soft, -1, INT64, f"ulimit {limit.name}")
    _within(limit.hard, -1, INT64, f"ulimit {limit.name}")


def _check_device(device: Device) -> None:
    check_path(device.source, "devices")
    check_path(device.target, "devices")


def _check_mount(mount: MountConfig) -> None:
    check_path(mount.target, "mounts")
    _within(mount.size_bytes, 0, INT64, "size_bytes")
    _within(mount.mode, 0, _MOST_MODE, "mode")
    wrong = [option for option in mount.options if not _TMPFS.match(option)] if mount.kind == "tmpfs" else []
    if wrong:
        raise Invalid(f"invalid tmpfs option {wrong[0][:80]!r}", field="mounts")


def _check_sysctl(name: str) -> None:
    dotted = name.replace("/", ".")
    if not _SYSCTL.match(name) or not (dotted in _NAMESPACED or dotted.startswith(("net.", "fs.mqueue."))):
        raise Invalid(f"sysctl {name[:80]!r} is not in a separate kernel namespace", field="sysctls")


def _check_security(security: Security) -> None:
    for path in (*(security.masked_paths or ()), *(security.readonly_paths or ())):
        check_path(path, "security")


def check_path(path: str, field: str) -> None:
    """An absolute path that a file system can hold. Raises Invalid."""
    if not path.startswith("/"):
        raise Invalid(f"the path {path[:80]!r} must be absolute", field=field)
    raw = path.encode(errors="surrogatepass")
    if len(raw) > _MOST_PATH or any(len(name) > _MOST_NAME for name in raw.split(b"/")):
        raise Invalid(f"the path {path[:80]!r}... is too long: names have at most {_MOST_NAME} bytes", field=field)
