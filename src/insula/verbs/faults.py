"""Errors in Kubernetes' own sentences, so that kubectl and client libraries recognise them.

Source: apimachinery `api/errors`. `kind` of an error is the resource as `kubectl` names it (`deployments.apps`), or for
Invalid the kind with its group (`Deployment.apps`).
"""

from __future__ import annotations

from collections.abc import Sequence

from insula.errors import (
    AlreadyExists,
    Cause,
    Conflict,
    DeadlineExceeded,
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    StaleRevision,
    Unsupported,
)
from insula.kinds.kind import Kind


def resource_of(kind: Kind) -> str:
    """`pods`, `deployments.apps`."""
    return f"{kind.ref.plural}.{kind.ref.group}" if kind.ref.group else kind.ref.plural


def kind_of(kind: Kind) -> str:
    """`Pod`, `Deployment.apps`."""
    return f"{kind.kind}.{kind.ref.group}" if kind.ref.group else kind.kind


def not_found(kind: Kind, name: str) -> NotFound:
    """There is no such object."""
    resource = resource_of(kind)
    return NotFound(f'{resource} "{name}" not found', kind=resource, name=name)


def already_exists(kind: Kind, name: str, *, deleting: bool = False) -> AlreadyExists:
    """The name is taken."""
    resource = resource_of(kind)
    prefix = "object is being deleted: " if deleting else ""
    return AlreadyExists(f'{prefix}{resource} "{name}" already exists', kind=resource, name=name)


_MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def stale(kind: Kind, name: str, why: str = _MODIFIED) -> StaleRevision:
    """The object is not as the request took it to be."""
    resource = resource_of(kind)
    return StaleRevision(f'Operation cannot be fulfilled on {resource} "{name}": {why}', kind=resource, name=name)


def conflict(kind: Kind, name: str, why: str) -> Conflict:
    """The object's state does not allow it."""
    resource = resource_of(kind)
    return Conflict(f'Operation cannot be fulfilled on {resource} "{name}": {why}', kind=resource, name=name)


def invalid(kind: Kind, name: str, causes: Sequence[Cause]) -> Invalid:
    """Fields are wrong. Without a field a cause speaks for the whole object."""
    sentences = [f"{one.field}: {one.message}" if one.field else one.message for one in causes]
    told = sentences[0] if len(sentences) == 1 else f"[{', '.join(sentences)}]"
    return Invalid(
        f'{kind_of(kind)} "{name}" is invalid: {told}',
        causes=causes,
        field=causes[0].field if causes else None,
        kind=kind_of(kind),
        name=name,
    )


def forbidden(kind: Kind, name: str, why: str) -> Forbidden:
    """Admission refuses."""
    resource = resource_of(kind)
    return Forbidden(f'{resource} "{name}" is forbidden: {why}', kind=resource, name=name)


def not_allowed(verb: str) -> Unsupported:
    """The resource lacks the verb."""
    return Unsupported(f"the server does not allow this method on the requested resource: {verb}")


def too_old(revision: int, oldest: int | None = None) -> Expired:
    """A watch or list from a revision that is gone."""
    floor = f" ({oldest})" if oldest is not None else ""
    return Expired(f"too old resource version: {revision}{floor}")


def too_large(revision: int, newest: int) -> DeadlineExceeded:
    """A read that asks for a revision of the future."""
    return DeadlineExceeded(
        f"Timeout: Too large resource version: {revision}, current: {newest}",
        causes=[Cause("", "ResourceVersionTooLarge", "Too large resource version")],
        retry_after_s=1,
    )
