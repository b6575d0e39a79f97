"""The kernel for instances whose level boots one of its own: made once, by the first that needs it or by the set-up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from insula.drivers.driver import Capability, Driver, GuestDriver
from insula.model.instance import Guest


class Guests:
    """Finds the kernel and its initramfs in a cache folder, or has them built there."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._building = asyncio.Lock()

    async def find(self) -> Guest:
        """Some ten seconds the first time. Raises Unavailable (no apt, no mirror), Unsupported (not x86_64)."""
        from insula.images import machine  # it brings what builds disks, which no start of Insula needs

        async with self._building:
            built = await machine.build(self._cache)
        return Guest(kernel=str(built.kernel), initrd=str(built.image_initrd))


def guest_driver(driver: Driver) -> GuestDriver | None:
    """The driver as one that boots a kernel of its own; None for others."""
    return cast(GuestDriver, driver) if Capability.GUEST in driver.capabilities else None
