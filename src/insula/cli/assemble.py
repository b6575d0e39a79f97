"""One machine's Insula put together: node tower, cluster tower, bridge. The only place where all parts meet.

Order: the engine takes back what runs before any door opens; then the Docker door, which needs nothing of the cluster; then
store, verbs, Kubernetes door; then the loops. Leaving runs the same in reverse; workloads go on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from aiohttp.web import Application
from msgspec import Struct
from msgspec.structs import replace

from insula import __version__, controllers
from insula.agent.agent import Agent
from insula.agent.node import cpu_count, memory_bytes
from insula.agent.podenv import PodFacts
from insula.agent.services import Services
from insula.api.docker.app import make_app as make_docker_app
from insula.api.docker.app import serve_unix
from insula.api.docker.door import NodeInfo
from insula.api.kube.app import Served, serve_tls
from insula.api.kube.app import make_app as make_kube_app
from insula.api.kube.authn import Authority
from insula.api.kube.pki import Pki
from insula.api.kubevirt.app import extension as kubevirt_extension
from insula.cli import ports
from insula.cli.cluster import first_objects
from insula.cli.engines import open_engine
from insula.cli.identity import node_id
from insula.cli.paths import Paths
from insula.cli.settings import Settings, api_port, node_name
from insula.client.local import LocalClient
from insula.control.controller import Context, TypeInfo
from insula.control.loop import Manager
from insula.control.shared import SharedCaches
from insula.engine.node import NodeEngine
from insula.errors import Unavailable
from insula.kinds.registry import Registry
from insula.model.resource import Ref
from insula.store.sqlite import SqliteStore
from insula.tasks import Tasks, in_thread
from insula.verbs import admission
from insula.verbs.verbs import Verbs

log = logging.getLogger(__name__)
CUSTOM_KINDS = Ref("apiextensions.k8s.io", "v1", "customresourcedefinitions")


class Running(Struct, frozen=True):
    """What a running Insula serves. `placing` begins to place workloads; it needs modules that are slow to load, and whoever
    waits for a ready node does not wait for them."""

    api: str
    docker: str
    node: str
    placing: Callable[[], Awaitable[None]]
    docker_tcp: tuple[str, ...] = ()


@asynccontextmanager
async def assembled(paths: Paths, settings: Settings) -> AsyncIterator[Running]:
    """Everything in one process, for the length of the block. Raises Unavailable for an occupied port or socket."""
    async with AsyncExitStack() as undo:
        ahead = await undo.enter_async_context(Tasks("start"))  # what takes long and is needed only further down
        kinds = ahead.spawn(in_thread(Registry.builtin), "kinds")
        engine = await _engine(paths, settings, undo)
        ahead.spawn(engine.probe(), "probe")
        gateway = (await engine.networks.get("default")).gateway  # where pods reach the API server
        making = ahead.spawn(in_thread(Pki, paths.pki, (gateway,)), "pki")
        tcp = await _docker_door(paths, settings, engine, undo)
        verbs = await _store(paths, await kinds, undo)
        pki = await making
        url, port = await _kube_door(paths, settings, verbs, pki, gateway, undo)
        services = partial(_services, paths, settings, engine, gateway, port)
        client, caches = await _loops(paths, services, verbs, pki, undo)
        placing = partial(_placing, client, caches, undo)
        yield Running(
            api=url, docker=str(paths.docker_socket), node=node_name(settings), placing=placing, docker_tcp=tcp
        )


async def _engine(paths: Paths, settings: Settings, undo: AsyncExitStack) -> NodeEngine:
    engine = await open_engine(paths, settings)
    undo.push_async_callback(engine.close)
    await engine.recover()
    return engine


async def _docker_door(paths: Paths, settings: Settings, engine: NodeEngine, undo: AsyncExitStack) -> tuple[str, ...]:
    identity = await in_thread(node_id, paths.data)
    info = NodeInfo(id=identity, name=node_name(settings), version=__version__, data_root=str(paths.data))
    if not settings.docker_hosts:
        await _serve_docker(paths, settings, engine, info, undo)
        return ()
    from insula.cli import remote  # it brings in `cryptography`, which costs a tenth of a start

    await _serve_docker(paths, settings, engine, replace(info, warnings=remote.warnings(settings)), undo)
    return tuple(str(address) for address in await remote.opened(paths, settings, undo))


async def _serve_docker(
    paths: Paths, settings: Settings, engine: NodeEngine, info: NodeInfo, undo: AsyncExitStack
) -> None:
    served = await serve_unix(make_docker_app(engine, info=info), paths.docker_socket, group=settings.socket_group)
    undo.push_async_callback(served.close)


async def _store(paths: Paths, registry: Registry, undo: AsyncExitStack) -> Verbs:
    store = await SqliteStore.open(paths.state)
    undo.push_async_callback(store.close)
    return Verbs(store, registry, admission=admission.load())


async def _kube_door(
    paths: Paths, settings: Settings, verbs: Verbs, pki: Pki, gateway: str, undo: AsyncExitStack
) -> tuple[str, int]:
    endpoint = f"unix:{paths.agent_socket}"
    app = make_kube_app(
        verbs,
        verbs.registry,
        Authority(pki),
        agents=lambda node: endpoint if node == node_name(settings) else None,
        version=__version__,
        extensions={"/apis/subresources.kubevirt.io": kubevirt_extension(verbs, lambda _: endpoint)},
    )
    served = await _listen(paths, settings, app, pki, gateway)
    undo.push_async_callback(served.close)
    await in_thread(ports.remember, paths.port, served.port)
    host = "127.0.0.1" if settings.api_address in ("0.0.0.0", "127.0.0.1") else settings.api_address  # noqa: S104
    url = f"https://{host}:{served.port}"
    await in_thread(_write_kubeconfig, paths, pki, url)
    return url, served.port


async def _listen(paths: Paths, settings: Settings, app: Application, pki: Pki, gateway: str) -> Served:
    """Open the door where the settings say, and to pods at their gateway; where any port will do, the one of the last time if it
    is free, so that a kubeconfig that somebody copied stays good. Raises Unavailable naming who has the port."""
    address, context = settings.api_address, pki.server_context()
    also = () if address in ("0.0.0.0", gateway) else (gateway,)  # noqa: S104 - compared, not bound
    port = api_port(settings, paths.root)
    if port == 0 and (last := ports.remembered(paths.port)) and ports.is_free(address, last):
        port = last
    try:
        return await serve_tls(app, address, port, context, also=also)
    except OSError as fault:
        other = await in_thread(ports.holder, address, port)
        raise Unavailable(
            f"the Kubernetes API cannot listen on {address}:{port}: "
            + (f"{other} does already" if other else os.strerror(fault.errno or 0)),
            hint=f"end that program, or set another api_port in {paths.config}",
        ) from fault


def _write_kubeconfig(paths: Paths, pki: Pki, url: str) -> None:
    text = pki.write_kubeconfig(url).read_text()
    paths.kubeconfig.touch(mode=0o600, exist_ok=True)
    if paths.kubeconfig.read_text() != text:
        paths.kubeconfig.write_text(text)


async def _loops(
    paths: Paths,
    services: Callable[[LocalClient, SharedCaches], Services],
    verbs: Verbs,
    pki: Pki,
    undo: AsyncExitStack,
) -> tuple[LocalClient, SharedCaches]:
    tasks = await undo.enter_async_context(Tasks("insula"))
    client = LocalClient(verbs)
    await first_objects(client)
    caches = SharedCaches(client, tasks)
    agent = Agent(services(client, caches), paths.agent_socket)

    async def types() -> Sequence[TypeInfo]:
        return types_of(verbs.registry)

    context = Context(client=client, caches=caches, settings={"root_ca": pki.ca_pem.decode()}, types=types)
    manager = Manager(context, caches, controllers.load())
    caches.subscribe(CUSTOM_KINDS, lambda _old, _new: manager.types_changed())
    for part in (manager, agent):
        undo.push_async_callback(part.close)
        await part.start()
    return client, caches


async def _placing(client: LocalClient, caches: SharedCaches, undo: AsyncExitStack) -> None:
    from insula.scheduler.loop import Scheduler

    scheduler = Scheduler(client, caches)
    undo.push_async_callback(scheduler.close)
    await scheduler.start()


def _services(
    paths: Paths,
    settings: Settings,
    engine: NodeEngine,
    gateway: str,
    port: int,
    client: LocalClient,
    caches: SharedCaches,
) -> Services:
    return Services(
        node=node_name(settings),
        address=gateway,
        client=client,
        caches=caches,
        engine=engine,
        folder=paths.data / "agent",
        facts=PodFacts(node_cpu=cpu_count(), node_memory=memory_bytes()),
        service_env=service_env(gateway, port),
    )


def service_env(host: str, port: int) -> dict[str, str]:
    """How programs in pods find the API server: the variables that client libraries read, and those of Docker links that
    Kubernetes sets beside them."""
    url, link = f"tcp://{host}:{port}", f"KUBERNETES_PORT_{port}_TCP"
    return {
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": str(port),
        "KUBERNETES_SERVICE_PORT_HTTPS": str(port),
        "KUBERNETES_PORT": url,
        link: url,
        f"{link}_PROTO": "tcp",
        f"{link}_PORT": str(port),
        f"{link}_ADDR": host,
    }


def types_of(registry: Registry) -> list[TypeInfo]:
    """Every type that can be listed, watched and deleted; second faces of the same objects are marked."""
    return [
        TypeInfo(kind.ref, kind.kind, kind.namespaced, alternate=kind.stored_as is not None)
        for kind in registry.all()
        if kind.stored and {"list", "watch", "delete"} <= set(kind.verbs)
    ]
