"""Network namespaces kept ready, with loopback up.

On a busy machine a namespace takes tens of milliseconds to make, because the kernel tears down old ones under the same
lock. So a few wait here, held by a descriptor and nothing else: when Insula dies, they vanish with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from pathlib import Path

from insula.clock import Backoff
from insula.errors import HostFault, InsulaError
from insula.host import netlink, netns
from insula.tasks import Tasks

log = logging.getLogger(__name__)


class NamespacePool:
    """`size` namespaces in waiting, refilled in the background. Used on the event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._maker = netns.NamespaceThread("insula-pool")
        self._ready: deque[int] = deque()
        self._wanted = asyncio.Event()
        self._tasks = Tasks("namespace-pool")

    def start(self) -> None:
        """Begin to fill."""
        self._wanted.set()
        self._tasks.spawn(self._refill(), "refill")

    async def take(self) -> int:
        """A descriptor of a ready namespace, or of a new one where none waits; the caller closes it. Raises HostFault."""
        ready = self._ready.popleft() if self._ready else await self._make()
        self._wanted.set()
        return ready

    async def close(self) -> None:
        """Drop those in waiting."""
        await self._tasks.close()
        while self._ready:
            os.close(self._ready.popleft())
        self._maker.close()

    async def _make(self) -> int:
        making = asyncio.ensure_future(self._maker.call(netns.fresh, settle))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_close_unwanted)
            raise

    async def _refill(self) -> None:
        backoff = Backoff()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while len(self._ready) < self._size:
                try:
                    self._ready.append(await self._make())
                    backoff.reset()
                except (InsulaError, OSError) as fault:
                    log.warning("no network namespace can be prepared", extra={"fault": str(fault)})
                    await asyncio.sleep(backoff.next_s())


def _close_unwanted(making: asyncio.Future[int]) -> None:
    if not making.cancelled() and not making.exception():
        os.close(making.result())


def settle() -> None:
    """Inside of the new namespace: loopback up, and the settings with which Docker starts containers: any user may bind
    low ports and ping. New interfaces get no IPv6 addresses. A host whose /proc/sys is read-only does without, as Docker
    does there; `insula doctor` says so."""
    with netlink.Rtnl() as rtnl:
        rtnl.run(netlink.set_link("lo", up=True))
    settings = {"ipv4/ip_unprivileged_port_start": "0", "ipv4/ping_group_range": "0 2147483647"}
    if Path("/proc/sys/net/ipv6").exists():
        settings["ipv6/conf/default/disable_ipv6"] = "1"
    for name, value in settings.items():
        with contextlib.suppress(HostFault):
            netns.sysctl(name, value)
