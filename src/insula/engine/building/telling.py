"""Progress of one build: vertices told as they change, never told twice the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec

from insula import clock
from insula.engine.building.contract import BuildFault, Progress, Vertex, VertexLog, VertexStatus, Warning
from insula.errors import InsulaError
from insula.images.contract import Progress as Moved


def now() -> str:
    """RFC 3339 with nanoseconds."""
    return clock.rfc3339_nano(clock.now())


class Told:
    """One vertex on its way."""

    def __init__(self, progress: Progress, vertex: Vertex) -> None:
        self._progress = progress
        self.vertex = vertex

    def change(self, **changes: Any) -> None:
        """Tell that it has changed."""
        self.vertex = msgspec.structs.replace(self.vertex, **changes)
        self._progress.vertex(self.vertex)

    def start(self) -> None:
        """It begins."""
        if not self.vertex.started:
            self.change(started=now())

    def finish(self, *, cached: bool = False, **more: Any) -> None:
        """It has ended well."""
        moment = now()
        self.change(started=self.vertex.started or moment, completed=moment, cached=cached, **more)

    def log(self, stream: Literal[1, 2], data: bytes) -> None:
        """It wrote something."""
        self._progress.log(VertexLog(vertex=self.vertex.digest, stream=stream, data=data, time=now()))

    def moved(self, step: Moved) -> None:
        """A layer got further."""
        name = f"{step.status} {step.id}".strip()
        self._progress.status(
            VertexStatus(
                vertex=self.vertex.digest,
                id=step.id or step.status,
                name=name,
                current=step.current,
                total=step.total,
                time=now(),
            )
        )

    def warn(self, message: str, *, rule: str = "") -> None:
        """Something is questionable."""
        self._progress.warning(
            Warning(vertex=self.vertex.digest, message=message, rule=rule, location=self.vertex.location)
        )

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """It begins now; a fault ends it, and says where it was."""
        self.start()
        try:
            yield
        except asyncio.CancelledError:
            self.change(completed=now(), error="context canceled")
            raise
        except InsulaError as fault:
            self.change(completed=now(), error=fault.message)
            raise self.placed(fault) from fault
        except BaseException:
            self.change(completed=now(), error="an internal error occurred; it is in the log of the daemon")
            raise

    def placed(self, fault: InsulaError) -> InsulaError:
        """A wrong request gets its place in the Dockerfile; faults of the host and of registries stay what they are."""
        if isinstance(fault, BuildFault):
            fault.location = fault.location or self.vertex.location
            fault.vertex = fault.vertex or self.vertex.digest
        return fault
