"""Which namespaces an instance runs in, and its place on the network: its own, a sandbox's, another instance's, the host's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from insula.engine.checks import INSTANCE, SANDBOX, networks_of
from insula.engine.contract import Event
from insula.engine.lifecycle import refuse_unless_running
from insula.engine.parts import Parts
from insula.engine.records import SandboxEntry
from insula.engine.resident import Resident
from insula.errors import Conflict, Invalid, NotFound
from insula.model.instance import InstanceConfig, NetworkAttachment
from insula.networks.contract import Endpoint, Network, Published
from insula.networks.options import has_gateway
from insula.networks.ranges import ranges_of

HOST_SHM = "/dev/shm"  # noqa: S108 - the host's shared memory, bound on request


class Namespaces(Struct, frozen=True, kw_only=True):
    """Paths as in `InstanceSpec`: a path joins, "" is the host's, None is one of its own. `own_netns` says that the engine
    made the network namespace for this instance; `shm` is a folder for /dev/shm, empty for a fresh one."""

    netns: str | None = None
    pidns: str | None = None
    ipcns: str | None = None
    utsns: str | None = None
    shm: str = ""
    own_netns: bool = False
    hostname: str = ""


async def namespaces_of(parts: Parts, resident: Resident) -> Namespaces:
    """Find or make them. Raises NotFound, Conflict (the other instance does not run), Invalid (unknown mode)."""
    config = resident.entry.config
    if config.machine is not None:
        return Namespaces(netns="")
    mode = config.network_mode
    sandbox = parts.sandboxes.get(mode.removeprefix(SANDBOX)) if mode.startswith(SANDBOX) else None
    if mode.startswith(SANDBOX):
        if sandbox is None or not sandbox.ready:
            raise NotFound(f"No such sandbox: {mode.removeprefix(SANDBOX)}", kind="sandbox")
        return _in_sandbox(parts, config, sandbox)
    ipcns, shm = _ipc(parts, config)
    shared = mode.startswith(INSTANCE)
    peer = _network_peer(parts, mode.removeprefix(INSTANCE)) if shared else None
    return Namespaces(
        netns=_peer_netns(peer) if peer else "" if mode == "host" else await parts.networks.make_namespace(resident.id),
        own_netns=not shared and mode != "host",
        pidns=_other(parts, config.pid_mode, "pid"),
        ipcns=ipcns,
        utsns="" if config.uts_mode == "host" else None,
        shm=shm,
    )


def _in_sandbox(parts: Parts, config: InstanceConfig, sandbox: SandboxEntry) -> Namespaces:
    ipcns, shm = _ipc(parts, config) if config.ipc_mode else (sandbox.ipcns or None, sandbox.shm)
    uts_of_host = config.uts_mode == "host" or not sandbox.netns
    return Namespaces(
        netns=sandbox.netns,
        pidns=_other(parts, config.pid_mode, "pid"),
        ipcns=ipcns,
        utsns="" if uts_of_host else sandbox.utsns or None,
        shm=shm,
        hostname=parts.hostname if uts_of_host else sandbox.config.hostname,
    )


def _ipc(parts: Parts, config: InstanceConfig) -> tuple[str | None, str]:
    match config.ipc_mode:
        case "" | "private" | "shareable" | "none":
            return None, ""
        case "host":
            return "", HOST_SHM
        case mode:
            return _ipc_of(parts, _running(parts, _reference(mode)))


def _ipc_of(parts: Parts, peer: Resident) -> tuple[str, str]:
    """Another instance's, where it was made to be shared. Raises Conflict with the Docker Engine's sentence."""
    match peer.entry.config.ipc_mode:
        case "host":
            return "", HOST_SHM
        case "shareable":
            return f"/proc/{peer.entry.pid}/ns/ipc", str(shm_of(parts, peer))
        case _:
            raise Conflict(
                f"can't join IPC of container {peer.id}: non-shareable IPC "
                "(hint: use IpcMode:shareable for the donor container)"
            )


def shm_of(parts: Parts, resident: Resident) -> Path:
    """Where the shared memory of a shareable one is mounted on the host."""
    return parts.folder(resident.id) / "shm"


def _other(parts: Parts, mode: str, kind: str) -> str | None:
    match mode:
        case "" | "private":
            return None
        case "host":
            return ""
        case _:
            return f"/proc/{_running(parts, _reference(mode)).entry.pid}/ns/{kind}"


def _reference(mode: str) -> str:
    word, colon, reference = mode.partition(":")
    if not colon or word not in ("instance", "container"):
        raise Invalid(f"{mode!r} is not a namespace mode: use host, private or instance:ID")
    return reference


def _network_peer(parts: Parts, reference: str) -> Resident:
    peer = parts.find(reference)
    if not peer.running:
        raise Conflict(f"cannot join network of a non running container: {peer.id}")
    return peer


def _running(parts: Parts, reference: str) -> Resident:
    peer = parts.find(reference)
    refuse_unless_running(peer.entry)
    return peer


def _peer_netns(peer: Resident) -> str:
    return peer.entry.netns or f"/proc/{peer.entry.pid}/ns/net"


async def connect_all(parts: Parts, *, owner: str, config: InstanceConfig, netns: str) -> tuple[Endpoint, ...]:
    """Join every segment of an instance, the primary one first (it is eth0 and has the default route)."""
    endpoints = [await connect_one(parts, owner, config, each, netns) for each in attachments(config)]
    return tuple(endpoints) if len(endpoints) < 2 else tuple(await parts.networks.endpoints(owner=owner))


def attachments(config: InstanceConfig) -> list[NetworkAttachment]:
    """One for each segment; what the client said of it, or nothing special."""
    said = {each.network: each for each in config.networks}
    return [said.get(name) or NetworkAttachment(network=name) for name in networks_of(config)]


async def connect_one(
    parts: Parts, owner: str, config: InstanceConfig, attachment: NetworkAttachment, netns: str
) -> Endpoint:
    """Join one segment: by an interface in the namespace, or by a tap for a machine."""
    if attachment.address or attachment.address6:
        await _check_chosen(parts, attachment)
    name = config.machine.hostname if config.machine and config.machine.hostname else config.hostname or owner[:12]
    if config.machine is not None:
        return await parts.networks.connect_tap(
            attachment.network, owner, mac=attachment.mac, address=attachment.address, hostname=name
        )
    return await parts.networks.connect(
        attachment.network,
        owner,
        netns=netns,
        address=attachment.address,
        mac=attachment.mac,
        aliases=aliases_of(config, owner, attachment.aliases),
        hostname=name,
        address6=attachment.address6,
        resolvers=config.dns,
        priority=attachment.priority,
        options=attachment.options,
    )


async def _check_chosen(parts: Parts, attachment: NetworkAttachment) -> None:
    """An address is kept only where the subnet is. Raises Invalid with Docker's sentence."""
    network = await parts.networks.get(attachment.network)
    versions = {4: attachment.address, 6: attachment.address6}
    if any(address and any(each.chosen for each in ranges_of(network, v)) for v, address in versions.items()):
        raise Invalid(
            "user specified IP address is supported only when connecting to networks with user configured subnets",
            field="address",
        )


