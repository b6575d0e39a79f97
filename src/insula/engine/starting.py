"""Starting an instance: the ordered steps from "created" or "exited" to "running".

The process is made (`driver.create`) while its network is connected; what had attached before joins; then it runs. Each
step pushes its undo, so a fault leaves the instance as it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from insula import clock
from insula.drivers.driver import Capability, Handle, Phase
from insula.engine import links
from insula.engine.contract import ResolvedMount
from insula.engine.foreign import check_program
from insula.engine.guests import guest_driver
from insula.engine.health import check_for
from insula.engine.healthrules import begun
from insula.engine.hostfiles import hosts_text, resolv_text
from insula.engine.joining import (
    Namespaces,
    connect_all,
    host_text,
    nameservers,
    namespaces_of,
    publish_all,
    shm_of,
    tell_networks,
)
from insula.engine.leftovers import leave_word
from insula.engine.lifecycle import Verb
from insula.engine.logattributes import tag_of
from insula.engine.machines import machine_spec
from insula.engine.parts import Parts
from insula.engine.resident import Resident
from insula.engine.resolve import HOST_FILES, Surroundings, hostname_of, resolve
from insula.engine.sharing import drop_shm, make_shm
from insula.engine.sources import check_propagation, pin
from insula.engine.steps import Plan, Step, Undo, set_up
from insula.engine.users import Accounts, read_accounts
from insula.errors import HostFault, InsulaError, NotFound
from insula.images.contract import ImageConfig
from insula.model.instance import InstanceSpec
from insula.networks.contract import Endpoint
from insula.tasks import in_thread

log = logging.getLogger(__name__)


@dataclass
class Start:
    """One start under way."""

    parts: Parts
    resident: Resident
    undo: Undo
    namespaces: Namespaces = field(default_factory=Namespaces)
    rootfs: str = ""
    hostname: str = ""
    accounts: Accounts = field(default_factory=Accounts)
    host_files: dict[str, str] = field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()
    handle: Handle | None = None
    pid: int = 0
    started_at: str = ""


async def start(parts: Parts, resident: Resident) -> None:
    """Run it. The caller holds the lock and has seen that it may be started. After a fault it is as before, with the fault
    in its state."""
    undo = Undo()
    async with parts.starts:
        try:
            await set_up(START, Start(parts, resident, undo))
        except BaseException as fault:
            await undo.run()
            await _undone(resident, fault)
            raise
    await _tell_linking(parts, resident)
    await tell_networks(parts, resident.id, resident.endpoints, "connect")
    parts.say(resident, "start")


async def _undone(resident: Resident, fault: BaseException) -> None:
    """A full disk must not hide why the start failed: what is in memory counts, and recovery undoes it once more."""
    resident.endpoints, resident.published = (), ()
    resident.attachments.abandon()
    try:
        await resident.save(Verb.UNDO, error=sentence(fault), exit_code=exit_code(fault), handle=None, netns="")
    except HostFault as full:
        log.error("the undo of a start cannot be written down", extra={"instance": resident.id}, exc_info=full)


def sentence(fault: BaseException) -> str:
    """What a state's `error` says."""
    return fault.message if isinstance(fault, InsulaError) else str(fault) or type(fault).__name__


def exit_code(fault: BaseException) -> int:
    """What a shell would say of a command that could not be run, as the Docker Engine reports it."""
    code = fault.code if isinstance(fault, HostFault) else None
    return code if code in (125, 126, 127) else 128


# --- the steps --------------------------------------------------------------------------------------------------


async def _record(work: Start) -> None:
    directory = Path(work.parts.directory(work.resident.entry))
    await work.resident.save(
        Verb.START, boot_id=work.parts.boot_id, error="", user_stopped=False, stopping=None, paused=False, handle=None
    )
    await in_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)


async def _root(work: Start) -> None:
    image, config = work.resident.image, work.resident.entry.config
    if config.machine is not None:
        return
    if image is None:
        raise NotFound(f"No such image: {config.image}", kind="image", name=config.image)
    work.undo.push(work.parts.images.unmount, work.resident.id, remove=False)
    volatile = work.resident.entry.fleeting
    work.rootfs = (await work.parts.images.mount(image, work.resident.id, volatile=volatile)).path
    await check_program(config, image, work.rootfs)


async def _volumes(work: Start) -> None:
    work.undo.push(work.parts.volumes.leave, work.resident.id)
    mounts = work.resident.entry.mounts
    for mount in mounts:
        if mount.volume:
            await work.parts.volumes.take(mount.volume, work.resident.id)
    if any(mount.config.kind == "bind" and "private" not in mount.config.propagation for mount in mounts):
        await in_thread(check_propagation, mounts)


