"""One gRPC call on a connection: whole messages in and out, in either role. Flow control follows the reader: what nobody takes
is not acknowledged, so a peer cannot fill our memory.

Source: "gRPC over HTTP2" (Length-Prefixed-Message: a flag, four bytes of length, the message).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from insula.api.grpc.status import Code, RpcFault, fault_in

if TYPE_CHECKING:
    from insula.api.grpc.connection import Connection

MESSAGE_LIMIT = 16 * 1024 * 1024  # BuildKit's own
QUEUE_LIMIT = 1024 * 1024
_PREFIX = 5
Headers = Iterable[tuple[str, str]]


class Stream:
    """One call. One task may receive and one may send at a time (`send` of several tasks needs a lock of theirs)."""

    def __init__(self, connection: Connection, number: int, headers: Headers = ()) -> None:
        self._connection = connection
        self.number = number
        self._metadata: dict[str, list[str]] = {}
        self.add_metadata(headers)
        self._partial = bytearray()
        self._messages: deque[bytes] = deque()
        self._queued = 0
        self._unacknowledged = 0
        self._fault: RpcFault | None = None
        self._changed = asyncio.Event()
        self.window = asyncio.Event()  # set whenever there may be room to send
        self.remote_ended = False
        self.local_ended = False
        self.answered = False  # headers of the answer were sent (server) or received (client)

    # --- what the caller uses -----------------------------------------------------------------------------------

    def metadata(self, name: str) -> list[str]:
        """All values of a header."""
        return self._metadata.get(name, [])

    async def recv(self) -> bytes | None:
        """The next message, None at the end. Raises RpcFault when the call failed or the connection is lost."""
        while not self._messages:
            if self._fault is not None:
                raise self._fault
            if self.remote_ended:
                self._end()
                return None
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self._queued -= len(message)
        self._acknowledge()
        return message

    def waiting(self) -> bool:
        """Whether `recv` would answer a message at once."""
        return bool(self._messages)

    async def send(self, message: bytes) -> None:
        """One message; waits for the other side's window. Raises RpcFault."""
        await self._connection.send(self, b"\0" + len(message).to_bytes(4, "big") + message)

    def answer(self, headers: Headers) -> None:
        """A server's first words, with headers of its own, before anything is sent. Raises RpcFault."""
        self._connection.answer(self, headers)

    async def end(self) -> None:
        """A client has sent all of its messages."""
        await self._connection.send(self, b"", end=True)

    def check(self) -> None:
        """Raises what ended the call."""
        if self._fault is not None:
            raise self._fault

    def _end(self) -> None:
        if self._partial:
            raise RpcFault(Code.INTERNAL, "the other side ended a call in the middle of a message")
        if self._connection.client and (fault := fault_in(self._last())) is not None:
            raise fault

    def _last(self) -> Mapping[str, str]:
        return {name: values[-1] for name, values in self._metadata.items()}

    # --- what the connection tells ------------------------------------------------------------------------------

    def add_metadata(self, headers: Headers) -> None:
        """Headers or trailers came."""
        for name, value in headers:
            self._metadata.setdefault(name, []).append(value)

    def feed(self, data: bytes, credit: int) -> None:
        """Bytes came; `credit` is what they cost the window."""
        self._unacknowledged += credit
        self._partial += data
        while self._fault is None and self._take_message():
            pass
        self._acknowledge()
        self._changed.set()

    def _take_message(self) -> bool:
        if len(self._partial) < _PREFIX:
            return False
        size = int.from_bytes(self._partial[1:_PREFIX], "big")
        if self._partial[0]:
            self.fail(RpcFault(Code.UNIMPLEMENTED, "compressed gRPC messages are not taken: send them as they are"))
        elif size > MESSAGE_LIMIT:
            self.fail(
                RpcFault(Code.RESOURCE_EXHAUSTED, f"a message of {size} bytes is over the limit of {MESSAGE_LIMIT}")
            )
        elif len(self._partial) >= _PREFIX + size:
            self._messages.append(bytes(self._partial[_PREFIX : _PREFIX + size]))
            del self._partial[: _PREFIX + size]
            self._queued += size
            return True
        return False

    def _acknowledge(self) -> None:
        if self._unacknowledged and self._queued < QUEUE_LIMIT:
            credit, self._unacknowledged = self._unacknowledged, 0
            self._connection.acknowledge(self.number, credit)

    def drop(self) -> int:
        """Nobody will read any more: what the connection's window gets back."""
        self._messages.clear()
        self._partial.clear()
        self._queued = 0
        credit, self._unacknowledged = self._unacknowledged, 0
        return credit

    def ended(self) -> None:
        """The other side has sent all."""
        self.remote_ended = True
        self._changed.set()

    def fail(self, fault: RpcFault) -> None:
        """Nothing comes any more, and nothing can be sent. The first fault counts."""
        self._fault = self._fault or fault
        self._partial.clear()
        self._changed.set()
        self.window.set()