async def tell_networks(parts: Parts, owner: str, endpoints: Sequence[Endpoint], action: str) -> None:
    """The event of each network that an instance came to or left."""
    for endpoint in endpoints:
        with suppress(NotFound):
            tell_network(parts, owner, await parts.networks.get(endpoint.network), action)


def tell_network(parts: Parts, owner: str, network: Network, action: str) -> None:
    """One of them, in the words of the Docker Engine."""
    attributes = {"container": owner, "name": network.name, "type": network.driver}
    parts.events.publish(Event(type="network", action=action, id=network.id, attributes=attributes))


def aliases_of(config: InstanceConfig, owner: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    """The names by which neighbours find it: its name, what was asked, and its short id."""
    return tuple(dict.fromkeys((config.name, *more, owner[:12])))


async def nameservers(parts: Parts, endpoints: Sequence[Endpoint]) -> list[str]:
    """Insula's own DNS, at the gateway of a segment that has names; the built-in segment has none, as with Docker. One server
    knows the names of all segments of the asker; a second one is there for when its network is taken away."""
    servers = []
    for endpoint in endpoints:
        network = await parts.networks.get(endpoint.network)
        if not network.builtin and network.bridge and has_gateway(network, 4):
            servers.append(network.gateway)
    return servers[:2]


def host_text(path: str) -> str:
    """A file of the host's /etc, empty when it is missing."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


async def publish_all(
    parts: Parts, owner: str, config: InstanceConfig, endpoints: Sequence[Endpoint]
) -> Sequence[Published]:
    """Open the instance's ports, where one of its networks has a way in: that of its default route is the first choice. Nothing
    is opened, and nothing said, where none has, as with Docker."""
    for endpoint in sorted(endpoints, key=lambda each: each.metric):
        if opened := await parts.networks.publish(owner, endpoint.address, config.ports, name=config.name):
            return opened
    return ()