async def _namespaces(work: Start) -> None:
    work.undo.push(work.parts.networks.drop_namespace, work.resident.id)
    work.namespaces = await namespaces_of(work.parts, work.resident)
    if work.resident.entry.config.ipc_mode == "shareable" and work.resident.entry.config.machine is None:
        shm = shm_of(work.parts, work.resident)
        work.undo.push(in_thread, drop_shm, shm)
        await in_thread(make_shm, shm, work.resident.entry.config.shm_size_bytes)
        work.namespaces = msgspec.structs.replace(work.namespaces, shm=str(shm))
    work.hostname = work.namespaces.hostname or hostname_of(
        work.resident.entry.config, work.resident.id, host=work.parts.hostname
    )


async def _files(work: Start) -> None:
    """/etc/hostname, /etc/hosts and /etc/resolv.conf exist before they are bound; the address is filled in later."""
    if not work.rootfs:
        return
    taken = {mount.config.target for mount in work.resident.entry.mounts}
    folder = work.parts.folder(work.resident.id)
    work.host_files = {target: str(folder / Path(target).name) for target in HOST_FILES if target not in taken}
    work.accounts = await in_thread(_write_files, work)


def _write_files(work: Start) -> Accounts:
    for path in work.host_files.values():
        Path(path).parent.mkdir(mode=0o710, parents=True, exist_ok=True)
        _write_in_place(path, work.hostname + "\n" if path.endswith("/hostname") else "")
    if work.resident.entry.config.owner == "docker":
        _mark_as_docker(work.rootfs)
    return read_accounts(work.rootfs)


def _mark_as_docker(rootfs: str) -> None:
    """The empty file by which programs tell that they run in a Docker container."""
    with contextlib.suppress(OSError):  # it is there, or the root is full: no reason not to start
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(f"{rootfs}/.dockerenv", flags, 0o755))


def _write_in_place(path: str, text: str) -> None:
    """Not by rename: the file may be bound into the instance already."""
    file = Path(path)
    file.write_text(text)
    file.chmod(0o644)


async def _make(work: Start) -> None:
    if work.resident.entry.config.machine is None:
        await _create(work)


async def _make_machine(work: Start) -> None:
    """A machine's process takes its taps with it, so it is made after the network."""
    if work.resident.entry.config.machine is not None:
        await _create(work)


async def _create(work: Start) -> None:
    directory = work.parts.directory(work.resident.entry)
    driver = work.resident.driver
    async with AsyncExitStack() as held:
        spec = await _spec(work, directory, await _sources(work, held))
        await in_thread(leave_word, spec)
        work.handle = await driver.create(spec)
    work.undo.push(driver.delete, work.handle)


async def _sources(work: Start, held: AsyncExitStack) -> tuple[ResolvedMount, ...]:
    """The mounts as they are now; nothing is looked at for the ordinary ones."""
    mounts = work.resident.entry.mounts
    if any(mount.config.subpath for mount in mounts):
        pins = ExitStack()
        held.push_async_callback(in_thread, pins.close)
        volumes = {each.name: each.path for each in await work.parts.volumes.list()}
        mounts = await in_thread(pin, mounts, volumes, work.parts.paths.subpaths, pins)
    return mounts


async def _spec(work: Start, directory: str, mounts: tuple[ResolvedMount, ...]) -> InstanceSpec:
    parts, resident, config = work.parts, work.resident, work.resident.entry.config
    machine = await machine_spec(work.parts, resident, work.endpoints) if config.machine else None
    around = Surroundings(
        id=resident.id,
        directory=directory,
        log_path=work.parts.log_path(resident.entry),
        log_tag=tag_of(config.log_options.get("tag") or "{{.ID}}", config, resident.image, resident.id),
        image=resident.image.config if resident.image else ImageConfig(),
        rootfs=work.rootfs,
        accounts=work.accounts,
        mounts=mounts,
        host_files=work.host_files,
        hostname=work.hostname,
        netns=work.namespaces.netns,
        pidns=work.namespaces.pidns,
        ipcns=work.namespaces.ipcns,
        utsns=work.namespaces.utsns,
        shm=work.namespaces.shm,
        cgroup=work.parts.settings.cgroup,
        size=resident.size,
        machine=machine,
        link_env=links.environment(parts, resident, strict=True),
        guest=await work.parts.guests.find() if guest_driver(resident.driver) else None,
    )
    return resolve(config, around)


