"""Resources as the OCI runtime specification writes them (`linux.resources`), for a new container and for an update.

The numbers are version 1's; runc and crun translate them for version 2 themselves.
"""

from __future__ import annotations

from typing import Any

from insula.drivers.oci.facts import HostFacts
from insula.errors import Unsupported
from insula.model.instance import Resources


def linux_resources(resources: Resources, host: HostFacts) -> dict[str, Any]:
    """The object without empty parts and without `devices`. Raises Unsupported for what this host cannot limit."""
    parts = {
        "memory": _memory(resources, host),
        "cpu": _without_none(
            shares=resources.cpu_shares,
            quota=resources.cpu_quota_us,
            period=resources.cpu_period_us,
            cpus=resources.cpuset_cpus or None,
            mems=resources.cpuset_mems or None,
        ),
        "pids": _pids(resources.pids_limit),
        "blockIO": _without_none(weight=resources.blkio_weight),
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
    )
    if resources.oom_kill_disable:
        if host.cgroup_version == 2:
            raise Unsupported(
                "The OOM killer cannot be turned off with cgroup version 2.", field="resources.oom_kill_disable"
            )
        part["disableOOMKiller"] = True
    return part


def _pids(limit: int | None) -> dict[str, Any]:
    if limit is None:
        return {}
    return {"limit": limit if limit > 0 else -1}


def _without_none(**fields: int | str | None) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
