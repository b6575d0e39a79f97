"""The frames between the agent in a machine, the relay beside QEMU, and Insula. Written once for all three (the agent's own
form of it is images/machine/agent/agent.c).

A frame is its type (one byte), a zero byte, a session (2 bytes), a length (4 bytes), all little endian, and that many bytes.
Session 0 is the image's process, 1 to 65535 are execs or questions; who starts one chooses its number.

A sender of bytes of a stream (INPUT, OUTPUT, ERRORS) has a window, `WINDOW` bytes at the start; what was taken is granted again
by MORE_INPUT or MORE_OUTPUT. So nobody has to hold more than that, and a stream that nobody reads holds up no other.

What comes from the machine is a stranger's: `Reader` bounds it, whoever uses it believes none of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

WINDOW = 256 * 1024
LARGEST = 64 * 1024  # from the machine
LARGEST_RUN = 4 * 1024 * 1024  # to the machine

# to the machine
RUN = b"R"  # records, `key=value` with a NUL after each: see images/machine/agent/agent.c
INPUT = b"I"  # bytes for standard input; none at all is its end
MORE_OUTPUT = b"W"  # a number: that many bytes of output were taken
SIGNAL = b"S"  # a number
RESIZE = b"Z"  # columns, rows: two bytes each
CLOSE = b"C"  # nobody listens to this session any more
# both ways
LIST = b"P"  # a question for the processes; an answer is one process, an empty one the end
# from the machine
HELLO = b"H"  # the version of this protocol
BEGUN = b"B"  # the process runs
FAILED = b"F"  # it could not be started: an exit code (4 bytes), then words
OUTPUT = b"O"
ERRORS = b"E"
MORE_INPUT = b"V"  # a number: that many bytes of input were taken
ENDED = b"X"  # a number: the exit code, 128 + signal for a killed one

_HEAD = struct.Struct("<cBHI")
_NUMBER = struct.Struct("<I")


class BadFrame(Exception):  # noqa: N818 - the field's own word
    """The other side does not keep to the protocol."""


def pack(kind: bytes, session: int, data: bytes | memoryview = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(kind, 0, session, len(data)) + bytes(data)


def pack_number(kind: bytes, session: int, value: int) -> bytes:
    """One frame that carries a number."""
    return pack(kind, session, _NUMBER.pack(value))


def number(data: bytes) -> int:
    """The number that a frame begins with. Raises BadFrame."""
    if len(data) < _NUMBER.size:
        raise BadFrame("a number is missing")
    return int(_NUMBER.unpack_from(data)[0])


class Reader:
    """Takes bytes as they come and gives whole frames. `largest` bounds what it holds."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
        """(type, session, data) of every frame that is complete now. Raises BadFrame."""
        self._rest += data
        at = 0
        while len(self._rest) - at >= _HEAD.size:
            kind, zero, session, length = _HEAD.unpack_from(self._rest, at)
            if zero or length > self._largest:
                raise BadFrame(f"a frame of type {kind!r} and {length} bytes")
            end = at + _HEAD.size + length
            if len(self._rest) < end:
                break
            yield kind, session, bytes(self._rest[at + _HEAD.size : end])
            at = end
        del self._rest[:at]
