"""What a builder may ask of its client: registry credentials, secrets, SSH agents, uploads, in the words of a `BuildRequest`.

Source: BuildKit's `session/auth`, `session/secrets`, `session/sshforward`, `session/upload` (method and metadata names).
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from insula.api.docker.buildkit.messages import BytesMessage, Empty
from insula.api.docker.buildkit.session_messages import (
    AgentRequest,
    CredentialsRequest,
    CredentialsResponse,
    SecretRequest,
    SecretResponse,
)
from insula.api.docker.buildkit.sessions import Session
from insula.api.grpc.status import RpcFault
from insula.api.grpc.stream import Stream
from insula.errors import Invalid, NotFound
from insula.host.rmtree import remove_tree
from insula.host.tarstream import Plain, consume
from insula.host.untar import unpack
from insula.images.contract import Auth
from insula.model.protobuf import decode, encode
from insula.tasks import Tasks, finish, in_thread

_CHUNK = 32 * 1024
_HUB = frozenset({"", "docker.io", "index.docker.io", "registry-1.docker.io"})
_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"  # noqa: S105
_CHECK, _FORWARD = "/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent"
_PULL = "/moby.upload.v1.Upload/Pull"


async def credentials(session: Session, host: str) -> Auth | None:
    """What the client's configuration or credential helper has for a registry."""
    asked = "registry-1.docker.io" if host in _HUB else host
    found = await session.ask(_CREDENTIALS, CredentialsRequest(asked), CredentialsResponse)
    if found is None or not found.secret:
        return None
    if not found.username:
        return Auth(identity_token=found.secret)
    return Auth(username=found.username, password=found.secret)


async def secret(session: Session, id: str) -> bytes | None:
    """A secret's bytes, None where the client has none of that id."""
    found = await session.ask(_SECRET, SecretRequest(id), SecretResponse)
    return None if found is None else found.data


# --- agents ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def agent(session: Session, id: str) -> AsyncIterator[str]:
    """The path of a socket behind which the client's agent answers. Raises NotFound."""
    if await session.ask(_CHECK, AgentRequest(id), Empty) is None:
        raise NotFound(f"no SSH agent with the id {id!r} was forwarded: build with --ssh {id}")
    folder = Path(await in_thread(tempfile.mkdtemp, prefix="insula-ssh-"))
    try:
        async with Tasks("ssh") as conversations:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                conversations.spawn(_converse(session, id, reader, writer), "agent")

            server = await asyncio.start_unix_server(accept, folder / "agent")
            try:
                await in_thread((folder / "agent").chmod, 0o666)  # the step may run as any user; its folder is private
                yield str(folder / "agent")
            finally:
                server.close()
    finally:
        await in_thread(remove_tree, folder)


async def _converse(session: Session, id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer), contextlib.suppress(RpcFault, ConnectionError):
        async with session.connection.call(_FORWARD, [("buildkit.ssh.id", id)]) as stream:
            upward = asyncio.create_task(_upward(reader, stream), name="ssh/upward")
            try:
                while (message := await stream.recv()) is not None:
                    writer.write(decode(message, BytesMessage).data)
                    await writer.drain()
            finally:
                await finish(upward)


async def _upward(reader: asyncio.StreamReader, stream: Stream) -> None:
    with contextlib.suppress(RpcFault, ConnectionError):
        while data := await reader.read(_CHUNK):
            await stream.send(encode(BytesMessage(data)))
        await stream.end()


# --- uploads --------------------------------------------------------------------------------------------------------


async def unpack_upload(session: Session, id: str, folder: Path) -> None:
    """The tar (maybe compressed) that the client read from its standard input. Raises Invalid, RpcFault."""
    method = session.need(_PULL)
    async with session.connection.call(method, [("urlpath", f"/{id}"), ("urlhost", "buildkit-session")]) as stream:

        async def chunks() -> AsyncIterator[bytes]:
            await stream.end()
            while (message := await stream.recv()) is not None:
                yield decode(message, BytesMessage).data

        found = await consume(chunks(), lambda source: unpack(Plain(source), str(folder)))
    if not found.entries:
        raise Invalid("the context on standard input is an empty archive")