async def _network(work: Start) -> None:
    """Every segment, the published ports, and the files that name the address."""
    parts, resident = work.parts, work.resident
    config = resident.entry.config
    if work.namespaces.own_netns or config.machine is not None:
        work.undo.push(parts.networks.disconnect, resident.id)
        work.endpoints = await connect_all(parts, owner=resident.id, config=config, netns=work.namespaces.netns or "")
        if config.ports:
            resident.published = tuple(await publish_all(parts, resident.id, config, work.endpoints))
    resident.endpoints = work.endpoints
    servers = await nameservers(parts, work.endpoints)
    await in_thread(write_names, parts, resident, hostname=work.hostname, nameservers=servers)


def write_names(parts: Parts, resident: Resident, *, hostname: str, nameservers: list[str]) -> None:
    """/etc/hosts and /etc/resolv.conf with the addresses that are known now. Blocks."""
    config = resident.entry.config
    folder = parts.folder(resident.id)
    if config.machine is not None or not (folder / "hosts").exists():
        return
    of_host = config.network_mode == "host"
    hosts = hosts_text(
        hostname=hostname,
        domainname=config.domainname,
        addresses=[address for each in resident.endpoints for address in (each.address, each.address6)],
        extra_hosts=(*config.extra_hosts, *links.host_lines(parts, resident)),
        gateway=resident.endpoints[0].gateway if resident.endpoints else "127.0.0.1",
        base=host_text("/etc/hosts") if of_host else None,
    )
    resolv = resolv_text(
        host_text("/etc/resolv.conf"),
        nameservers=nameservers or config.dns,
        search=config.dns_search,
        options=config.dns_options,
        keep_local=of_host,
        embedded=bool(nameservers),
    )
    _write_in_place(str(folder / "hosts"), hosts)
    _write_in_place(str(folder / "resolv.conf"), resolv)


async def _tell_linking(parts: Parts, resident: Resident) -> None:
    """Those that know it by a link learn where it is now. It runs: what fails here is no reason to undo that."""
    for other in links.linking(parts, resident):
        try:
            await rewrite_names(parts, other)
        except (InsulaError, OSError) as fault:
            log.warning("a link cannot follow an instance", extra={"instance": other.id}, exc_info=fault)


async def rewrite_names(parts: Parts, resident: Resident) -> None:
    """Again, after something that they name has changed."""
    servers = await nameservers(parts, resident.endpoints)
    hostname = hostname_of(resident.entry.config, resident.id, host=parts.hostname)
    await in_thread(write_names, parts, resident, hostname=hostname, nameservers=servers)


async def _remember(work: Start) -> None:
    """The handle is on disk before the instance's own code runs."""
    netns = (work.namespaces.netns or "") if work.namespaces.own_netns else ""
    await work.resident.save(handle=work.handle, netns=netns, rootfs=work.rootfs or work.resident.entry.rootfs)


async def _streams(work: Start) -> None:
    assert work.handle is not None
    if Capability.ATTACH in work.resident.driver.capabilities:
        handle = work.handle
        await work.resident.attachments.join(lambda: work.resident.driver.attach(handle))


async def _run(work: Start) -> None:
    assert work.handle is not None
    work.started_at = clock.rfc3339_nano(clock.now())  # before: a short one has ended when `start` returns
    work.pid = await work.resident.driver.start(work.handle)


async def _running(work: Start) -> None:
    work.resident.settled.clear()
    work.resident.silent.clear()
    paused = await _starts_paused(work)
    await work.resident.save(
        Verb.STARTED,
        pid=work.pid,
        started_at=work.started_at,
        exit_code=0,
        oom_killed=False,
        paused=paused,
        health=begun(check_for(work.resident), work.resident.entry.health),
    )


async def _starts_paused(work: Start) -> bool:
    """A machine may be made to wait for its first `unpause`; whether it does, the driver knows."""
    machine = work.resident.entry.config.machine
    if machine is None or not machine.start_paused or work.handle is None:
        return False
    return (await work.resident.driver.recover(work.handle)).phase is Phase.PAUSED


START: Plan[Start] = (
    (Step("start.record", _record),),
    (Step("start.root", _root), Step("start.volumes", _volumes), Step("start.namespaces", _namespaces)),
    (Step("start.files", _files),),
    (Step("start.make", _make), Step("start.network", _network)),
    (Step("start.make_machine", _make_machine),),
    (Step("start.remember", _remember), Step("start.streams", _streams)),
    (Step("start.run", _run),),
    (Step("start.running", _running),),
)
