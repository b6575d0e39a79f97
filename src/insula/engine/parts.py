"""What the parts of an engine share: the stores below, the drivers, the ledger, and who lives here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from insula.drivers.driver import Driver
from insula.engine.contract import Event
from insula.engine.events import EventLog
from insula.engine.execs import Executions
from insula.engine.guests import Guests
from insula.engine.ledger import Ledger
from insula.engine.names import NameTable, find
from insula.engine.records import Entry, SandboxEntry, Stage
from insula.engine.resident import Resident
from insula.engine.settings import EnginePaths, EngineSettings
from insula.engine.watchfile import Watches
from insula.errors import Invalid, NotFound
from insula.images.contract import ImageStore
from insula.networks.contract import Networks
from insula.tasks import Tasks
from insula.volumes.contract import Volumes


@dataclass
class Parts:
    """One engine's parts. Made once by `node.NodeEngine.open`."""

    paths: EnginePaths
    settings: EngineSettings
    boot_id: str
    hostname: str
    images: ImageStore
    networks: Networks
    volumes: Volumes
    drivers: Mapping[str, Driver]
    guests: Guests
    ledger: Ledger
    events: EventLog
    tasks: Tasks
    names: NameTable = field(default_factory=NameTable)
    residents: dict[str, Resident] = field(default_factory=dict)
    sandboxes: dict[str, SandboxEntry] = field(default_factory=dict)
    watches: Watches = field(default_factory=Watches)
    executions: Executions = field(default_factory=Executions)
    halting: bool = False  # the node goes down: restart policies wait for the next start of Insula
    # More starts at once than the processors can take only make each of them slower.
    starts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4 + 4 * (os.cpu_count() or 1)))

    def find(self, reference: str) -> Resident:
        """By id, name or unique prefix. One that is still being made is not there yet. Raises NotFound, Invalid."""
        resident = find(self.residents, self.names, reference)
        if resident.entry.stage is Stage.CREATING:
            raise NotFound(f"No such container: {reference}", kind="container", name=reference)
        return resident

    def driver(self, name: str) -> Driver:
        """Raises Invalid with the Docker Engine's sentence."""
        driver = self.drivers.get(name)
        if driver is None:
            known = ", ".join(sorted(self.drivers)) or "none"
            raise Invalid(f"unknown or invalid runtime name: {name}", field="driver", hint=f"known here: {known}")
        return driver

    def directory(self, entry: Entry) -> str:
        """The driver's folder for an instance. A machine's outlives reboots: it holds what its firmware remembers."""
        if entry.config.machine is not None:
            return str(self.folder(entry.id) / "machine")
        return str(self.paths.bundles / entry.id)

    def folder(self, id: str) -> Path:
        """The files made for an instance: its log, hosts, hostname, resolv.conf."""
        return self.paths.instances / id

    def log_path(self, entry: Entry) -> str:
        """An instance's log, empty when it keeps none."""
        return "" if entry.config.log_driver == "none" else str(self.folder(entry.id) / "log")

    def say(self, resident: Resident, action: str, **attributes: str) -> None:
        """Publish what happened to an instance, with the attributes that the Docker Engine gives."""
        config = resident.entry.config
        every = {**config.labels, "image": config.image, "name": config.name, **attributes}
        self.events.publish(Event(type="container", action=action, id=resident.id, attributes=every))
