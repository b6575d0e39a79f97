"""What comes with a request and what goes back: who asks, how strictly, and the answer.

These are the words that a door translates HTTP into. A `Request` never changes on its way through the verbs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct, field

from insula.model.resource import Resource

if TYPE_CHECKING:
    from insula.kinds.kind import Kind
    from insula.verbs.verbs import Verbs

PatchType = Literal["json", "merge", "strategic", "apply"]
FieldValidation = Literal["Strict", "Warn", "Ignore"]
Propagation = Literal["Background", "Foreground", "Orphan"]
EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]


class User(Struct, frozen=True, kw_only=True):
    """Who asks, as authentication found out."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)


SYSTEM = User(name="system:insula", groups=("system:masters", "system:authenticated"))


class Request(Struct, frozen=True, kw_only=True):
    """The circumstances of one request. `field_manager` empty means: the first word of the user agent."""

    user: User = SYSTEM
    dry_run: bool = False
    field_manager: str = ""
    field_validation: FieldValidation = "Warn"
    force: bool = False  # server-side apply takes fields from their owners
    user_agent: str = "insula"

    @property
    def manager(self) -> str:
        """The name that fields are owned under, 128 characters at most."""
        return (self.field_manager or self.user_agent.partition("/")[0] or "unknown")[:128]


class Preconditions(Struct, frozen=True, kw_only=True):
    """What must hold for a deletion; empty is not asked."""

    uid: str = ""
    revision: str = ""


class DeleteOptions(Struct, frozen=True, kw_only=True):
    """How to delete: `grace_s` None takes the kind's own, `propagation` None likewise."""

    grace_s: int | None = None
    propagation: Propagation | None = None
    preconditions: Preconditions = Preconditions()


class Answer(Struct, frozen=True, kw_only=True):
    """What a write did. `created` asks a door for 201; `deleted` says that the object is gone, not just marked.
    `body` is the object as JSON where it was at hand, to spare the door an encoding; else empty."""

    object: Resource
    warnings: tuple[str, ...] = ()
    created: bool = False
    deleted: bool = False
    body: bytes = b""


class Listing(Struct, frozen=True, kw_only=True):
    """A page of decoded objects. `remaining` None: not known (a selector was used) or nothing follows."""

    items: list[Resource]
    revision: str
    continue_token: str = ""
    remaining: int | None = None


class RawListing(Protocol):
    """A page as JSON text: the whole List object, in pieces that are joined without anything in between."""

    revision: str
    continue_token: str
    count: int

    def chunks(self, size: int = 1 << 18) -> Iterator[bytes]:
        """Pieces of about `size` bytes, made as they are asked for; a door writes one and lets others run."""
        ...

    def body(self) -> bytes:
        """All of it."""
        ...


class Event(Struct, frozen=True):
    """One change that a watch tells."""

    type: EventType
    object: Resource


class Stream(Protocol):
    """An open watch. Read it in one form only, then close it. It ends by itself when its time is over, or raises:
    Expired when the reader was too slow, Unavailable when the server stops."""

    def events(self) -> AsyncIterator[Event]:
        """One decoded event after the other."""
        ...

    def lines(self) -> AsyncIterator[bytes]:
        """Pieces of JSON text: each is one or more whole lines of one event each, newline included."""
        ...

    async def aclose(self) -> None:
        """Stop watching."""
        ...


class Attempt:
    """A write on its way through admission. A mutating step changes `obj` in place; `old` is not to be changed."""

    __slots__ = ("kind", "name", "namespace", "obj", "old", "options", "request", "sub", "verb", "verbs", "warnings")

    def __init__(
        self,
        verbs: Verbs,
        request: Request,
        verb: Literal["create", "update", "delete", "connect"],
        kind: Kind,
        namespace: str,
        name: str,
        *,
        sub: str = "",
        obj: Resource | None = None,
        old: Resource | None = None,
        options: DeleteOptions | None = None,
    ) -> None:
        self.verbs = verbs
        self.request = request
        self.verb = verb
        self.kind = kind
        self.namespace = namespace
        self.name = name
        self.sub = sub
        self.obj: Resource = {} if obj is None else obj
        self.old = old
        self.options = options
        self.warnings: list[str] = []


class Admission:
    """One step that may change or refuse a write, after it was found valid in itself. Both halves default to nothing."""

    name = "admission"

    async def mutate(self, attempt: Attempt) -> None:
        """Change `attempt.obj`. Runs before validation."""

    async def validate(self, attempt: Attempt) -> None:
        """Raise Forbidden, Invalid... to refuse. Runs after validation, also on deletions."""

    async def finish(self, attempt: Attempt) -> None:
        """The write has happened, was refused by a later step or was lost: let go of what this step held for it."""


class Handler(Protocol):
    """What answers a subresource or a kind that is not stored (`tokenreviews`, `serviceaccounts/token`)."""

    async def __call__(
        self, verbs: Verbs, request: Request, kind: Kind, namespace: str, name: str, body: dict[str, Any], /
    ) -> Resource:
        """The answer to a POST of `body`."""
        ...
