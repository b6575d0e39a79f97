"""The node goes down: everything that runs is ended and nothing stays in the kernel, while the ledger keeps what there is."""

from __future__ import annotations

import asyncio
import shutil

from insula.engine import controls, sandboxes
from insula.engine.parts import Parts
from insula.host import cgroups, mounts


async def halt(parts: Parts, grace_s: float) -> list[BaseException]:
    """End every instance, all at the same time, then suspend the sandboxes. Returns what failed, after trying all."""
    parts.halting = True
    endings = [controls.halt(parts, each, grace_s) for each in tuple(parts.residents.values())]
    faults = await asyncio.gather(*endings, return_exceptions=True)
    suspensions = [sandboxes.suspend(parts, entry) for entry in tuple(parts.sandboxes.values())]
    faults += await asyncio.gather(*suspensions, return_exceptions=True)
    return [fault for fault in faults if fault is not None]


def clear_kernel(parts: Parts) -> None:
    """What belongs to no instance: the control group of all, and folders that are empty now. Blocks."""
    cgroups.remove(cgroups.Group(layout=cgroups.detect(), path=parts.settings.cgroup))
    for folder in (parts.paths.bundles, parts.paths.sandboxes):
        mounts.unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)
