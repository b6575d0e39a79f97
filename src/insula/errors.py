"""The tree of faults. Every error a user can cause or meet is one of these.

    InsulaError
    ├── Invalid           the request itself is wrong: name the field, the value, what would be right   (400/422)
    │   └── TooLarge      the request or an upload is over its limit                                     (413)
    ├── Unauthorized      nobody is authenticated                                                        (401)
    ├── Forbidden         somebody is, and may not                                                       (403)
    ├── NotFound          no such thing                                                                  (404)
    ├── Unsupported       Insula does not do this, on purpose; a clear refusal                           (405/501)
    ├── Conflict          the present state does not allow it                                            (409)
    │   ├── AlreadyExists a thing of that name is there                                                  (409)
    │   └── StaleRevision the object changed since it was read                                           (409)
    ├── Expired           a revision older than what is kept; list again                                 (410)
    ├── TooManyRequests   try again later                                                                (429)
    ├── Unavailable       something needed is not there now (registry, node, feature of the host)        (503)
    │   └── DeadlineExceeded  a wait ended without an answer                                             (504)
    └── HostFault         the kernel or a helper program failed; carries the command to paste            (500)

Each dialect translates this tree in one place: `api/docker/errors.py`, `api/kube/errors.py`, `cli/errors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One wrong field: its path (`spec.replicas`), a machine word (`FieldValueInvalid`) and a sentence."""

    field: str
    reason: str
    message: str


class InsulaError(Exception):
    """The root. `message` is a whole sentence for a person; the other parts are for programs."""

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        hint: str | None = None,
        causes: Sequence[Cause] = (),
        kind: str | None = None,
        name: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint
        self.causes = tuple(causes)
        self.kind = kind
        self.name = name
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Invalid(InsulaError):
    """The request is wrong in itself, whatever the state."""


class TooLarge(Invalid):
    """A request, archive or upload is over its limit."""


class Unauthorized(InsulaError):
    """No valid credentials came with the request."""


class Forbidden(InsulaError):
    """The user is known and lacks the right."""


class NotFound(InsulaError):
    """No object of that name."""


class Unsupported(InsulaError):
    """Insula does not do this; listed in docs/compatibility.md."""


class Conflict(InsulaError):
    """The present state does not allow the request."""


class AlreadyExists(Conflict):
    """The name is taken."""


class StaleRevision(Conflict):
    """A write carried a revision that is no longer the newest."""


class Expired(InsulaError):
    """The asked revision has been compacted away. A list in pages may go on, inconsistently, with `continue_token`."""

    def __init__(self, message: str, *, continue_token: str = "") -> None:
        super().__init__(message)
        self.continue_token = continue_token


class TooManyRequests(InsulaError):
    """A budget or queue is full for now."""


class Unavailable(InsulaError):
    """Something outside this process is needed and is not there now."""


class DeadlineExceeded(Unavailable):
    """A wait ended before its answer came."""


class HostFault(InsulaError):
    """The kernel or a helper program failed. `command` can be pasted into a shell, `stderr` is its last words."""

    def __init__(self, message: str, *, command: str | None = None, stderr: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.command = command
        self.stderr = stderr
        self.code = code


def gather(message: str, errors: Sequence[BaseException]) -> None:
    """Raise what a tear-down collected: nothing for none, the one error itself, else a group of all."""
    if not errors:
        return
    if len(errors) == 1:
        raise errors[0]
    raise BaseExceptionGroup(message, list(errors))
