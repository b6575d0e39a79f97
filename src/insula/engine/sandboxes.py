"""Sandboxes: namespaces that several instances share without a process to hold them, as the containers of a pod do.

The network namespace is bound to a path by `networks`. IPC and UTS are made by a thread that unshares them, binds them to
files and ends; /dev/shm is a tmpfs of its own. All of it is in the ledger and is made again after a reboot.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from insula import clock
from insula.engine.contract import Sandbox, SandboxConfig
from insula.engine.names import check_name
from insula.engine.parts import Parts
from insula.engine.records import SandboxEntry
from insula.engine.steps import Plan, Step, Undo, set_up, tear_down
from insula.errors import Conflict, HostFault, NotFound
from insula.host import mounts
from insula.host.threads import in_own_thread
from insula.tasks import in_thread

_CLONE_NEWUTS, _CLONE_NEWIPC = 0x04000000, 0x08000000
_SHM_BYTES = 64 * 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class Making(Struct):
    """One sandbox being made. `entry` grows with the steps."""

    parts: Parts
    entry: SandboxEntry
    undo: Undo
    address: str = ""  # asked again after a reboot


async def make(parts: Parts, config: SandboxConfig) -> SandboxEntry:
    """Make it, or return the one of that id. Raises NotFound (network), Invalid (id), Conflict (half way)."""
    check_name(config.id)
    known = parts.sandboxes.get(config.id)
    if known is None:
        return await _make(parts, config, "")
    if not known.ready:
        raise Conflict(f"the sandbox {config.id} is just being made or removed")
    return known


async def _make(parts: Parts, config: SandboxConfig, address: str) -> SandboxEntry:
    entry = SandboxEntry(config=config, created=clock.rfc3339_nano(clock.now()), boot_id=parts.boot_id)
    work = Making(parts, entry, Undo(), address)
    parts.sandboxes[config.id] = entry
    try:
        await set_up(MAKE, work)
    except BaseException:
        await work.undo.run()
        parts.sandboxes.pop(config.id, None)
        raise
    return work.entry


async def _record(work: Making) -> None:
    work.undo.push(work.parts.ledger.delete, "sandboxes", work.entry.id)
    await work.parts.ledger.put(work.entry)


async def _network(work: Making) -> None:
    config, networks = work.entry.config, work.parts.networks
    if config.network == "host":
        return
    work.undo.push(networks.drop_namespace, config.id)
    netns = await networks.make_namespace(config.id)
    address = ""
    if config.network != "none":
        work.undo.push(networks.disconnect, config.id)
        endpoint = await networks.connect(
            "default" if config.network in ("", "bridge") else config.network,
            config.id,
            netns=netns,
            address=work.address,
            aliases=config.aliases,
            hostname=config.hostname,
        )
        address = endpoint.address
        if config.ports:
            await networks.publish(config.id, address, config.ports)
    work.entry = msgspec.structs.replace(work.entry, netns=netns, address=address)


async def _shared(work: Making) -> None:
    folder = work.parts.paths.sandboxes / work.entry.id
    work.undo.push(in_thread, drop_shared, folder)
    own_uts = work.entry.config.network != "host"
    await in_own_thread(lambda: _make_shared(folder, work.entry.config.hostname if own_uts else None), "sandbox")
    work.entry = msgspec.structs.replace(
        work.entry,
        ipcns=str(folder / "ipc"),
        utsns=str(folder / "uts") if own_uts else "",
        shm=str(folder / "shm"),
    )


def _make_shared(folder: Path, hostname: str | None) -> None:
    """Runs in a thread of its own, which keeps the namespaces it enters and ends."""
    shm = folder / "shm"
    shm.mkdir(mode=0o755, parents=True, exist_ok=True)
    mounts.tmpfs(
        str(shm), size_bytes=_SHM_BYTES, mode=0o1777, flags=mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    )
    flags = _CLONE_NEWIPC | (_CLONE_NEWUTS if hostname is not None else 0)
    if _libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise HostFault(f"cannot make namespaces: {os.strerror(number)}", command="unshare --ipc --uts", code=number)
    if hostname:
        socket.sethostname(hostname)
    for kind in ("ipc",) if hostname is None else ("ipc", "uts"):
        place = folder / kind
        place.touch(mode=0o444)
        mounts.mount(f"/proc/thread-self/ns/{kind}", str(place), "none", mounts.MS_BIND)


def drop_shared(folder: Path) -> None:
    """Unmount and delete a folder with bound namespaces. Blocks; repeatable."""
    with suppress(FileNotFoundError):
        mounts.unmount_below(folder)
    shutil.rmtree(folder, ignore_errors=True)


async def _ready(work: Making) -> None:
    work.entry = msgspec.structs.replace(work.entry, ready=True)
    await work.parts.ledger.put(work.entry)
    work.parts.sandboxes[work.entry.id] = work.entry


MAKE: Plan[Making] = (
    (Step("sandbox.record", _record),),
    (Step("sandbox.network", _network),),
    (Step("sandbox.shared", _shared),),
    (Step("sandbox.ready", _ready),),
)


# --- removal and recovery ---------------------------------------------------------------------------------------


async def remove(parts: Parts, id: str) -> None:
    """Remove it; unknown is fine. Raises what failed; it can be called again."""
    entry = parts.sandboxes.get(id)
    if entry is None:
        return
    parts.sandboxes[id] = entry = msgspec.structs.replace(entry, ready=False)
    await parts.ledger.put(entry)
    await tear_down(REMOVE, Making(parts, entry, Undo()), f"removing the sandbox {id}")
    await parts.ledger.delete("sandboxes", id)
    parts.sandboxes.pop(id, None)


async def suspend(parts: Parts, entry: SandboxEntry) -> None:
    """The node goes down: nothing of it stays in the kernel, and the next `recover` makes it again, as after a reboot."""
    await parts.ledger.put(msgspec.structs.replace(entry, boot_id=""))
    await tear_down(REMOVE, Making(parts, entry, Undo()), f"suspending the sandbox {entry.id}")


async def _drop_network(work: Making) -> None:
    await work.parts.networks.unpublish(work.entry.id)
    await work.parts.networks.disconnect(work.entry.id)
    await work.parts.networks.drop_namespace(work.entry.id)


async def _drop_namespaces(work: Making) -> None:
    await in_thread(drop_shared, work.parts.paths.sandboxes / work.entry.id)


REMOVE: Plan[Making] = ((Step("sandbox.drop_network", _drop_network), Step("sandbox.drop_shared", _drop_namespaces)),)


async def recover(parts: Parts, entry: SandboxEntry) -> None:
    """Finish the removal of a half-made one; make one anew, with its old address, whose namespaces a reboot took."""
    parts.sandboxes[entry.id] = entry
    if not entry.ready:
        await remove(parts, entry.id)
    elif entry.boot_id != parts.boot_id:
        await tear_down(REMOVE, Making(parts, entry, Undo()), f"clearing the sandbox {entry.id}")
        parts.sandboxes[entry.id] = msgspec.structs.replace(entry, ready=False)
        await _make(parts, entry.config, entry.address)


def get(parts: Parts, id: str) -> Sandbox:
    """Raises NotFound."""
    entry = parts.sandboxes.get(id)
    if entry is None or not entry.ready:
        raise NotFound(f"No such sandbox: {id}", kind="sandbox", name=id)
    return view(entry)


def view(entry: SandboxEntry) -> Sandbox:
    """For clients."""
    return Sandbox(config=entry.config, netns=entry.netns, address=entry.address)
