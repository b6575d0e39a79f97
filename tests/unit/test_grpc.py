"""gRPC in both roles over an in-memory pipe: calls, streams, flow control, cancellation, deadlines, hostile peers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import pytest
from hyperframe.frame import DataFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.api.grpc.connection import Connection, Method
from insula.api.grpc.status import Code, RpcFault, fault_in, timeout_s, trailers
from insula.api.grpc.stream import MESSAGE_LIMIT, Stream
from insula.errors import NotFound


class End:
    """One end of a pipe in memory."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=64)
        self.other: End

    async def read(self) -> bytes:
        return await self._queue.get()

    async def write(self, data: bytes) -> None:
        await self.other._queue.put(data)

    def leave(self) -> None:
        self.other._queue.put_nowait(b"")


def ends() -> tuple[End, End]:
    one, two = End(), End()
    one.other, two.other = two, one
    return one, two


@contextlib.asynccontextmanager
async def joined(methods: Mapping[str, Method]) -> AsyncIterator[tuple[Connection, Connection, End]]:
    here, there = ends()
    server, client = Connection(there, methods), Connection(here)
    tasks = [asyncio.create_task(server.run()), asyncio.create_task(client.run())]
    try:
        yield client, server, here
    finally:
        here.leave()
        there.leave()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)


async def echo(stream: Stream) -> None:
    while (message := await stream.recv()) is not None:
        await stream.send(message)


async def test_unary_and_status() -> None:
    async def missing(stream: Stream) -> None:
        raise NotFound("no such thing: ä%")

    async with joined({"/s/Echo": echo, "/s/Missing": missing}) as (client, _, _end):
        assert await client.unary("/s/Echo", b"hello", timeout=5) == b"hello"
        with pytest.raises(RpcFault, match="no such thing: ä%") as caught:
            await client.unary("/s/Missing", b"", timeout=5)
        assert caught.value.code == Code.NOT_FOUND
        with pytest.raises(RpcFault) as caught:
            await client.unary("/s/Other", b"", timeout=5)
        assert caught.value.code == Code.UNIMPLEMENTED


async def test_many_messages_both_ways_at_once() -> None:
    async with joined({"/s/Echo": echo}) as (client, _, _end), client.call("/s/Echo") as stream:

        async def send() -> None:
            for number in range(300):
                await stream.send(bytes([number % 256]) * 20_000)
            await stream.end()

        sending = asyncio.create_task(send())
        got = 0
        while (message := await stream.recv()) is not None:
            assert message == bytes([got % 256]) * 20_000
            got += 1
        await sending
        assert got == 300


async def test_a_message_larger_than_the_windows() -> None:
    big = bytes(range(256)) * 4 * 4096 * 2
    async with joined({"/s/Echo": echo}) as (client, _, _end):
        assert await client.unary("/s/Echo", big, timeout=20) == big


async def test_a_slow_reader_stops_the_sender() -> None:
    sent = 0

    async def pour(stream: Stream) -> None:
        nonlocal sent
        await stream.recv()
        for _ in range(2000):
            await stream.send(bytes(16_000))
            sent += 1

    async with joined({"/s/Pour": pour}) as (client, _, _end), client.call("/s/Pour") as stream:
        await stream.send(b"")
        await stream.end()
        await asyncio.sleep(0.3)
        held = sent
        assert held < 600
        got = 0
        while await stream.recv() is not None:
            got += 1
        assert got == 2000


async def test_leaving_a_call_cancels_the_method() -> None:
    cancelled = asyncio.Event()

    async def wait(stream: Stream) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with joined({"/s/Wait": wait, "/s/Echo": echo}) as (client, _, _end):
        with pytest.raises(RpcFault) as caught:
            await client.unary("/s/Wait", b"", timeout=0.1)
        assert caught.value.code == Code.DEADLINE_EXCEEDED
        await asyncio.wait_for(cancelled.wait(), 5)
        assert await client.unary("/s/Echo", b"still there", timeout=5) == b"still there"


async def test_the_clients_deadline_ends_a_method() -> None:
    async def wait(stream: Stream) -> None:
        await asyncio.Event().wait()

    async with joined({"/s/Wait": wait}) as (client, _, _end):
        with pytest.raises(RpcFault) as caught:
            await client.unary("/s/Wait", b"", timeout=5, metadata=[("grpc-timeout", "50m")])
        assert caught.value.code == Code.DEADLINE_EXCEEDED


async def test_a_lost_connection_fails_calls_and_cancels_methods() -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(stream: Stream) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with joined({"/s/Wait": wait}) as (client, _, end), client.call("/s/Wait") as stream:
        await asyncio.wait_for(entered.wait(), 5)
        end.leave()
        await asyncio.wait_for(cancelled.wait(), 5)
        end.other.leave()
        with pytest.raises(RpcFault) as caught:
            await stream.recv()
        assert caught.value.code == Code.UNAVAILABLE


async def test_oversized_and_compressed_messages_are_refused() -> None:
    async with joined({"/s/Echo": echo}) as (client, _, _end):
        for prefix, code in (
            (b"\0" + (MESSAGE_LIMIT + 1).to_bytes(4, "big"), Code.RESOURCE_EXHAUSTED),
            (b"\1" + (3).to_bytes(4, "big") + b"abc", Code.UNIMPLEMENTED),
        ):
            async with client.call("/s/Echo") as stream:
                await client.send(stream, prefix)
                with pytest.raises(RpcFault) as caught:
                    await stream.recv()
                assert caught.value.code == code


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64, b"\0"])
async def test_what_is_no_http2_ends_the_connection(junk: bytes) -> None:
    here, there = ends()
    task = asyncio.create_task(Connection(there, {}).run())
    await here.write(junk)
    here.leave()
    await asyncio.wait_for(task, 5)


@given(st.lists(st.binary(max_size=60), max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_bytes_end_a_connection_and_nothing_else(chunks: list[bytes], preface: bool) -> None:
    async def feed() -> None:
        here, there = ends()
        task = asyncio.create_task(Connection(there, {"/s/Echo": echo}).run())
        if preface:
            await here.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        for chunk in filter(None, chunks):
            await here.write(chunk)
        here.leave()
        await asyncio.wait_for(task, 5)

    asyncio.run(feed())


def test_frames_are_not_worded() -> None:
    assert len(repr(DataFrame(1, b"x" * 16_000))) < 200


def test_status_words() -> None:
    fault = RpcFault(Code.NOT_FOUND, "100 % über", details=b"\0\1\2")
    words = dict(trailers(fault))
    assert words["grpc-message"] == "100 %25 %C3%BCber"
    back = fault_in(words)
    assert back is not None and (back.code, str(back), back.details) == (5, "100 % über", b"\0\1\2")
    assert fault_in({"grpc-status": "0"}) is None
    broken = fault_in({":status": "404"})
    assert broken is not None and broken.code == Code.INTERNAL
    assert timeout_s("15S") == 15 and timeout_s("250m") == 0.25 and timeout_s("x") is None and timeout_s("") is None
