"""The tree of faults as Kubernetes Status objects: the one place where this dialect's codes and reasons are written."""

from __future__ import annotations

from typing import Any

from insula import errors
from insula.errors import InsulaError

# (fault, HTTP code, reason); the first that fits wins, so the leaves of the tree come before their branches
_CODES: tuple[tuple[type[InsulaError], int, str], ...] = (
    (errors.TooLarge, 413, "RequestEntityTooLarge"),
    (errors.Unauthorized, 401, "Unauthorized"),
    (errors.Forbidden, 403, "Forbidden"),
    (errors.NotFound, 404, "NotFound"),
    (errors.Unsupported, 405, "MethodNotAllowed"),
    (errors.AlreadyExists, 409, "AlreadyExists"),
    (errors.Conflict, 409, "Conflict"),
    (errors.Expired, 410, "Expired"),
    (errors.TooManyRequests, 429, "TooManyRequests"),
    (errors.DeadlineExceeded, 504, "Timeout"),
    (errors.Unavailable, 503, "ServiceUnavailable"),
    (errors.HostFault, 500, "InternalError"),
)


class NotAcceptable(InsulaError):  # noqa: N818 - named as in the tree of errors
    """The client takes no form that we can give (406)."""


class UnsupportedMediaType(InsulaError):  # noqa: N818
    """The body is in a form that we cannot read (415)."""


def code_and_reason(fault: InsulaError) -> tuple[int, str]:
    """The HTTP code and the machine word of a fault."""
    if isinstance(fault, NotAcceptable):
        return 406, "NotAcceptable"
    if isinstance(fault, UnsupportedMediaType):
        return 415, "UnsupportedMediaType"
    for kind, code, reason in _CODES:
        if isinstance(fault, kind):
            return code, reason
    if isinstance(fault, errors.Invalid):
        return (422, "Invalid") if fault.causes else (400, "BadRequest")
    return 500, "InternalError"


def status_of(fault: InsulaError, *, group: str = "", kind: str = "", name: str = "") -> dict[str, Any]:
    """The Status object. `kind` and `name` say what was asked for, where the fault itself does not."""
    code, reason = code_and_reason(fault)
    details: dict[str, Any] = {}
    if found := fault.name or name:
        details["name"] = found
    named, _, owner = (fault.kind or kind).partition(".")  # `deployments.apps`, `Deployment.apps`
    if found := owner or ("" if fault.kind else group):
        details["group"] = found
    if named:
        details["kind"] = named
    if fault.causes:
        details["causes"] = [
            {"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in fault.causes
        ]
    if fault.retry_after_s:
        details["retryAfterSeconds"] = max(1, round(fault.retry_after_s))
    out: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    out |= {"message": str(fault), "reason": reason}
    if details:
        out["details"] = details
    out["code"] = code
    return out


def success(*, group: str = "", kind: str = "", name: str = "", uid: str = "") -> dict[str, Any]:
    """The Status that answers a finished deletion."""
    details = {"name": name, "group": group, "kind": kind, "uid": uid}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {word: value for word, value in details.items() if value},
    }
