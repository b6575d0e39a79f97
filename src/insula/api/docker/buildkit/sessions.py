"""Sessions: connections on which clients offer their services (files, credentials, secrets, agents) to builds of theirs.

A client opens one by `POST /session` or by `Control.Session`, announces in headers what it offers, and names it in its solve.

Source: BuildKit's `session/manager.go` and `session/grpc.go` (header names).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from msgspec import Struct

from insula.api.grpc.connection import Connection, Pipe
from insula.api.grpc.status import Code, RpcFault
from insula.errors import Invalid, NotFound, Unsupported
from insula.model.protobuf import decode, encode

HEADER = "x-docker-expose-session-"
_ID_LIMIT = 256
APPEARS_S = 5.0  # a solve may overtake its session
CALL_S = 30.0  # for what needs no work of the client's: a credential helper may ask a keyring
R = TypeVar("R", bound=Struct)


class Session:
    """One session."""

    def __init__(self, id: str, name: str, shared_key: str, methods: Iterable[str], connection: Connection) -> None:
        self.id = id
        self.name = name
        self.shared_key = shared_key
        self.methods = frozenset(methods)
        self.connection = connection

    def offers(self, method: str) -> bool:
        """Whether a client announced a method (`/moby.filesync.v1.Auth/Credentials`)."""
        return method in self.methods

    def need(self, method: str) -> str:
        """The method. Raises Unsupported where the client does not have it."""
        if not self.offers(method):
            raise Unsupported(f"the client does not offer {method[1:]} on its session, which this build needs")
        return method

    async def ask(self, method: str, request: Struct, answer: type[R]) -> R | None:
        """One question to the client; None where it does not have the thing. Raises RpcFault."""
        if not self.offers(method):
            return None
        try:
            return decode(await self.connection.unary(method, encode(request), timeout=CALL_S), answer)
        except RpcFault as fault:
            if fault.code in (Code.NOT_FOUND, Code.UNIMPLEMENTED):
                return None
            raise


class Sessions:
    """Those that are open."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}
        self._changed = asyncio.Condition()

    async def serve(self, headers: Callable[[str], list[str]], pipe: Pipe) -> None:
        """One session until its client leaves. `headers` answers the values of a name in lower case. Raises Invalid."""
        id = self.check(headers)
        session = Session(
            id,
            next(iter(headers(HEADER + "name")), ""),
            next(iter(headers(HEADER + "sharedkey")), ""),
            headers(HEADER + "grpc-method"),
            Connection(pipe),
        )
        await self._set(id, session)
        try:
            await session.connection.run()
        finally:
            del self._open[id]

    def check(self, headers: Callable[[str], list[str]]) -> str:
        """The id of a session that may be opened. Raises Invalid."""
        id = next(iter(headers(HEADER + "uuid")), "")
        if not id or len(id) > _ID_LIMIT:
            raise Invalid("a session needs an id in X-Docker-Expose-Session-Uuid")
        if id in self._open:
            raise Invalid(f"session {id} already exists")
        return id

    async def _set(self, id: str, session: Session) -> None:
        async with self._changed:
            self._open[id] = session
            self._changed.notify_all()

    async def get(self, id: str) -> Session:
        """Waits a little for one that is not there yet. Raises NotFound."""
        try:
            async with asyncio.timeout(APPEARS_S), self._changed:
                await self._changed.wait_for(lambda: id in self._open)
                return self._open[id]
        except TimeoutError:
            raise NotFound(f"no active session for {id}: context deadline exceeded") from None


def header_values(headers: Mapping[str, str]) -> Callable[[str], list[str]]:
    """For `Sessions.serve`, of a multidict such as an HTTP request's headers."""
    return lambda name: list(headers.getall(name, []))  # type: ignore[attr-defined]
