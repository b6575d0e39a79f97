"""A machine's counters: what the host counts for QEMU's control group, and the disk traffic that QEMU counts."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, structs

from insula.drivers.driver import Stats
from insula.host import cgroups
from insula.host.cgroups import Group, Layout
from insula.host.cgroupstats import Counters, counters


class OomCheck(Struct, frozen=True):
    """Asks whether the kernel has killed a process of a control group for want of memory."""

    layout: Layout
    path: str

    def __call__(self) -> bool:
        return cgroups.oom_kills(Group(layout=self.layout, path=self.path)) > 0


def read_counters(group: Group) -> Counters:
    """The control group's counters."""
    return counters(group)


def combine(counted: Counters, blocks: list[dict[str, Any]], memory_bytes: int) -> Stats:
    """One record. Disk traffic is the guest's own, from `query-blockstats`; without a limit of the host's, memory is
    limited by what the guest has."""
    known = {name: getattr(counted, name) for name in structs.asdict(Stats()) if hasattr(counted, name)}
    known["memory_limit_bytes"] = counted.memory_limit_bytes or memory_bytes
    known["read_bytes"] = sum(block["stats"]["rd_bytes"] for block in blocks)
    known["write_bytes"] = sum(block["stats"]["wr_bytes"] for block in blocks)
    known["io_bytes"] = known["io_operations"] = ()  # the host's view of the image files, which is not the guest's
    return Stats(**known)
