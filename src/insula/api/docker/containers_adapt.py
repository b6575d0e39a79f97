"""The envelope that a client asks for, against what this host can limit: refused, taken, or dropped with a warning. Pure.

The order, the sentences and what is dropped instead of refused are dockerd's, for clients show its warnings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from insula.api.docker.words import ResourceWords, ThrottleWords, WeightWords
from insula.errors import Invalid
from insula.host.limits import Limits, numbers

_LEAST_MEMORY = 6 * 1024 * 1024
_UNSUPPORTED = "Your kernel does not support {} or the cgroup is not mounted. {} discarded."
W = TypeVar("W", bound=ResourceWords)
Rule = Callable[[ResourceWords, Limits, bool, list[str]], dict[str, Any]]


def adapt(words: W, limits: Limits, *, update: bool = False) -> tuple[W, list[str]]:
    """What can be honoured of it, and the warnings about the rest. Raises Invalid."""
    warnings: list[str] = []
    for rule in _RULES:
        if changes := rule(words, limits, update, warnings):
            words = msgspec.structs.replace(words, **changes)
    return words, warnings


def _refuse(field: str, message: str) -> Invalid:
    return Invalid(message, field=f"HostConfig.{field}")


# --- memory -------------------------------------------------------------------------------------------------------


def _memory(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    memory, swap = words.memory, words.memory_swap
    if memory != 0 and memory < _LEAST_MEMORY:
        raise _refuse("Memory", "Minimum memory limit allowed is 6MB")
    if memory > 0 and not limits.memory:
        warnings.append(_UNSUPPORTED.format("memory limit capabilities", "Limitation"))
        return {"memory": 0, "memory_swap": -1}
    if memory > 0 and swap != -1 and not limits.swap:
        warnings.append(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap."
        )
        return {"memory_swap": -1}
    if memory > 0 and 0 < swap < memory:
        raise _refuse("MemorySwap", "Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory == 0 and swap > 0 and not update:
        raise _refuse("MemorySwap", "You should always set the Memory limit when using Memoryswap limit, see usage")
    return {}


def _swappiness(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    swappiness = words.memory_swappiness
    if swappiness is None or swappiness == -1:
        return {"memory_swappiness": None}
    if not limits.swappiness:
        warnings.append(_UNSUPPORTED.format("memory swappiness capabilities", "Memory swappiness"))
        return {"memory_swappiness": None}
    if not 0 <= swappiness <= 100:
        raise _refuse("MemorySwappiness", f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    return {}


def _reservation(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    reservation = words.memory_reservation
    if reservation > 0 and not limits.reservation:
        warnings.append(_UNSUPPORTED.format("memory soft limit capabilities", "Limitation"))
        return {"memory_reservation": 0}
    if 0 < reservation < _LEAST_MEMORY:
        raise _refuse("MemoryReservation", "Minimum memory reservation allowed is 6MB")
    if 0 < words.memory < reservation:
        message = "Minimum memory limit can not be less than memory reservation limit, see usage"
        raise _refuse("MemoryReservation", message)
    return {}


def _kernel_memory(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    """Kernels since 5.4 do not let it be limited apart from the rest; dockerd ignores it since 23."""
    if words.kernel_memory:
        warnings.append("Specifying a kernel memory limit is deprecated and has no effect. Limitation discarded.")
    if words.kernel_memory_tcp:
        warnings.append(_UNSUPPORTED.format("kernel memory TCP limit capabilities", "Limitation"))
    return {"kernel_memory": 0, "kernel_memory_tcp": 0}


def _oom(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    if not words.oom_kill_disable:
        return {}
    if not limits.oom_kill_disable:
        warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        return {"oom_kill_disable": False}
    if words.memory == 0:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, "
            "this can result in the system running out of resources."
        )
    return {}


def _pids(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    """Zero and less mean no limit."""
    if words.pids_limit is None:
        return {}
    if words.pids_limit <= 0:
        return {"pids_limit": -1 if update else None}
    if not limits.pids:
        warnings.append(_UNSUPPORTED.format("PIDs limit capabilities", "PIDs limit"))
        return {"pids_limit": None}
    return {}


# --- processors ---------------------------------------------------------------------------------------------------


def _nano_cpus(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    if words.nano_cpus > 0:
        for value, name in ((words.cpu_period, "CPU Period"), (words.cpu_quota, "CPU Quota")):
            if value > 0:
                raise _refuse("NanoCpus", f"Conflicting options: Nano CPUs and {name} cannot both be set")
        if not limits.cfs:
            raise _refuse(
                "NanoCpus",
                "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted",
            )
    count = os.cpu_count() or 1
    if not 0 <= words.nano_cpus <= count * 1_000_000_000:
        message = f"range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
        raise _refuse("NanoCpus", message)
    return {}


def _cpu(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    if words.cpu_shares < 0:
        raise _refuse("CpuShares", f"invalid CPU shares ({words.cpu_shares}): value must be a positive integer")
    if words.cpu_shares > 0 and not limits.shares:
        warnings.append(_UNSUPPORTED.format("CPU shares", "Shares"))
        return {"cpu_shares": 0}
    if (words.cpu_period or words.cpu_quota) and not limits.cfs:
        warnings.append("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
        return {"cpu_period": 0, "cpu_quota": 0}
    if words.cpu_period and not 1000 <= words.cpu_period <= 1_000_000:
        message = "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        raise _refuse("CpuPeriod", message)
    if 0 < words.cpu_quota < 1000:
        raise _refuse("CpuQuota", "CPU cfs quota can not be less than 1ms (i.e. 1000)")
    return {}


def _realtime(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    period, runtime = words.cpu_realtime_period, words.cpu_realtime_runtime
    if (period or runtime) and not limits.realtime:
        raise _refuse("CpuRealtimeRuntime", "kernel does not support CPU real-time scheduler")
    if period and runtime > period:
        raise _refuse("CpuRealtimeRuntime", "cpu real-time runtime cannot be higher than cpu real-time period")
    return {}


def _cpuset(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    if (words.cpuset_cpus or words.cpuset_mems) and not limits.cpuset:
        warnings.append(_UNSUPPORTED.format("cpuset", "Cpuset"))
        return {"cpuset_cpus": "", "cpuset_mems": ""}
    _available(words.cpuset_cpus, limits.cpus, "cpus", "CPUs")
    _available(words.cpuset_mems, limits.mems, "mems", "memory nodes")
    return {}


def _available(text: str, there: str, short: str, name: str) -> None:
    wanted = numbers(text)
    if wanted is None:
        raise _refuse("Cpuset", f"Invalid value {text[:80]} for cpuset {short}: invalid format: {text[:80]}")
    if there and not wanted <= (numbers(there) or set()):
        raise _refuse("Cpuset", f"Requested {name} are not available - requested {text}, available: {there}")


# --- block devices ------------------------------------------------------------------------------------------------


def _weight(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    if words.blkio_weight > 0 and not limits.blkio_weight:
        warnings.append(_UNSUPPORTED.format("Block I/O weight", "Weight"))
        return {"blkio_weight": 0}
    if words.blkio_weight and not 10 <= words.blkio_weight <= 1000:
        raise _refuse("BlkioWeight", "Range of blkio weight is from 10 to 1000")
    return {}


def _devices(words: ResourceWords, limits: Limits, update: bool, warnings: list[str]) -> dict[str, Any]:
    changes: dict[str, list[WeightWords] | list[ThrottleWords]] = {}
    if words.blkio_weight_device and not limits.blkio_weight_device:
        warnings.append(_UNSUPPORTED.format("Block I/O weight_device", "Weight-device"))
        changes["blkio_weight_device"] = []
    for name, first, second in (
        ("blkio_device_read_bps", "BPS Block I/O read limit", "Block I/O BPS read limit"),
        ("blkio_device_write_bps", "BPS Block I/O write limit", "Block I/O BPS write limit"),
        ("blkio_device_read_iops", "IOPS Block read limit", "Block I/O IOPS read limit"),
        ("blkio_device_write_iops", "IOPS Block write limit", "Block I/O IOPS write limit"),
    ):
        if getattr(words, name) and not limits.blkio_throttle:
            warnings.append(_UNSUPPORTED.format(first, second))
            changes[name] = []
    return changes


_RULES: tuple[Rule, ...] = (
    _memory, _swappiness, _reservation, _kernel_memory, _oom, _pids, _nano_cpus, _cpu, _realtime, _cpuset, _weight, _devices,
)  # fmt: skip
