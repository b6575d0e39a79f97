"""A build as the classic endpoint tells it: `Step 2/5 : RUN …`, ` ---> Using cache`, and so on, as lines of JSON.

Stages run beside each other, but their lines come in the order of the steps: what a later step has to say waits until those
before it have ended.
"""

from __future__ import annotations

import asyncio
import codecs
from typing import Any

from insula.api.docker.images_words import bar
from insula.api.web import encode
from insula.engine.building.contract import Vertex, VertexLog, VertexStatus, Warning

_WAITING_BYTES = 16 * 1024 * 1024  # ready to be sent
_HELD_BYTES = 4 * 1024 * 1024  # of one step that waits for its turn; what is more is left out, and said so
_RED, _PLAIN = "\x1b[91m", "\x1b[0m"  # how dockerd marks what a step wrote to its standard error


class ClassicLines:
    """Listens to one build. `take` gives what is to be sent now."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._ready: list[bytes] = []
        self._held: dict[int, list[bytes]] = {}
        self._held_bytes: dict[int, int] = {}
        self._seen: dict[str, Vertex] = {}
        self._turn = 1
        self._ended: set[int] = set()
        self._arrived = asyncio.Event()
        self._decoders: dict[tuple[str, int], codecs.IncrementalDecoder] = {}
        self._ready_bytes = 0
        self._lost = False

    # --- from the builder -----------------------------------------------------------------------------------------

    def vertex(self, vertex: Vertex, /) -> None:
        """See `contract.Progress`."""
        before = self._seen.get(vertex.digest)
        self._seen[vertex.digest] = vertex
        number = vertex.number
        if vertex.started and not (before and before.started):
            if number:
                self._say(number, f"Step {number}/{vertex.total} : {vertex.text}\n")
            elif vertex.text:
                self._say(number, f"{vertex.text}\n")
        if vertex.container and not (before and before.container):
            self._say(number, f" ---> Running in {vertex.container[:12]}\n")
        if vertex.container_removed and not (before and before.container_removed):
            self._say(number, f" ---> Removed intermediate container {vertex.container[:12]}\n")
        if vertex.completed and not (before and before.completed):
            self._end(vertex)

    def _end(self, vertex: Vertex) -> None:
        if not vertex.error:
            begins = vertex.text[:4].upper() == "FROM"
            if vertex.cached and not begins:
                self._say(vertex.number, " ---> Using cache\n")
            if vertex.image or begins:
                self._say(vertex.number, f" ---> {vertex.image.removeprefix('sha256:')[:12]}\n")
        if vertex.number:
            self._ended.add(vertex.number)
        while self._turn in self._ended:
            self._turn += 1
            self._ready += self._held.pop(self._turn, [])
            self._arrived.set()

    def log(self, log: VertexLog, /) -> None:
        """See `contract.Progress`."""
        key = (log.vertex, log.stream)
        if key not in self._decoders:  # a character may be cut in two by the pieces that output comes in
            self._decoders[key] = codecs.getincrementaldecoder("utf-8")("replace")
        if text := self._decoders[key].decode(log.data):
            self._say(self._number(log.vertex), f"{_RED}{text}{_PLAIN}" if log.stream == 2 else text, output=True)

    def status(self, status: VertexStatus, /) -> None:
        """See `contract.Progress`. Pulls are told as `docker pull` tells them."""
        if self._quiet:
            return
        words: dict[str, Any] = {"status": status.name.removesuffix(status.id).strip() or status.name, "id": status.id}
        if status.current or status.total:
            total = {"total": status.total} if status.total else {}
            words |= {
                "progressDetail": {"current": status.current, **total},
                "progress": bar(status.current, status.total),
            }
        self._put(self._number(status.vertex), encode(words) + b"\r\n")

    def warning(self, warning: Warning, /) -> None:
        """See `contract.Progress`."""
        if not warning.rule:
            self._say(self._number(warning.vertex), f"{warning.message}\n")

    def _number(self, digest: str) -> int:
        vertex = self._seen.get(digest)
        return vertex.number if vertex else 0

    def _say(self, number: int, text: str, *, output: bool = False) -> None:
        if not self._quiet:
            self._put(number, stream_line(text), output=output)

    def _put(self, number: int, line: bytes, *, output: bool = False) -> None:
        if number <= self._turn:
            self._send(line, output=output)
            return
        held = self._held_bytes.get(number, 0)
        self._held_bytes[number] = held + len(line)
        if held <= _HELD_BYTES < held + len(line):
            line = stream_line("[output of this step is left out: it waited too long for its turn]\n")
        elif held > _HELD_BYTES:
            return
        self._held.setdefault(number, []).append(line)

    def _send(self, line: bytes, *, output: bool) -> None:
        """A client that reads slowly loses output of the steps, said so once; it loses nothing else."""
        if output and self._ready_bytes > _WAITING_BYTES:
            if not self._lost:
                self._lost = True
                self._ready.append(stream_line("[output is left out: the client reads too slowly]\n"))
            return
        self._ready.append(line)
        self._ready_bytes += len(line)
        self._arrived.set()

    # --- to the client --------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """What is to be sent now."""
        lines, self._ready = self._ready, []
        self._ready_bytes, self._lost = 0, False
        self._arrived.clear()
        return b"".join(lines)

    def rest(self) -> bytes:
        """At the end of a build that failed: what was held back, too."""
        for number in sorted(self._held):
            self._ready += self._held.pop(number)
        return self.take()

    async def arrived(self) -> None:
        """Until there is something."""
        await self._arrived.wait()


def stream_line(text: str) -> bytes:
    """A line that clients print as it is."""
    return encode({"stream": text}) + b"\r\n"
