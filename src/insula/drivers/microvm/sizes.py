"""How large a machine is for the resources that were asked for. Pure.

A container's limit becomes two: inside, the image's processes get exactly what was asked, held there by a control group of
the machine's own kernel; around, the machine has that and what its kernel needs, and the sandbox that and what QEMU needs.
"""

from __future__ import annotations

import msgspec

from insula.model.instance import Resources

MIB = 1024 * 1024
DEFAULT_MEMORY_BYTES = 512 * MIB  # where no limit was asked for
KERNEL_BYTES = 64 * MIB  # what the machine's kernel keeps for itself
OVERHEAD_BYTES = 256 * MIB  # QEMU, its cache of translated code, virtiofsd and the relay
DEFAULT_CPUS = 1
MOST_CPUS = 64


def memory_mib(resources: Resources) -> int:
    """The machine's memory."""
    return -(-((resources.memory_bytes or DEFAULT_MEMORY_BYTES) + KERNEL_BYTES) // MIB)


def cpus(resources: Resources, of_host: int) -> int:
    """The machine's CPUs: as many as the CPU time that was asked for keeps busy, or the listed ones."""
    wanted = DEFAULT_CPUS
    if resources.cpu_quota_us and resources.cpu_quota_us > 0:
        wanted = -(-resources.cpu_quota_us // (resources.cpu_period_us or 100_000))
    elif resources.cpuset_cpus:
        wanted = count_listed(resources.cpuset_cpus)
    return max(1, min(wanted, of_host, MOST_CPUS))


def count_listed(cpus: str) -> int:
    """How many CPUs a list in the kernel's form names: `0-2,5` four. One for what is no list."""
    total = 0
    for part in cpus.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (not last or last.isdecimal()):
            total += max(0, int(last or first) - int(first) + 1)
    return max(1, total)


def of_sandbox(resources: Resources) -> Resources:
    """The limits around QEMU and its helpers. Processes inside are counted inside."""
    added = KERNEL_BYTES + OVERHEAD_BYTES
    memory, swap = resources.memory_bytes, resources.memory_swap_bytes
    return msgspec.structs.replace(
        resources,
        memory_bytes=memory + added if memory else memory,
        memory_swap_bytes=swap + added if swap is not None and swap > 0 else swap,
        pids_limit=None,
    )
