"""Byte streams: authorized at the door, carried to the agent of the pod's node byte for byte. The agent here is a plain server
that writes down what it was asked."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from door.kube_support import Cluster, cluster
from insula.model.resource import Ref
from insula.verbs.request import Request

# every kubectl is a vfork that holds this process until the child runs: on a busy machine that is no fault of the loop
pytestmark = pytest.mark.may_block

_NODE = "n1"


@dataclass
class RecordingAgent:
    """Answers logs with text and an upgrade with an echo."""

    path: str
    heads: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            if "/exec/" in head and "refuse" in head:
                body = json.dumps(
                    {"kind": "Status", "status": "Failure", "message": "no such command", "code": 404}
                ).encode()
                writer.write(
                    b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                    % (len(body), body)
                )
            elif "/exec/" in head or "/portForward/" in head:
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\n\r\n")
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            else:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nline one\nline two\n"
                )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.ended.set()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[RecordingAgent]:
    made = RecordingAgent(str(tmp_path / "a.sock"))
    server = await asyncio.start_unix_server(made.serve, made.path)
    yield made
    server.close()
    await server.wait_closed()


@pytest.fixture
async def door(tmp_path: Path, agent: RecordingAgent) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path, agents=lambda node: f"unix:{agent.path}" if node == _NODE else None) as made:
        await pod(made, "here", _NODE)
        yield made


async def pod(door: Cluster, name: str, node: str, *containers: str) -> None:
    listed = [{"name": each, "image": "x"} for each in containers or ("main",)]
    obj = {"metadata": {"name": name}, "spec": {"nodeName": node, "containers": listed}}
    await door.verbs.create(Request(), Ref("", "v1", "pods"), obj, "default")


async def test_logs_come_from_the_node(door: Cluster, agent: RecordingAgent) -> None:
    ran = await door.kubectl("logs", "here", "--tail=5", "--timestamps")
    assert ran.out == "line one\nline two\n"
    line = agent.heads[-1].split("\r\n")[0]
    assert (
        line.startswith("GET /containerLogs/default/here/main?") and "tailLines=5" in line and "timestamps=true" in line
    )
    assert "authorization" not in agent.heads[-1].lower()


async def test_which_container_is_meant(door: Cluster, agent: RecordingAgent) -> None:
    await pod(door, "two", _NODE, "a", "b")
    assert (await door.kubectl("logs", "two", "-c", "b")).out
    assert "/containerLogs/default/two/b?" in agent.heads[-1]
    raw = "/api/v1/namespaces/default/pods/two/log"
    told = await door.kubectl("get", "--raw", raw, check=False)
    assert "a container name must be specified for pod two, choose one of: [a b]" in told.err
    told = await door.kubectl("get", "--raw", f"{raw}?container=c", check=False)
    assert "container c is not valid for pod two" in told.err


async def test_streams_that_cannot_be(door: Cluster) -> None:
    await pod(door, "elsewhere", "n2")
    await pod(door, "nowhere", "")
    told = await door.kubectl("logs", "elsewhere", check=False)
    assert told.code == 1 and 'the agent of node "n2" is not known' in told.err
    told = await door.kubectl("get", "--raw", "/api/v1/namespaces/default/pods/nowhere/log", check=False)
    assert "does not have a host assigned" in told.err
    told = await door.kubectl("get", "--raw", "/api/v1/namespaces/default/pods/absent/log", check=False)
    assert 'pods "absent" not found' in told.err


async def _upgrade(
    door: Cluster, path: str, *, method: str = "POST", protocol: str = "SPDY/3.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    context = ssl.create_default_context(cadata=door.pki.ca_pem.decode())
    context.load_cert_chain(door.pki.folder / "admin.crt", door.pki.folder / "admin.key")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(door.url.rpartition(":")[2]), ssl=context)
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: Upgrade", f"Upgrade: {protocol}"]
    lines += ["X-Stream-Protocol-Version: v4.channel.k8s.io", "Content-Length: 0", "", ""]
    writer.write("\r\n".join(lines).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    return reader, writer, head


@pytest.mark.parametrize(("method", "protocol"), [("POST", "SPDY/3.1"), ("GET", "websocket")])
async def test_an_upgraded_connection_carries_every_byte(
    door: Cluster, agent: RecordingAgent, method: str, protocol: str
) -> None:
    path = "/api/v1/namespaces/default/pods/here/exec?command=a&command=b%20c&stdin=true"
    reader, writer, head = await _upgrade(door, path, method=method, protocol=protocol)
    assert head.startswith("HTTP/1.1 101")
    assert agent.heads[-1].startswith(
        f"{method} /exec/default/here/main?command=a&command=b%20c&stdin=true HTTP/1.1\r\n"
    )
    assert "X-Stream-Protocol-Version: v4.channel.k8s.io" in agent.heads[-1]
    sent = bytes(range(256)) * 4096  # 1 MiB

    async def write() -> None:
        for at in range(0, len(sent), 50_000):
            writer.write(sent[at : at + 50_000])
            await writer.drain()

    writing = asyncio.create_task(write())
    assert await reader.readexactly(len(sent)) == sent
    await writing
    writer.close()
    async with asyncio.timeout(5):
        await agent.ended.wait()


async def test_an_agents_refusal_comes_through(door: Cluster) -> None:
    reader, writer, head = await _upgrade(door, "/api/v1/namespaces/default/pods/here/exec?command=refuse")
    assert head.startswith("HTTP/1.1 404")
    assert json.loads(await reader.read())["message"] == "no such command"
    writer.close()


async def test_a_client_that_breaks_off_frees_the_agent(door: Cluster, agent: RecordingAgent) -> None:
    _, writer, _ = await _upgrade(door, "/api/v1/namespaces/default/pods/here/portforward")
    assert agent.heads[-1].startswith("POST /portForward/default/here HTTP/1.1")
    writer.transport.abort()
    async with asyncio.timeout(5):
        await agent.ended.wait()


async def test_streams_need_rights(door: Cluster) -> None:
    told = await door.kubectl("exec", "here", "--as=eve", "--", "true", check=False)
    assert 'pods "here" is forbidden: User "eve" cannot get resource "pods"' in told.err
    allowed: dict[str, Any] = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
    role = {"metadata": {"name": "r"}, "rules": [allowed]}
    binding = {
        "metadata": {"name": "r"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"},
        "subjects": [{"kind": "User", "name": "eve"}],
    }
    group = "rbac.authorization.k8s.io"
    await door.verbs.create(Request(), Ref(group, "v1", "clusterroles"), role)
    await door.verbs.create(Request(), Ref(group, "v1", "clusterrolebindings"), binding)
    await asyncio.sleep(0.05)
    told = await door.kubectl("logs", "here", "--as=eve", check=False)
    assert (
        'pods "here" is forbidden: User "eve" cannot get resource "pods/log" in API group "" in the namespace "default"'
        in told.err
    )
