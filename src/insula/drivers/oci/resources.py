"""Resources as the OCI runtime specification writes them (`linux.resources`), for a new container and for an update.

The numbers are version 1's; runc and crun translate them for version 2 themselves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from insula.drivers.oci.facts import HostFacts
from insula.errors import Invalid, Unsupported
from insula.model.instance import BlockLimit, Resources

LEAST_SHARES, MOST_SHARES = 2, 262_144


def linux_resources(resources: Resources, host: HostFacts) -> dict[str, Any]:
    """The object without empty parts and without `devices`. Raises Unsupported for what this host cannot limit."""
    parts = {
        "memory": _memory(resources, host),
        "cpu": _without_none(
            shares=_shares(resources.cpu_shares),
            quota=resources.cpu_quota_us,
            period=resources.cpu_period_us,
            cpus=resources.cpuset_cpus or None,
            mems=resources.cpuset_mems or None,
            realtimePeriod=resources.cpu_rt_period_us,
            realtimeRuntime=resources.cpu_rt_runtime_us,
        ),
        "pids": _pids(resources.pids_limit),
        "blockIO": _block(resources),
    }
    return {name: part for name, part in parts.items() if part}


def _memory(resources: Resources, host: HostFacts) -> dict[str, Any]:
    """Without a word about swap a limited container gets as much swap as memory, as in Docker; where the kernel cannot
    limit swap, that default is left out."""
    swap = resources.memory_swap_bytes
    if swap is not None and swap > 0 and not host.swap_limit:
        raise Unsupported("This kernel cannot limit swap for a group.", field="resources.memory_swap_bytes")
    if swap is None and resources.memory_bytes and host.swap_limit:
        swap = resources.memory_bytes * 2
    part = _without_none(
        limit=resources.memory_bytes,
        reservation=resources.memory_reservation_bytes,
        swap=swap if host.swap_limit else None,
        swappiness=resources.memory_swappiness if host.cgroup_version == 1 else None,
    )
    if resources.oom_kill_disable:
        if host.cgroup_version == 2:
            raise Unsupported(
                "The OOM killer cannot be turned off with cgroup version 2.", field="resources.oom_kill_disable"
            )
        part["disableOOMKiller"] = True
    return part


def _shares(shares: int | None) -> int | None:
    """The kernel of version 1 cuts what is beyond its range itself, that of version 2 refuses it."""
    return min(max(shares, LEAST_SHARES), MOST_SHARES) if shares else None


def _block(resources: Resources) -> dict[str, Any]:
    lists = {
        "weightDevice": [_device(each) | {"weight": each.value} for each in resources.blkio_weight_devices],
        "throttleReadBpsDevice": _throttles(resources.read_bps),
        "throttleWriteBpsDevice": _throttles(resources.write_bps),
        "throttleReadIOPSDevice": _throttles(resources.read_iops),
        "throttleWriteIOPSDevice": _throttles(resources.write_iops),
    }
    return _without_none(weight=resources.blkio_weight) | {name: each for name, each in lists.items() if each}


def _throttles(limits: Sequence[BlockLimit]) -> list[dict[str, int]]:
    return [_device(each) | {"rate": each.value} for each in limits]


def _device(limit: BlockLimit) -> dict[str, int]:
    """The numbers of a device of the host. Raises Invalid."""
    try:
        number = Path(limit.path).stat().st_rdev
    except OSError as fault:
        why = (fault.strerror or "").lower()
        raise Invalid(f"stat {limit.path}: {why}", field="resources.blkio") from fault
    return {"major": os.major(number), "minor": os.minor(number)}


def _pids(limit: int | None) -> dict[str, Any]:
    if limit is None:
        return {}
    return {"limit": limit if limit > 0 else -1}


def _without_none(**fields: int | str | None) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
