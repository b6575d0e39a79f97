"""The ledger of a node's networks: what was acknowledged, in one JSON file, replaced by renaming.

An entry is written after the kernel was changed and before the caller is told; so what a killed process left in the kernel
without an entry was promised to nobody and is removed at the next start. Segments are flushed to the disk before their
creation is acknowledged; end points and ports are not: a loss of power ends what they belong to as well.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from insula.errors import HostFault, Unavailable
from insula.networks.contract import Endpoint, Network, Published
from insula.tasks import in_thread


class Lease(Struct, frozen=True):
    """The address that a machine with a MAC of its own had last on a network."""

    network: str
    mac: str
    address: str


class Ledger(Struct, kw_only=True):
    """Everything that survives a restart. `version` rises when the shape changes; older shapes stay readable."""

    version: int = 1
    networks: list[Network] = []
    endpoints: list[Endpoint] = []
    published: list[Published] = []
    leases: list[Lease] = []


class LedgerFile:
    """The file. `save` calls that come while one is being written share the next write."""

    def __init__(self, path: Path, snapshot: Callable[[], Ledger]) -> None:
        self._path, self._snapshot = path, snapshot
        self._lock = asyncio.Lock()
        self._asked = self._written = 0

    async def load(self) -> Ledger:
        """What was acknowledged; an empty ledger the first time. Raises HostFault for a damaged file."""
        try:
            return msgspec.json.decode(await in_thread(self._path.read_bytes), type=Ledger)
        except FileNotFoundError:
            return Ledger()
        except msgspec.MsgspecError as fault:
            raise HostFault(
                f"The ledger of networks {self._path} is damaged ({fault}). Move it away to start with new networks.",
                command=f"mv {self._path} {self._path}.damaged",
            ) from fault

    async def save(self, *, durable: bool = False) -> None:
        """Write the present state. Raises Unavailable when the disk does not take it."""
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._written >= mine and not durable:
                return
            covers, data = self._asked, msgspec.json.encode(self._snapshot())
            try:
                await in_thread(_replace, self._path, data, durable)
            except OSError as fault:
                message = f"The ledger of networks {self._path} cannot be written: {fault.strerror}."
                raise Unavailable(message) from fault
            self._written = covers


def _replace(path: Path, data: bytes, durable: bool) -> None:
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
