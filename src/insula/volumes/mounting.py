"""Mounting what a volume's options name onto its folder, while somebody uses it.

Who uses a volume is not counted but known: the owners are told, at the first use by `take`, after a restart by `recover` from
the engine's ledger. So a count cannot go wrong by a crash, and a mount that nobody uses any more is taken away then.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Collection
from pathlib import Path

from insula.errors import HostFault, InsulaError
from insula.host import mounts, spawn
from insula.tasks import in_thread
from insula.volumes.options import Plan, nfs_arguments, with_address

_DEADLINE_S = 60.0


class Mounted:
    """The volumes with options of one node, by name. The caller holds the volume's lock."""

    def __init__(self) -> None:
        self._users: dict[str, set[str]] = {}

    def of(self, owner: str) -> list[str]:
        """The volumes that somebody uses."""
        return [name for name, users in self._users.items() if owner in users]

    async def take(self, name: str, owner: str, path: str, plan: Plan) -> None:
        """Mount it for an owner, unless it is mounted. Repeatable. Raises HostFault with dockerd's sentence."""
        users = self._users.setdefault(name, set())
        try:
            if not await in_thread(mounts.is_mounted, path):
                await _mount(plan, path)
        except BaseException:
            if not users:
                self._users.pop(name, None)
            raise
        users.add(owner)

    async def leave(self, name: str, owner: str, path: str) -> None:
        """Unmount it when its last owner goes. Repeatable. Raises HostFault."""
        users = self._users.get(name)
        if users is None:
            return
        users.discard(owner)
        if not users:
            del self._users[name]
            await in_thread(_unmount, path)

    async def recover(self, name: str, owners: Collection[str], path: str) -> None:
        """After a restart: who uses it, says the engine; without anybody it is unmounted."""
        if owners:
            self._users[name] = set(owners)
        else:
            await in_thread(_unmount, path)


def _unmount(path: str) -> None:
    try:
        mounts.unmount(path)
    except HostFault:
        mounts.unmount(path, lazy=True)  # somebody of the host is in it; nobody new finds it


async def _mount(plan: Plan, path: str) -> None:
    try:
        if plan.host:
            plan = with_address(plan, await in_thread(_look_up, plan.host))
        program = shutil.which("mount.nfs") or shutil.which("/sbin/mount.nfs") if plan.by_server else None
        if program:
            await spawn.run(nfs_arguments(program, plan, path), deadline_s=_DEADLINE_S)
        else:
            await in_thread(_mount_here, plan, path)
    except InsulaError as fault:
        raise _sentence(plan, path, fault) from fault


def _look_up(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as fault:
        raise HostFault(f"error resolving passed in network volume address: {host}: {fault.strerror}") from fault


def _mount_here(plan: Plan, path: str) -> None:
    if plan.flags & mounts.MS_BIND and not Path(plan.device).exists():
        raise HostFault("no such file or directory", stderr="no such file or directory")
    mounts.mount(plan.device, path, plan.kind, plan.flags, plan.data)
    try:
        if plan.flags & mounts.MS_BIND and plan.flags & mounts.MS_RDONLY:
            mounts.set_readonly(path, recursive=bool(plan.flags & mounts.MS_REC))
        if plan.propagation:
            mounts.set_propagation(path, plan.propagation)
    except BaseException:
        mounts.unmount(path, lazy=True)
        raise


def _sentence(plan: Plan, path: str, fault: InsulaError) -> HostFault:
    reason = (fault.stderr.strip() if isinstance(fault, HostFault) else "") or str(fault)
    flags = f", flags: {plan.flags:#x}" if plan.flags else ""
    data = f", data: {plan.data}" if plan.data else ""
    return HostFault(
        f"error while mounting volume '{path}': failed to mount local volume: mount {plan.device}:{path}{flags}{data}: "
        f"{reason[:1].lower()}{reason[1:]}",
        command=getattr(fault, "command", None),
    )
