"""Status objects of an API server as the tree of `errors`: what `api/kube/errors.py` does, the other way round. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from insula import errors
from insula.errors import Cause, Expired, HostFault, InsulaError

_REASONS: dict[str, type[InsulaError]] = {
    "Unauthorized": errors.Unauthorized,
    "Forbidden": errors.Forbidden,
    "NotFound": errors.NotFound,
    "AlreadyExists": errors.AlreadyExists,
    "Conflict": errors.Conflict,
    "Invalid": errors.Invalid,
    "BadRequest": errors.Invalid,
    "RequestEntityTooLarge": errors.TooLarge,
    "MethodNotAllowed": errors.Unsupported,
    "NotAcceptable": errors.Unsupported,
    "UnsupportedMediaType": errors.Unsupported,
    "TooManyRequests": errors.TooManyRequests,
    "Timeout": errors.DeadlineExceeded,
    "ServerTimeout": errors.DeadlineExceeded,
    "ServiceUnavailable": errors.Unavailable,
}
_CODES: dict[int, type[InsulaError]] = {
    400: errors.Invalid,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.Unsupported,
    406: errors.Unsupported,
    409: errors.Conflict,
    413: errors.TooLarge,
    415: errors.Unsupported,
    422: errors.Invalid,
    429: errors.TooManyRequests,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}
_STALE = ("the object has been modified", "Precondition failed")


def fault_of(status: Any, code: int = 0) -> InsulaError:
    """The error that a Status (or, where the body is none, an HTTP code) stands for."""
    body: Mapping[str, Any] = status if isinstance(status, Mapping) and status.get("kind") == "Status" else {}
    code = int(body.get("code") or code)
    message = str(body.get("message") or f"the server answered with HTTP status {code}")
    reason = str(body.get("reason") or "")
    if reason in ("Expired", "Gone") or code == 410:
        return Expired(message, continue_token=str((body.get("metadata") or {}).get("continue") or ""))
    kind = _REASONS.get(reason) or _CODES.get(code)
    if kind is None:
        return HostFault(message, code=code)
    if kind is errors.Conflict and any(words in message for words in _STALE):
        kind = errors.StaleRevision
    return _made(kind, message, body.get("details") or {})


def _made(kind: type[InsulaError], message: str, details: Mapping[str, Any]) -> InsulaError:
    causes = [
        Cause(str(one.get("field") or ""), str(one.get("reason") or ""), str(one.get("message") or ""))
        for one in details.get("causes") or ()
    ]
    retry = details.get("retryAfterSeconds")
    return kind(
        message,
        causes=causes,
        field=causes[0].field if causes else None,
        kind=details.get("kind"),
        name=details.get("name"),
        retry_after_s=float(retry) if retry else None,
    )
