"""How a gRPC call ends: codes, messages and details, to and from the tree of faults. Pure.

Source: the gRPC documents "Status codes" and "gRPC over HTTP2" (Status-Message, Status-Details, Timeout).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from enum import IntEnum
from urllib.parse import unquote

from insula import errors


class Code(IntEnum):
    """The status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class RpcFault(errors.InsulaError):
    """A call that ended with another code than OK. `details` is an encoded `google.rpc.Status`, or nothing."""

    def __init__(self, code: int, message: str, *, details: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


# The first match counts, so a class stands before its parents.
_CODES: tuple[tuple[type[errors.InsulaError], Code], ...] = (
    (errors.TooLarge, Code.RESOURCE_EXHAUSTED),
    (errors.Invalid, Code.INVALID_ARGUMENT),
    (errors.Unauthorized, Code.UNAUTHENTICATED),
    (errors.Forbidden, Code.PERMISSION_DENIED),
    (errors.NotFound, Code.NOT_FOUND),
    (errors.Unsupported, Code.UNIMPLEMENTED),
    (errors.AlreadyExists, Code.ALREADY_EXISTS),
    (errors.Conflict, Code.FAILED_PRECONDITION),
    (errors.TooManyRequests, Code.RESOURCE_EXHAUSTED),
    (errors.DeadlineExceeded, Code.DEADLINE_EXCEEDED),
    (errors.Unavailable, Code.UNAVAILABLE),
)


def fault_of(fault: BaseException) -> RpcFault:
    """Any fault as the end of a call: our own sentences whole, of anything unforeseen only that it happened."""
    if isinstance(fault, RpcFault):
        return fault
    if isinstance(fault, errors.InsulaError):
        code = next((code for kind, code in _CODES if isinstance(fault, kind)), Code.UNKNOWN)
        return RpcFault(code, str(fault))
    if isinstance(fault, OSError) and fault.strerror:
        return RpcFault(Code.UNKNOWN, f"{fault.strerror}: {fault.filename}" if fault.filename else fault.strerror)
    return RpcFault(Code.INTERNAL, "an internal error occurred; it is in the log of the daemon")


def trailers(fault: RpcFault | None) -> list[tuple[str, str]]:
    """The last headers of a call."""
    if fault is None:
        return [("grpc-status", "0")]
    found = [("grpc-status", str(int(fault.code))), ("grpc-message", _escape(str(fault)))]
    if fault.details:
        found.append(("grpc-status-details-bin", base64.b64encode(fault.details).decode().rstrip("=")))
    return found


def fault_in(headers: Mapping[str, str]) -> RpcFault | None:
    """How the other side says that a call ended; a call without a status is broken."""
    status = headers.get("grpc-status", "")
    if status == "0":
        return None
    if not status.isdigit():
        return RpcFault(Code.INTERNAL, f"the other side ended a call without a status (HTTP {headers.get(':status')})")
    try:
        details = base64.b64decode(headers.get("grpc-status-details-bin", "") + "==")
    except (binascii.Error, ValueError):
        details = b""
    return RpcFault(int(status), unquote(headers.get("grpc-message", "")), details=details)


def _escape(message: str) -> str:
    return "".join(chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}" for byte in message.encode())


_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def timeout_s(header: str) -> float | None:
    """The `grpc-timeout` header; None where there is none or it makes no sense."""
    match = re.fullmatch(r"([0-9]{1,8})([HMSmun])", header)
    return int(match[1]) * _UNITS[match[2]] if match else None
