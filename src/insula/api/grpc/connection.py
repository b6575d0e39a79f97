"""gRPC over one HTTP/2 connection that is there already (a hijacked one, or a tunnel through another call), in either role.

`run` carries the bytes until the other side leaves; all else is called by other tasks of the same loop. A server's methods are
rows of a table, each a function of its stream; a client makes calls with `call`. `h2` does the framing, HPACK and the state
machine; what is here is what gRPC adds. gRPC libraries for Python either bring their own sockets or have no limits.

Source: RFC 9113, and "gRPC over HTTP2".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Protocol

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.frame import DataFrame

from insula.api.grpc.status import Code, RpcFault, fault_of, timeout_s, trailers
from insula.api.grpc.stream import Headers, Stream
from insula.errors import HostFault, InsulaError

log = logging.getLogger(__name__)
Method = Callable[[Stream], Awaitable[None]]
STREAM_WINDOW = 2 * 1024 * 1024
CONNECTION_WINDOW = 16 * 1024 * 1024
CONCURRENT_CALLS = 250
UNSENT_LIMIT = 512 * 1024
HEADERS_LIMIT = 256 * 1024
_KIND = "application/grpc"


def _size_of(frame: DataFrame) -> str:
    return f"{len(frame.data)} bytes"


# h2 words every frame for a log that goes nowhere; of DATA that is all of its bytes in hexadecimal, a third of a transfer's time.
DataFrame._body_repr = _size_of  # type: ignore[method-assign, assignment]


class Pipe(Protocol):
    """Bytes both ways. `read` answers b"" at the end, `write` raises ConnectionError when nobody is there."""

    async def read(self) -> bytes:
        """The next bytes."""
        ...

    async def write(self, data: bytes) -> None:
        """Send; waits while the other side is slow."""
        ...


class Connection:
    """One connection. Give `methods` (paths such as `/grpc.health.v1.Health/Check`) to be a server, None to be a client."""

    def __init__(self, pipe: Pipe, methods: Mapping[str, Method] | None = None) -> None:
        self._pipe = pipe
        self._methods = methods or {}
        self.client = methods is None
        self._h2 = H2Connection(H2Configuration(client_side=self.client, header_encoding="utf-8"))
        self._streams: dict[int, Stream] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._unsent = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._lost: RpcFault | None = None
        self._begin()

    @property
    def lost(self) -> bool:
        """Whether nothing can be called any more."""
        return self._lost is not None

    async def run(self) -> None:
        """Until the other side has left or broke the protocol. Calls that are under way then fail, methods are cancelled."""
        writer = asyncio.create_task(self._write(), name="grpc/writer")
        try:
            while data := await self._pipe.read():
                if not self._received(data):
                    break
        except ConnectionError:
            pass
        finally:
            self._end(RpcFault(Code.UNAVAILABLE, "the connection was closed"))
            with contextlib.suppress(ConnectionError):
                await self._flush()
            serving = list(self._serving.values())
            for task in (writer, *serving):
                task.cancel()
            await asyncio.gather(writer, *serving, return_exceptions=True)

    def close(self) -> None:
        """Tell the other side that there will be no more calls; `run` ends when it has left."""
        if self._lost is None:
            with contextlib.suppress(H2Error):
                self._h2.close_connection()
            self._wake.set()

    def _begin(self) -> None:
        self._h2.local_settings = Settings(
            client=self.client,
            initial_values={
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_CONCURRENT_STREAMS: CONCURRENT_CALLS,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEADERS_LIMIT,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - 65535)
        self._wake.set()

    def _end(self, fault: RpcFault) -> None:
        self._lost = self._lost or fault
        for stream in self._streams.values():
            stream.fail(self._lost)
        self._room.set()

    # --- a client's calls ---------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def call(self, path: str, metadata: Headers = ()) -> AsyncIterator[Stream]:
        """One call; leaving the block before its end cancels it. Raises RpcFault."""
        if self._lost is not None:
            raise self._lost
        head = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", _KIND),
            *metadata,
        ]
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, head)
        except H2Error as fault:
            raise RpcFault(Code.UNAVAILABLE, f"the call {path} cannot be made: {fault}") from None
        stream = self._streams[number] = Stream(self, number)
        self._wake.set()
        try:
            yield stream
        finally:
            self._forget(stream, ErrorCodes.CANCEL)

    async def unary(self, path: str, request: bytes, *, timeout: float, metadata: Headers = ()) -> bytes:
        """One message there, one back. Raises RpcFault, also when there is no answer in time (seconds)."""
        try:
            async with asyncio.timeout(timeout), self.call(path, metadata) as stream:
                await stream.send(request)
                await stream.end()
                answer = await stream.recv()
                if answer is None or await stream.recv() is not None:
                    raise RpcFault(Code.INTERNAL, f"{path} was answered with another number of messages than one")
                return answer
        except TimeoutError:
            raise RpcFault(Code.DEADLINE_EXCEEDED, f"{path} was not answered within {timeout:g} s") from None

    def _forget(self, stream: Stream, code: ErrorCodes) -> None:
        self._streams.pop(stream.number, None)
        with contextlib.suppress(H2Error):
            if credit := stream.drop():
                self._h2.acknowledge_received_data(credit, stream.number)
        if self._lost is None and not (stream.remote_ended and stream.local_ended):
            with contextlib.suppress(H2Error):
                self._h2.reset_stream(stream.number, code)
        self._wake.set()

    # --- sending ------------------------------------------------------------------------------------------------

    async def send(self, stream: Stream, data: bytes, *, end: bool = False) -> None:
        """For streams: DATA frames as the windows allow. Raises RpcFault."""
        view = memoryview(data)
        self.answer(stream)
        while True:
            stream.check()
            size = self._allowed(stream, len(view))
            if size or not len(view):
                with self._translated():
                    self._h2.send_data(stream.number, bytes(view[:size]), end_stream=end and size == len(view))
                view = view[size:]
                self._unsent += size
                self._wake.set()
                if not len(view):
                    stream.local_ended = stream.local_ended or end
                    break
            else:
                stream.window.clear()
                await stream.window.wait()
        if self._unsent > UNSENT_LIMIT:
            self._room.clear()
            await self._room.wait()
            stream.check()

    def _allowed(self, stream: Stream, size: int) -> int:
        with self._translated():
            window = self._h2.local_flow_control_window(stream.number)
        return min(size, window, self._h2.max_outbound_frame_size)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except H2Error as fault:
            raise RpcFault(Code.CANCELLED, f"the call has ended: {fault}") from None

    def answer(self, stream: Stream, headers: Headers = ()) -> None:
        """For streams: a server's first words, unless they were said. Raises RpcFault."""
        if not self.client and not stream.answered:
            stream.answered = True
            with self._translated():
                self._h2.send_headers(stream.number, [(":status", "200"), ("content-type", _KIND), *headers])
            self._wake.set()

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await self._wake.wait()
                await self._flush()

    async def _flush(self) -> None:
        self._wake.clear()
        self._unsent = 0
        if data := self._h2.data_to_send():
            await self._pipe.write(data)
        self._room.set()

    # --- receiving ----------------------------------------------------------------------------------------------

    def acknowledge(self, number: int, credit: int) -> None:
        """For streams: the reader has taken so many bytes."""
        with contextlib.suppress(H2Error):
            self._h2.acknowledge_received_data(credit, number)
        self._wake.set()

    def _received(self, data: bytes) -> bool:
        """Returns whether the connection goes on."""
        try:
            found = self._h2.receive_data(data)
        except (H2Error, UnicodeDecodeError, ValueError) as fault:
            log.debug("broken HTTP/2 from a gRPC peer", extra={"fault": str(fault)})
            self._end(RpcFault(Code.INTERNAL, f"the other side broke the protocol: {fault}"))
            return False
        for event in found:
            if isinstance(event, events.ConnectionTerminated):
                return False
            self._happened(event)
        self._wake.set()
        return True

    def _happened(self, event: events.Event) -> None:
        if isinstance(event, events.WindowUpdated | events.RemoteSettingsChanged):
            for stream in self._streams.values():
                stream.window.set()
        elif isinstance(event, events.RequestReceived):
            self._requested(event)
        else:
            self._of_stream(event)

    def _of_stream(self, event: events.Event) -> None:
        number = getattr(event, "stream_id", None)
        stream = self._streams.get(number) if isinstance(number, int) else None
        match event:
            case events.DataReceived():
                credit = event.flow_controlled_length or 0
                if stream is None:
                    self.acknowledge(event.stream_id or 0, credit)
                else:
                    stream.feed(event.data or b"", credit)
            case events.ResponseReceived() | events.TrailersReceived() if stream is not None:
                stream.add_metadata(_texts(event.headers))
            case events.StreamEnded() if stream is not None:
                stream.ended()
            case events.StreamReset() if stream is not None:
                self._was_reset(stream, int(event.error_code or 0))

    def _was_reset(self, stream: Stream, code: int) -> None:
        """A peer that has answered resets what it does not want to read: then the status counts, which came before."""
        if self.client and stream.metadata("grpc-status"):
            stream.ended()
            return
        stream.fail(RpcFault(Code.CANCELLED, f"the other side cancelled the call (HTTP/2 error {code})"))
        if task := self._serving.get(stream.number):
            task.cancel()

    # --- a server's methods -------------------------------------------------------------------------------------

    def _requested(self, event: events.RequestReceived) -> None:
        number = event.stream_id or 0
        stream = self._streams[number] = Stream(self, number, _texts(event.headers))
        task = asyncio.create_task(self._serve(stream), name=f"grpc{stream.metadata(':path')[-1]}")
        self._serving[number] = task

    async def _serve(self, stream: Stream) -> None:
        fault: RpcFault | None = None
        path = stream.metadata(":path")[-1]
        try:
            async with asyncio.timeout(timeout_s((stream.metadata("grpc-timeout") or [""])[-1])):
                method = self._methods.get(path)
                if method is None:
                    raise RpcFault(Code.UNIMPLEMENTED, f"the method {path} is not served here")
                await method(stream)
        except TimeoutError:
            fault = RpcFault(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
        except asyncio.CancelledError:
            fault = RpcFault(Code.CANCELLED, "context canceled")
            raise
        except Exception as unexpected:
            if not isinstance(unexpected, InsulaError) or isinstance(unexpected, HostFault):
                log.error("unforeseen error in a gRPC method", extra={"method": path}, exc_info=unexpected)
            fault = fault_of(unexpected)
        finally:
            self._finish(stream, fault)

    def _finish(self, stream: Stream, fault: RpcFault | None) -> None:
        """Trailers, and with nothing sent before also the headers in the same frame."""
        self._serving.pop(stream.number, None)
        if self._lost is None:
            head = [] if stream.answered else [(":status", "200"), ("content-type", _KIND)]
            with contextlib.suppress(H2Error):
                self._h2.send_headers(stream.number, [*head, *trailers(fault)], end_stream=True)
                stream.local_ended = True
        self._forget(stream, ErrorCodes.NO_ERROR)


def _texts(headers: object) -> list[tuple[str, str]]:
    """h2 gives text with `header_encoding`."""
    return [(str(name), str(value)) for name, value in headers or ()]  # type: ignore[attr-defined]
