"""Executions: processes started beside an instance's first one. They live in memory; after a restart of Insula those that were
running are found again by their driver."""

from __future__ import annotations

import asyncio
import time

from insula.drivers.driver import ExecHandle, Streams
from insula.engine.contract import Exec
from insula.errors import InsulaError, NotFound
from insula.model.instance import Process

_KEPT_S = 300.0  # how long an ended one can still be asked about, as the Docker Engine keeps them


class Execution:
    """One exec: recorded, perhaps running, perhaps ended."""

    def __init__(self, id: str, instance: str, process: Process, fault: InsulaError | None = None) -> None:
        self.id = id
        self.instance = instance
        self.process = process
        self.fault = fault  # why it can never run
        self.started = False
        self.handle: ExecHandle | None = None
        self.exit_code: int | None = None
        self.ended_at = 0.0
        self.ended = asyncio.Event()

    def end(self, code: int) -> None:
        """Record how it ended and wake who waits."""
        self.exit_code = code
        self.ended_at = time.monotonic()
        self.ended.set()

    def view(self) -> Exec:
        """For clients."""
        return Exec(
            id=self.id,
            instance=self.instance,
            process=self.process,
            pid=self.handle.pid if self.handle else 0,
            running=self.handle is not None and self.exit_code is None,
            exit_code=self.exit_code,
        )

    @property
    def streams(self) -> Streams:
        """Its streams, once it runs."""
        assert self.handle is not None
        return self.handle.streams


class Executions:
    """All executions of a node, by id."""

    def __init__(self) -> None:
        self._known: dict[str, Execution] = {}

    def add(self, execution: Execution) -> None:
        """Remember one; forget those that ended long ago."""
        limit = time.monotonic() - _KEPT_S
        for old in [each for each in self._known.values() if each.ended.is_set() and each.ended_at < limit]:
            del self._known[old.id]
        self._known[execution.id] = execution

    def get(self, id: str) -> Execution:
        """By id or unique prefix. Raises NotFound with the Docker Engine's sentence."""
        if id in self._known:
            return self._known[id]
        found = [key for key in self._known if id and key.startswith(id)]
        if len(found) != 1:
            raise NotFound(f"No such exec instance: {id}", kind="exec", name=id)
        return self._known[found[0]]

    def of(self, instance: str) -> list[Execution]:
        """Those of one instance."""
        return [each for each in self._known.values() if each.instance == instance]

    def drop(self, id: str) -> None:
        """Nobody will ask about it again."""
        self._known.pop(id, None)

    def forget(self, instance: str) -> None:
        """The instance is gone."""
        for execution in self.of(instance):
            self._known.pop(execution.id, None)
