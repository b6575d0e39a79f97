"""BuildKit's services put together for one door."""

from __future__ import annotations

from collections.abc import Mapping

from insula.api.docker.buildkit.control import Control
from insula.api.docker.buildkit.gateway import Gateway
from insula.api.docker.buildkit.service import Service
from insula.api.docker.buildkit.sessions import header_values
from insula.api.docker.door import Door
from insula.api.grpc.connection import Connection, Pipe


class BuildKit:
    """What one door needs of it."""

    def __init__(self, door: Door) -> None:
        self._service = Service(door)
        self._methods = {**Control(self._service).methods(), **Gateway(self._service).methods()}

    async def serve(self, pipe: Pipe) -> None:
        """One client's connection, until it leaves."""
        await Connection(pipe, self._methods).run()

    def check_session(self, headers: Mapping[str, str]) -> None:
        """Before the connection is taken over. Raises Invalid."""
        self._service.sessions.check(header_values(headers))

    async def attach(self, headers: Mapping[str, str], pipe: Pipe) -> None:
        """One session, until its client leaves."""
        await self._service.sessions.serve(header_values(headers), pipe)
