"""Reading the log that conmon writes (its `k8s-file` format, the Kubernetes CRI log format).

A line is `TIME STREAM TAG DATA`: `2026-01-02T03:04:05.123456789+00:00 stdout F text`. The tag is F for data that ended with a
line feed and P (partial) for data that did not, where the line feed of the file is not part of the data. So every byte
that was written can be had back, whatever it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct


class Entry(Struct, frozen=True):
    """A piece of output. `time` is RFC 3339 with nanoseconds and the host's offset; `data` includes its line feed."""

    time: str
    stream: Literal["stdout", "stderr"]
    partial: bool
    data: bytes


def parse_line(line: bytes) -> Entry | None:
    """One line of the file, with its line feed. None for one that conmon did not write (a torn or foreign line)."""
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr") or parts[2][:1] not in (b"P", b"F"):
        return None
    partial = parts[2][:1] == b"P"
    return Entry(
        parts[0].decode("ascii", "replace"),
        "stdout" if parts[1] == b"stdout" else "stderr",
        partial,
        parts[3][:-1] if partial else parts[3],
    )


class Parser:
    """Feed it the file in any pieces; the end of a line that is still being written waits for the next piece."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[Entry]:
        """The entries completed by this piece."""
        lines = (self._rest + chunk).split(b"\n") if self._rest else chunk.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if entry := parse_line(line + b"\n"):
                yield entry
