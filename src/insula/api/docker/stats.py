"""`docker stats`: the counters of a container, once or every second."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from insula import clock
from insula.api.docker.containers_inspect import NEVER
from insula.api.docker.route import Call, Route
from insula.api.web import encode, json_response, streaming
from insula.drivers.driver import Stats
from insula.engine.contract import Engine, Instance
from insula.errors import NotFound
from insula.host.cgroupstats import DeviceCount
from insula.tasks import in_thread

_INTERVAL_S = 1.0
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_HOST_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # the limit of what has none
_COUNTERS = ("bytes", "packets", "errors", "dropped")


def system_cpu_ns(stat: str) -> int:
    """CPU time of the whole host from the text of /proc/stat (proc_stat(5)): what CLIs divide a container's share by. Guest
    time is part of user time already."""
    fields = stat.split("\n", 1)[0].split()[1:9]
    return sum(int(each) for each in fields) * _TICK_NS


def cpu_words(stats: Stats, system_ns: int, cpus: int) -> dict[str, Any]:
    """`cpu_stats`, and one reading later `precpu_stats`."""
    return {
        "cpu_usage": {
            "total_usage": stats.cpu_total_ns,
            "usage_in_kernelmode": stats.cpu_system_ns,
            "usage_in_usermode": stats.cpu_user_ns,
            **({"percpu_usage": list(stats.percpu_ns)} if stats.percpu_ns else {}),
        },
        "system_cpu_usage": system_ns,
        "online_cpus": cpus,
        "throttling_data": {
            "periods": stats.periods,
            "throttled_periods": stats.throttled_periods,
            "throttled_time": stats.throttled_ns,
        },
    }


EMPTY_CPU: dict[str, Any] = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}


def stats_words(
    instance: Instance,
    stats: Stats,
    cpu: dict[str, Any],
    *,
    read: str,
    networks: dict[str, dict[str, int]],
    previous: tuple[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """One reading. `previous`: when the one before was made, and its `cpu_stats`."""
    before, precpu = previous or (NEVER, EMPTY_CPU)
    words: dict[str, Any] = {
        "name": f"/{instance.config.name}",
        "id": instance.id,
        "read": read,
        "preread": before,
        "pids_stats": _without_zero(current=stats.pids, limit=stats.pids_limit),
        "blkio_stats": {
            "io_service_bytes_recursive": _device_words(stats.io_bytes) or _sum_words(stats),
            "io_serviced_recursive": _device_words(stats.io_operations),
            "io_queue_recursive": None,
            "io_service_time_recursive": None,
            "io_wait_time_recursive": None,
            "io_merged_recursive": None,
            "io_time_recursive": None,
            "sectors_recursive": None,
        },
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": cpu,
        "precpu_stats": precpu,
        "memory_stats": {
            "usage": stats.memory_bytes,
            **_without_zero(max_usage=stats.memory_max_bytes),
            "stats": stats.memory_detail,
            "limit": stats.memory_limit_bytes or (stats.memory_bytes and _HOST_MEMORY),
        },
    }
    return words | ({"networks": networks} if networks else {})


def _without_zero(**numbers: int) -> dict[str, int]:
    return {name: number for name, number in numbers.items() if number}


def _device_words(counts: Sequence[DeviceCount]) -> list[dict[str, Any]] | None:
    return [
        {"major": each.major, "minor": each.minor, "op": each.operation, "value": each.value} for each in counts
    ] or None


def _sum_words(stats: Stats) -> list[dict[str, Any]] | None:
    if not (stats.read_bytes or stats.write_bytes):
        return None
    return _device_words([DeviceCount(0, 0, "read", stats.read_bytes), DeviceCount(0, 0, "write", stats.write_bytes)])


def read_interfaces(names: dict[str, str]) -> dict[str, dict[str, int]]:
    """Counters of each interface by its name inside; `names` leads to the host's end of it, where sent and received are the
    other way round. Blocks for a moment (sysfs)."""
    found = {}
    for inside, outside in names.items():
        folder = Path("/sys/class/net") / outside / "statistics"
        try:
            found[inside] = {
                f"{mine}_{counter}": int((folder / f"{theirs}_{counter}").read_text())
                for mine, theirs in (("rx", "tx"), ("tx", "rx"))
                for counter in _COUNTERS
            }
        except (OSError, ValueError):
            continue
    return found


class _Meter:
    """Readings of one container, each knowing the one before."""

    def __init__(self, engine: Engine, id: str) -> None:
        self._engine = engine
        self._id = id
        self._previous: tuple[str, dict[str, Any]] | None = None

    async def read(self) -> dict[str, Any]:
        """Raises NotFound when it is gone."""
        instance = await self._engine.get(self._id)
        if instance.state.name not in ("running", "paused"):
            self._previous = None
            return stats_words(instance, Stats(), EMPTY_CPU, read=NEVER, networks={})
        stats = await self._engine.stats(self._id)
        ends = {each.interface: each.host_interface for each in instance.endpoints if each.host_interface}
        networks, stat = await in_thread(_read_host, ends)
        now = clock.rfc3339_nano(clock.now())
        cpu = cpu_words(stats, system_cpu_ns(stat), len(os.sched_getaffinity(0)))
        words = stats_words(instance, stats, cpu, read=now, networks=networks, previous=self._previous)
        self._previous = now, cpu
        return words


def _read_host(ends: dict[str, str]) -> tuple[dict[str, dict[str, int]], str]:
    return read_interfaces(ends), Path("/proc/stat").read_text()


async def stats(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/stats`. Without `stream` one reading that knows an earlier one, unless `one-shot`."""
    engine = call.door.engine
    instance = await engine.get(call.params["id"])
    meter = _Meter(engine, instance.id)
    words = await meter.read()
    if not call.flag("stream", default=True):
        if not call.flag("one-shot") and words["read"] != NEVER:
            await asyncio.sleep(_INTERVAL_S)
            words = await meter.read()
        return json_response(words)
    async with streaming(call.request, content_type="application/json") as response:
        while True:
            await response.write(encode(words) + b"\n")
            await asyncio.sleep(_INTERVAL_S)
            try:
                words = await meter.read()
            except NotFound:
                break
    return response


ROUTES = (Route("GET", "/containers/{id}/stats", stats, stream=True),)
