"""Reading a control group's counters, in both versions, into one record: cpu, memory, pids, block I/O."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct, field

from insula.errors import Unavailable
from insula.host.cgroups import Group, read, table

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Counters(Struct, frozen=True, kw_only=True):
    """One reading: nanoseconds and bytes since the group was made. A limit of 0 is no limit."""

    cpu_total_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_detail: dict[str, int] = field(default_factory=dict)
    pids: int = 0
    pids_limit: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    memory_max_bytes: int = 0
    percpu_ns: tuple[int, ...] = ()
    periods: int = 0
    io_bytes: tuple[DeviceCount, ...] = ()
    io_operations: tuple[DeviceCount, ...] = ()


class DeviceCount(Struct, frozen=True):
    """One counter of one block device; `operation` in the kernel's words: read, write, and what else it counts."""

    major: int
    minor: int
    operation: str
    value: int


def counters(group: Group) -> Counters:
    """Read them now; zeros for what the host does not count and for a group that is gone."""
    return _v2(group.directory("")) if group.layout.version == 2 else _v1(group)


def _limit(text: str) -> int:
    """`max`, and version 1's largest page-aligned number, are no limit."""
    word = text.strip()
    return int(word) if word.isdigit() and int(word) < 1 << 62 else 0


def _number(text: str) -> int:
    word = text.strip()
    return int(word) if word.isdigit() else 0


def _v2(folder: Path) -> Counters:
    cpu = table(read(folder / "cpu.stat"))
    io = read(folder / "io.stat")
    read_bytes, write_bytes = parse_io_stat(io)
    return Counters(
        cpu_total_ns=cpu.get("usage_usec", 0) * 1000,
        cpu_user_ns=cpu.get("user_usec", 0) * 1000,
        cpu_system_ns=cpu.get("system_usec", 0) * 1000,
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        memory_bytes=_number(read(folder / "memory.current")),
        memory_limit_bytes=_limit(read(folder / "memory.max")),
        memory_detail=table(read(folder / "memory.stat")),
        pids=_number(read(folder / "pids.current")),
        pids_limit=_limit(read(folder / "pids.max")),
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        periods=cpu.get("nr_periods", 0),
        io_bytes=tuple(devices_of_io(io, {"rbytes": "read", "wbytes": "write"})),
        io_operations=tuple(devices_of_io(io, {"rios": "read", "wios": "write"})),
    )


def _v1(group: Group) -> Counters:
    def text(controller: str, name: str) -> str:
        try:
            return read(group.directory(controller) / name)
        except Unavailable:
            return ""

    split = table(text("cpuacct", "cpuacct.stat"))
    throttle = table(text("cpu", "cpu.stat"))
    served = text("blkio", "blkio.throttle.io_service_bytes_recursive") or text(
        "blkio", "blkio.throttle.io_service_bytes"
    )
    done = text("blkio", "blkio.throttle.io_serviced_recursive") or text("blkio", "blkio.throttle.io_serviced")
    read_bytes, write_bytes = parse_blkio(served)
    return Counters(
        cpu_total_ns=_number(text("cpuacct", "cpuacct.usage")),
        cpu_user_ns=split.get("user", 0) * TICK_NS,
        cpu_system_ns=split.get("system", 0) * TICK_NS,
        throttled_periods=throttle.get("nr_throttled", 0),
        throttled_ns=throttle.get("throttled_time", 0),
        memory_bytes=_number(text("memory", "memory.usage_in_bytes")),
        memory_limit_bytes=_limit(text("memory", "memory.limit_in_bytes")),
        memory_detail=table(text("memory", "memory.stat")),
        pids=_number(text("pids", "pids.current")),
        pids_limit=_limit(text("pids", "pids.max")),
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        memory_max_bytes=_number(text("memory", "memory.max_usage_in_bytes")),
        percpu_ns=tuple(int(word) for word in text("cpuacct", "cpuacct.usage_percpu").split() if word.isdigit()),
        periods=throttle.get("nr_periods", 0),
        io_bytes=tuple(devices_of_blkio(served)),
        io_operations=tuple(devices_of_blkio(done)),
    )


def devices_of_io(text: str, words: Mapping[str, str]) -> Iterator[DeviceCount]:
    """Version 2's io.stat, by device: the counters that `words` names, under the names it gives them."""
    for line in text.splitlines():
        device, *pairs = line.split() or [""]
        major, _, minor = device.partition(":")
        for key, _, value in (pair.partition("=") for pair in pairs):
            if key in words and (major + minor + value).isdigit():
                yield DeviceCount(int(major), int(minor), words[key], int(value))


def devices_of_blkio(text: str) -> Iterator[DeviceCount]:
    """Version 1's `MAJ:MIN Operation N` lines."""
    for line in text.splitlines():
        words = line.split()
        major, _, minor = words[0].partition(":") if words else ("", "", "")
        if len(words) == 3 and (major + minor + words[2]).isdigit():
            yield DeviceCount(int(major), int(minor), words[1].lower(), int(words[2]))


def parse_io_stat(text: str) -> tuple[int, int]:
    """Bytes read and written over all devices, from version 2's `MAJ:MIN rbytes=N wbytes=N ...`."""
    totals = {"rbytes": 0, "wbytes": 0}
    for word in text.split():
        key, equals, value = word.partition("=")
        if equals and key in totals and value.isdigit():
            totals[key] += int(value)
    return totals["rbytes"], totals["wbytes"]


def parse_blkio(text: str) -> tuple[int, int]:
    """The same from version 1's `MAJ:MIN Read N` lines."""
    totals = {"Read": 0, "Write": 0}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in totals and words[2].isdigit():
            totals[words[1]] += int(words[2])
    return totals["Read"], totals["Write"]
