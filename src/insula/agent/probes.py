"""Liveness, readiness and startup probes of one container: a task per probe, a verdict per threshold crossed.

Timing and thresholds are those of the Kubernetes documentation. Probing starts when the container runs and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Protocol

import aiohttp
from msgspec import Struct

from insula.agent import grpcprobe
from insula.engine.contract import Engine, Instance
from insula.errors import InsulaError, Unsupported
from insula.model.instance import Process
from insula.model.resource import Resource


class Verdict(Struct, frozen=True):
    """What a probe found after its threshold: healthy or not, and why."""

    probe: str  # livenessProbe, readinessProbe, startupProbe
    healthy: bool
    message: str = ""


class Target(Struct, frozen=True):
    """Where a container can be reached."""

    instance: Instance
    container: Resource
    address: str


class Prober(Protocol):
    """Tries once: None when it passed, else why it failed."""

    async def __call__(self, probe: Resource, target: Target) -> str | None: ...


async def watch(probe_name: str, target: Target, attempt: Prober, report: Callable[[Verdict], None]) -> None:
    """Probe until cancelled; report the first verdict and each change. A startup probe ends with its first success."""
    probe = target.container[probe_name]
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    passes = fails = 0
    told: bool | None = None
    while True:
        message = await _limited(attempt, probe, target)
        passes, fails = (passes + 1, 0) if message is None else (0, fails + 1)
        if passes >= int(probe.get("successThreshold", 1)) and told is not True:
            told = True
            report(Verdict(probe_name, True))
        elif message is not None and fails >= int(probe.get("failureThreshold", 3)) and told is not False:
            told = False
            report(Verdict(probe_name, False, message))
        if probe_name == "startupProbe" and told is not None:
            return
        await asyncio.sleep(float(probe.get("periodSeconds", 10)))


async def _limited(attempt: Prober, probe: Resource, target: Target) -> str | None:
    try:
        async with asyncio.timeout(float(probe.get("timeoutSeconds", 1))):
            return await attempt(probe, target)
    except TimeoutError:
        return f"probe timed out after {probe.get('timeoutSeconds', 1)} s"
    except (OSError, InsulaError, aiohttp.ClientError, ValueError) as fault:
        return str(fault) or type(fault).__name__


class NodeProber:
    """Probes from the node: exec inside, HTTP, TCP and gRPC to the pod's address."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def __call__(self, probe: Resource, target: Target) -> str | None:
        """One attempt."""
        if action := probe.get("exec"):
            return await self._exec(tuple(action.get("command") or ()), target)
        if action := probe.get("httpGet"):
            return await _http(action, target)
        if action := probe.get("tcpSocket"):
            return await _tcp(action.get("host") or target.address, port_of(action["port"], target.container))
        if action := probe.get("grpc"):
            return await grpcprobe.check(target.address, int(action["port"]), action.get("service") or "")
        raise Unsupported("only exec, httpGet, tcpSocket and grpc probes are supported")

    async def _exec(self, command: tuple[str, ...], target: Target) -> str | None:
        """Run a command inside. One that is given up is killed, or a hanging probe would leave a process each time."""
        made = await self._engine.exec_create(target.instance.id, Process(args=command))
        streams = await self._engine.exec_start(made.id)
        output = bytearray()
        try:
            async for _, data in streams.read():
                output += data[: 1024 - len(output)]
            code = await self._engine.exec_wait(made.id)
        except BaseException:
            with contextlib.suppress(InsulaError):
                await self._engine.exec_kill(made.id)
            raise
        finally:
            await streams.close()
        return None if code == 0 else f"command exited with {code}: {output.decode(errors='replace').strip()}"


def port_of(port: int | str, container: Resource) -> int:
    """A port number, or the container port of that name."""
    if isinstance(port, int) or str(port).isdigit():
        return int(port)
    for found in container.get("ports") or ():
        if found.get("name") == port:
            return int(found["containerPort"])
    raise OSError(f"the container has no port named {port!r}")


async def _http(action: Resource, target: Target) -> str | None:
    host = action.get("host") or target.address
    scheme = str(action.get("scheme", "HTTP")).lower()
    url = f"{scheme}://{host}:{port_of(action['port'], target.container)}/{str(action.get('path', '/')).lstrip('/')}"
    headers = {"User-Agent": "kube-probe/1.37", "Accept": "*/*"}
    headers.update({header["name"]: header["value"] for header in action.get("httpHeaders") or ()})
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            url, headers=headers, ssl=unverified() if scheme == "https" else False, allow_redirects=False
        ) as answer,
    ):
        return None if 200 <= answer.status < 400 else f"HTTP probe failed with statuscode: {answer.status}"


def unverified() -> ssl.SSLContext:
    """A probe asks whether something answers, not who: certificates of pods are not checked, as documented upstream."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _tcp(host: str, port: int) -> str | None:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None
