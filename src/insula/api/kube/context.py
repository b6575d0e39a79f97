"""What the handlers of the door share: the door's parts, and one request on its way through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from aiohttp import web

from insula.api.kube import options
from insula.api.kube.authn import Authority
from insula.api.kube.negotiate import Form, choose
from insula.api.kube.rbac import Question, Rule
from insula.api.kube.request import Asked
from insula.api.kube.table import Include
from insula.errors import Invalid
from insula.kinds.kind import Kind
from insula.kinds.registry import Registry
from insula.model.resource import Ref
from insula.verbs.request import Request, User
from insula.verbs.verbs import Verbs

T = TypeVar("T")


class Authorizer(Protocol):
    """Who may do what."""

    def allows(self, user: User, asked: Question) -> bool:
        """Whether a user has an access."""
        ...

    def rules(self, user: User, namespace: str) -> Iterable[Rule]:
        """The rules that count for a user in a namespace."""
        ...

    def role_rules(self, namespace: str, name: str) -> Iterable[Rule]:
        """The rules of a Role, or (no namespace) of a ClusterRole with what it aggregates."""
        ...


Agents = Callable[[str], str | None]
"""Node name to its agent's endpoint: `http://127.0.0.1:PORT`, `unix:/path`; None for a node without one."""


@dataclass
class Door:
    """The parts of one Kubernetes door."""

    verbs: Verbs
    registry: Registry
    authority: Authority
    authorizer: Authorizer
    agents: Agents
    version: str
    started: float
    ready: Callable[[], str] = field(default=lambda: "")  # empty when ready, else what is missing
    writes: set[asyncio.Future[Any]] = field(default_factory=set)


class Call:
    """One request: what is asked, by whom, of which door."""

    __slots__ = ("asked", "door", "kind", "ref", "request", "user")

    def __init__(self, door: Door, request: web.Request, asked: Asked, user: User, kind: Kind) -> None:
        self.door = door
        self.request = request
        self.asked = asked
        self.user = user
        self.kind = kind
        self.ref: Ref = kind.ref

    def form(self) -> Form:
        """The form that the client likes best. Raises NotAcceptable."""
        return choose(self.request.headers.get("Accept", ""))

    def include(self) -> Include:
        """How much of each object a table's row carries. Raises Invalid."""
        include = self.request.query.get("includeObject") or "Metadata"
        if include not in ("None", "Metadata", "Object"):
            raise Invalid(
                f'includeObject: Invalid value: "{include}": must be "Metadata", "None" or "Object"',
                field="includeObject",
            )
        return cast("Include", include)

    def write_request(self) -> Request:
        """The circumstances of a write. Raises Invalid."""
        return options.write_request(self.user, self.request.query, self.request.headers.get("User-Agent", ""))

    async def write(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry a write through to its end, also when the client leaves in the middle."""
        task = asyncio.ensure_future(work)
        self.door.writes.add(task)
        task.add_done_callback(self.door.writes.discard)
        task.add_done_callback(_looked_at)
        return await asyncio.shield(task)


def _looked_at(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
