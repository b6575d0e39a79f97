"""The one translation of the tree of faults into the Docker Engine API's form: a status and `{"message": ...}`."""

from __future__ import annotations

import logging

from aiohttp import web

from insula import errors
from insula.api.web import json_response

log = logging.getLogger(__name__)

# The first match counts, so a class stands before its parents. Source: the status codes of the Docker Engine API.
_STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (errors.TooLarge, 413),
    (errors.Invalid, 400),
    (errors.Unauthorized, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Unsupported, 501),
    (errors.Conflict, 409),
    (errors.Expired, 410),
    (errors.TooManyRequests, 429),
    (errors.DeadlineExceeded, 504),
    (errors.Unavailable, 503),
    (errors.HostFault, 500),
)
_COMMAND_FAULTS = frozenset({126, 127})  # exit codes of a shell: not executable, not found


def status_of(fault: BaseException) -> int:
    """The HTTP status. A command that cannot be run in the container is the client's fault, as dockerd counts it."""
    if isinstance(fault, errors.HostFault) and fault.code in _COMMAND_FAULTS:
        return 400
    return next((status for kind, status in _STATUS if isinstance(fault, kind)), 500)


def sentence(fault: BaseException) -> str:
    """What is told to the client: our own sentences whole, of anything unforeseen only that it happened."""
    if isinstance(fault, errors.InsulaError):
        return str(fault)
    if isinstance(fault, BaseExceptionGroup):
        known = [
            sentence(each) for each in fault.exceptions if isinstance(each, errors.InsulaError | BaseExceptionGroup)
        ]
        return "; ".join(known) or "an internal error occurred; it is in the log of the daemon"
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.strerror}: {fault.filename}" if fault.filename else str(fault.strerror)
    return "an internal error occurred; it is in the log of the daemon"


def record(fault: BaseException, what: str) -> None:
    """Log what was not foreseen."""
    if isinstance(fault, errors.HostFault):
        log.warning(
            "host fault in a request", extra={"request": what, "command": fault.command, "stderr": fault.stderr}
        )
    elif isinstance(fault, ConnectionError):
        log.debug("a client left in the middle of a request", extra={"request": what})
    elif not isinstance(fault, errors.InsulaError):
        log.error("unforeseen error in a request", extra={"request": what}, exc_info=fault)


def response(fault: BaseException) -> web.Response:
    """The whole answer."""
    return json_response({"message": sentence(fault)}, status_of(fault))
