"""Sessions: opened by headers, reached through a tunnel inside a call, asked, waited for; agents behind sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from insula.api.docker.buildkit import attached, sessions
from insula.api.docker.buildkit.control import _Tunnel
from insula.api.docker.buildkit.messages import BytesMessage, Empty
from insula.api.docker.buildkit.session_messages import (
    CredentialsRequest,
    CredentialsResponse,
    SecretRequest,
    SecretResponse,
)
from insula.api.docker.buildkit.sessions import HEADER, Session, Sessions
from insula.api.grpc.connection import Connection, Method
from insula.api.grpc.stream import Stream
from insula.errors import Invalid, NotFound, Unsupported
from insula.images.contract import Auth
from insula.model.protobuf import decode, encode
from unit.test_grpc import End, ends


async def _credentials(stream: Stream) -> None:
    message = await stream.recv()
    assert message is not None
    host = decode(message, CredentialsRequest).host
    found = {
        "registry-1.docker.io": CredentialsResponse("bob", "word"),
        "token.example": CredentialsResponse("", "identity"),
    }.get(host, CredentialsResponse())
    await stream.send(encode(found))


async def _secret(stream: Stream) -> None:
    message = await stream.recv()
    assert message is not None
    if decode(message, SecretRequest).id != "known":
        raise NotFound("no such secret")
    await stream.send(encode(SecretResponse(b"\0hush")))


async def _check(stream: Stream) -> None:
    await stream.recv()
    await stream.send(encode(Empty()))


async def _forward(stream: Stream) -> None:
    assert stream.metadata("buildkit.ssh.id") == ["default"]
    while (message := await stream.recv()) is not None:
        await stream.send(encode(BytesMessage(decode(message, BytesMessage).data.upper())))


CLIENT: Mapping[str, Method] = {
    "/moby.filesync.v1.Auth/Credentials": _credentials,
    "/moby.buildkit.secrets.v1.Secrets/GetSecret": _secret,
    "/moby.sshforward.v1.SSH/CheckAgent": _check,
    "/moby.sshforward.v1.SSH/ForwardAgent": _forward,
}


def headers(id: str, methods: Mapping[str, Method] = CLIENT) -> list[tuple[str, str]]:
    return [(HEADER + "uuid", id), (HEADER + "sharedkey", "k"), *((HEADER + "grpc-method", each) for each in methods)]


@asynccontextmanager
async def tunnelled(id: str, methods: Mapping[str, Method] = CLIENT) -> AsyncIterator[Session]:
    """A client whose session goes through a call, as `Control.Session` carries it."""
    registry = Sessions()

    async def serve(stream: Stream) -> None:
        await registry.serve(stream.metadata, _Tunnel(stream))

    here, there = ends()
    server, outer = Connection(there, {"/session": serve}), Connection(here)
    running = [asyncio.create_task(server.run()), asyncio.create_task(outer.run())]
    try:
        async with outer.call("/session", headers(id, methods)) as stream:
            inner = asyncio.create_task(Connection(_Tunnel(stream), methods).run())
            yield await registry.get(id)
            inner.cancel()
            await asyncio.gather(inner, return_exceptions=True)
    finally:
        here.leave()
        there.leave()
        await asyncio.gather(*running)
    assert registry._open == {}


async def test_what_a_client_offers_through_a_tunnel() -> None:
    async with tunnelled("one") as session:
        assert session.shared_key == "k"
        assert await attached.credentials(session, "docker.io") == Auth(username="bob", password="word")
        assert await attached.credentials(session, "token.example") == Auth(identity_token="identity")
        assert await attached.credentials(session, "other.example") is None
        assert await attached.secret(session, "known") == b"\0hush"
        assert await attached.secret(session, "unknown") is None
        async with attached.agent(session, "default") as path:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), 5) == b"HELLO"
            writer.close()
            await writer.wait_closed()


async def test_what_a_client_does_not_offer() -> None:
    async with tunnelled("one", {}) as session:
        assert await attached.secret(session, "known") is None
        assert await attached.credentials(session, "docker.io") is None
        with pytest.raises(NotFound, match="--ssh default"):
            async with attached.agent(session, "default"):
                pass
        with pytest.raises(Unsupported):
            session.need("/moby.upload.v1.Upload/Pull")


async def test_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Sessions()
    with pytest.raises(Invalid):
        registry.check(lambda name: [])
    with pytest.raises(Invalid):
        registry.check(lambda name: ["x" * 1000])
    monkeypatch.setattr(sessions, "APPEARS_S", 0.05)
    with pytest.raises(NotFound, match="no active session for two"):
        await registry.get("two")
    monkeypatch.setattr(sessions, "APPEARS_S", 5)
    waiting = asyncio.create_task(registry.get("late"))
    pipe, other = ends()
    words = {HEADER + "uuid": ["late"]}
    serving = asyncio.create_task(registry.serve(lambda name: words.get(name, []), pipe))
    assert (await asyncio.wait_for(waiting, 5)).id == "late"
    with pytest.raises(Invalid, match="already exists"):
        registry.check(lambda name: words.get(name, []))
    assert isinstance(other, End)
    other.leave()
    await asyncio.wait_for(serving, 5)
