"""The gRPC health check of a probe: one call of `grpc.health.v1.Health/Check` over plain HTTP/2.

A server that does not answer, answers with an error or is not SERVING has failed. The deadline is the caller's.
Sources: gRPC's `health/v1/health.proto` (request: 1 service; response: 1 status, of which 1 is SERVING), "gRPC over HTTP2".
"""

from __future__ import annotations

import asyncio
import contextlib

from msgspec import Struct, field

_PATH = "/grpc.health.v1.Health/Check"
_ANSWER_LIMIT = 4096
_STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_UNIMPLEMENTED, _NOT_FOUND = "12", "5"


class Answer(Struct):
    """What has come of an answer so far."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    broken: str = ""


async def check(host: str, port: int, service: str) -> str | None:
    """None when the service is SERVING, else why it is not. Raises OSError."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        return verdict(await _call(reader, writer, f"{host}:{port}", service), service)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def question(service: str) -> bytes:
    """The request as a gRPC message: not compressed, with its length in front."""
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return b"\x00" + len(message).to_bytes(4, "big") + message


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def verdict(answer: Answer, service: str) -> str | None:
    """None for SERVING, else a sentence in the kubelet's manner."""
    if answer.broken:
        return f"grpc probe failed: {answer.broken}"
    if (status := answer.headers.get(":status", "")) != "200":
        return f"grpc probe failed: the server answered with HTTP status {status or 'none'}"
    code = answer.headers.get("grpc-status", "0" if answer.body else "none")
    if code == _UNIMPLEMENTED:
        return "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
    if code == _NOT_FOUND:
        return f'the grpc server does not know the service "{service}"'
    if code != "0":
        return f"grpc probe failed: status {code} {answer.headers.get('grpc-message', '')}".rstrip()
    state = state_of(bytes(answer.body))
    return None if state == 1 else f"service unhealthy (responded with {_STATES.get(state, state)})"


def state_of(body: bytes) -> int:
    """The status in the first message of an answer; an absent one is 0."""
    message = body[5 : 5 + int.from_bytes(body[1:5], "big")]
    return message[1] if len(message) == 2 and message[0] == 0x08 else 0


async def _call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str, service: str) -> Answer:
    # loaded here: few machines probe by gRPC
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.exceptions import ProtocolError

    wire = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    wire.initiate_connection()
    stream = wire.get_next_available_stream_id()
    head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", _PATH),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "kube-probe/1.37"),
    ]
    wire.send_headers(stream, head)
    wire.send_data(stream, question(service), end_stream=True)
    answer = Answer()
    try:
        while not answer.ended:
            writer.write(wire.data_to_send())
            await writer.drain()
            data = await reader.read(16 * 1024)
            if not data:
                answer.broken = answer.broken or "the server closed the connection"
                break
            for event in wire.receive_data(data):
                _take(answer, event)
    except ProtocolError as fault:
        answer.broken = f"the server does not speak HTTP/2: {fault}"
    return answer


def _take(answer: Answer, event: object) -> None:
    from h2 import events

    match event:
        case events.ResponseReceived() | events.TrailersReceived():
            answer.headers.update((str(name), str(value)) for name, value in event.headers or ())
        case events.DataReceived() if len(answer.body) < _ANSWER_LIMIT:
            answer.body += event.data or b""
        case events.StreamEnded():
            answer.ended = True
        case events.StreamReset() | events.ConnectionTerminated():
            answer.ended, answer.broken = True, "the server broke the call off"
