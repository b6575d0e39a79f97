"""The kernel for instances whose level boots one of its own: made once, by the first that needs it or by the set-up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from insula.drivers.driver import Capability, Driver, GuestDriver
from insula.model.instance import Guest
from insula.tasks import in_thread

if TYPE_CHECKING:
    from insula.images.machine import MachineFiles


class Guests:
    """Finds the kernel and its initramfs in a cache folder, or has them built there."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._building = asyncio.Lock()

    async def find(self) -> Guest:
        """Some ten seconds the first time. Raises Unavailable (no apt, no mirror), Unsupported (not x86_64)."""
        build = await in_thread(_builder)
        async with self._building:
            built = await build(self._cache)
        return Guest(kernel=str(built.kernel), initrd=str(built.image_initrd))


def _builder() -> Callable[[Path], Awaitable[MachineFiles]]:
    """Loaded when it is needed, and on a thread: it brings what builds disks, which takes a tenth of a second."""
    from insula.images import machine

    return machine.build


def guest_driver(driver: Driver) -> GuestDriver | None:
    """The driver as one that boots a kernel of its own; None for others."""
    return cast(GuestDriver, driver) if Capability.GUEST in driver.capabilities else None
