"""The progress of one build as BuildKit's clients read it: every piece is kept until the build is forgotten, so that a client
that asks late or twice sees all of it. Output is clipped per step as BuildKit does it."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime

from insula import clock
from insula.api.docker.buildkit.messages import (
    LogMessage,
    Position,
    Range,
    SourceInfo,
    StatusMessage,
    StatusResponse,
    Timestamp,
    VertexMessage,
    WarningMessage,
)
from insula.engine.building.contract import Location, Vertex, VertexLog, VertexStatus, Warning
from insula.errors import InsulaError
from insula.model.protobuf import encode

LOG_LIMIT = 2 * 1024 * 1024  # of one step
_CLIPPED = b"\n[output clipped, log limit 2MiB reached]\n"
_REPORT_EVERY_S = 0.1


def timestamp(text: str) -> Timestamp | None:
    """RFC 3339 with nanoseconds."""
    if not text:
        return None
    head, mark, rest = text.partition(".")
    fraction = rest.rstrip("Z").partition("+")[0] if mark else ""
    moment = datetime.fromisoformat(head.rstrip("Z") + "+00:00")
    return Timestamp(int(moment.timestamp()), int(fraction[:9].ljust(9, "0") or 0))


def now() -> str:
    """This moment in that form."""
    return clock.rfc3339_nano(clock.now())


def ranges(location: Location | None) -> tuple[Range, ...]:
    """Lines of a Dockerfile."""
    if location is None:
        return ()
    return (Range(Position(location.start), Position(location.end)),)


class Told:
    """Takes what a builder tells (`Progress`), and gives it to any number of readers."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)
        self._pieces: list[bytes] = []
        self._logged: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._over = False
        self.dockerfile = SourceInfo()

    def end(self) -> None:
        """The build is over: readers come to their end."""
        self._over = True
        self._wake()

    async def read(self) -> AsyncIterator[bytes]:
        """Every piece from the first on, encoded, until the end."""
        at = 0
        while True:
            changed = self._changed
            while at < len(self._pieces):
                yield self._pieces[at]
                at += 1
            if self._over:
                return
            await changed.wait()

    def _add(self, piece: StatusResponse) -> None:
        self._pieces.append(encode(piece))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def digest(self, vertex: str) -> str:
        """A step's digest in this build: clients show several builds at once and know steps by nothing else."""
        return "sha256:" + hashlib.sha256(self._salt + vertex.encode()).hexdigest() if vertex else ""

    # --- what the builder tells -----------------------------------------------------------------------------------

    def vertex(self, vertex: Vertex) -> None:
        """Steps that only change the configuration are none for BuildKit."""
        if vertex.metadata:
            return
        message = VertexMessage(
            self.digest(vertex.digest),
            tuple(self.digest(each) for each in vertex.inputs),
            vertex.name,
            vertex.cached,
            timestamp(vertex.started),
            timestamp(vertex.completed),
            vertex.error,
        )
        self._add(StatusResponse(vertexes=(message,)))

    def log(self, log: VertexLog) -> None:
        """Output beyond the limit is dropped with a line that says so."""
        seen = self._logged.get(log.vertex, 0)
        if seen > LOG_LIMIT:
            return
        self._logged[log.vertex] = seen + len(log.data)
        data = log.data if seen + len(log.data) <= LOG_LIMIT else log.data[: LOG_LIMIT - seen] + _CLIPPED
        self._add(StatusResponse(logs=(LogMessage(self.digest(log.vertex), timestamp(log.time), log.stream, data),)))

    def status(self, status: VertexStatus) -> None:
        """A part of a step."""
        message = StatusMessage(
            status.id,
            self.digest(status.vertex),
            status.name,
            status.current,
            status.total,
            timestamp(status.time or now()),
            timestamp(status.started),
            timestamp(status.completed),
        )
        self._add(StatusResponse(statuses=(message,)))

    def warning(self, warning: Warning) -> None:
        """Shown below the build."""
        short = f"{warning.rule}: {warning.message}" if warning.rule else warning.message
        message = WarningMessage(
            self.digest(warning.vertex),
            warning.level,
            short.encode(),
            (warning.detail.encode(),) if warning.detail else (),
            warning.url,
            self.dockerfile if warning.location else None,
            ranges(warning.location),
        )
        self._add(StatusResponse(warnings=(message,)))

    # --- steps of the door's own ----------------------------------------------------------------------------------

    @contextmanager
    def step(self, name: str, *inputs: str) -> Iterator[str]:
        """A step that this door does by itself; its digest."""
        digest = f"{len(self._pieces)} {name}"
        vertex = Vertex(digest=digest, name=name, inputs=inputs, started=now())
        self.vertex(vertex)
        try:
            yield digest
        except BaseException as fault:
            said = str(fault) if isinstance(fault, InsulaError) else "context canceled"
            self.vertex(
                Vertex(digest=digest, name=name, inputs=inputs, started=vertex.started, completed=now(), error=said)
            )
            raise
        self.vertex(Vertex(digest=digest, name=name, inputs=inputs, started=vertex.started, completed=now()))

    def part(self, vertex: str, id: str, name: str = "") -> Part:
        """A part of a step that will be told about."""
        return Part(self, vertex, id, name)


class Part:
    """One row below a step: `with part: part.set(bytes)`. Told at most ten times a second."""

    def __init__(self, told: Told, vertex: str, id: str, name: str) -> None:
        self._told, self._vertex, self._id, self._name = told, vertex, id, name
        self._started = now()
        self._current = self._total = 0
        self._last = 0.0

    def __enter__(self) -> Part:
        self._tell()
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(completed=now())

    def set(self, current: int, total: int = 0) -> None:
        """How far it is."""
        self._current, self._total = current, total
        moment = asyncio.get_running_loop().time()
        if moment - self._last >= _REPORT_EVERY_S:
            self._last = moment
            self._tell()

    def _tell(self, completed: str = "") -> None:
        if self._vertex:
            self._told.status(
                VertexStatus(
                    vertex=self._vertex,
                    id=self._id,
                    name=self._name,
                    current=self._current,
                    total=self._total,
                    started=self._started,
                    completed=completed,
                )
            )
