"""The folder of a machine: `sandbox/` the root of its sandbox, `run/` what is shared with the sandbox (the relay's socket, its
log, the orders), `machine.json` what is kept for later starts of processes. Everything here blocks; on a thread."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from insula.drivers.microvm.argv import Card, Machine, qemu_arguments
from insula.drivers.microvm.cards import Interface
from insula.drivers.microvm.plan import PROGRAMS, SHARE, Record, system_links
from insula.host.rootfd import Root, open_in, split
from insula.model.instance import Mount, Resources, Security, Ulimit

_KERNEL_FOLDERS = ("/proc", "/sys", "/dev")
_LOG_BYTES = 4096


class Kept(Struct, frozen=True, kw_only=True):
    """What later verbs need of the spec."""

    virtiofsd: list[str]
    machine: Machine
    records: list[Record]
    input: bool
    netns: str
    tty: bool
    security: Security
    ulimits: tuple[Ulimit, ...] = ()
    resources: Resources = Resources()


def real_places(rootfs: str, mounts: Iterable[Mount]) -> dict[str, str]:
    """Where each mount that is not below /dev really is below the root, with symlinks followed as inside. The places are made
    where the root could not be changed any more later. Raises OSError for what cannot be a place."""
    real = {}
    with Root(rootfs) as root:
        base = str(Path(f"/proc/self/fd/{root.fd}").readlink())
        for target in _KERNEL_FOLDERS:
            root.folder(split(target), create=True)
        for mount in mounts:
            if mount.target.startswith("/dev/"):
                continue
            folder = mount.kind != "bind" or Path(mount.source).is_dir()
            real[mount.target] = _place(root, mount.target, folder).removeprefix(base)
    return real


def _place(root: Root, target: str, folder: bool) -> str:
    parts = split(target)
    if folder:
        return str(Path(f"/proc/self/fd/{root.folder(parts, create=True)}").readlink())
    try:
        fd = open_in(root.fd, "/".join(parts), os.O_PATH)
    except FileNotFoundError:
        parent = root.folder(parts[:-1], create=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(parts[-1], flags, 0o755, dir_fd=parent))
        fd = open_in(root.fd, "/".join(parts), os.O_PATH)
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    finally:
        os.close(fd)


def make(directory: Path, kept: Kept) -> None:
    """The folders, afresh."""
    remove(directory)
    sandbox, run = directory / "sandbox", directory / "run"
    for folder in (sandbox / SHARE[1:] / "root", sandbox / SHARE[1:] / "dev", sandbox / PROGRAMS[1:], run):
        folder.mkdir(parents=True, mode=0o755)
    directory.joinpath("run").chmod(0o700)
    for path, target in system_links().items():
        (sandbox / path[1:]).symlink_to(target)
    os.mkfifo(run / "ready", 0o600)
    _write(directory / "machine.json", msgspec.json.encode(kept))


def read_kept(directory: Path) -> Kept:
    """What `make` kept. Raises FileNotFoundError."""
    return msgspec.json.decode((directory / "machine.json").read_bytes(), type=Kept)


def give_orders(directory: Path, kept: Kept, interfaces: list[Interface], time_ns: int) -> None:
    """Write what the relay starts with."""
    cards: list[Card] = [interface.card for interface in interfaces]
    records = [("time_ns", str(time_ns)), *kept.records, *(record for each in interfaces for record in each.records())]
    orders = {
        "virtiofsd": kept.virtiofsd,
        "qemu": qemu_arguments(kept.machine, cards),
        "run": records,
        "input": kept.input,
    }
    _write(directory / "run" / "machine.json", msgspec.json.encode(orders))


def last_words(directory: Path) -> str:
    """The last line of what QEMU, virtiofsd and the relay said."""
    try:
        text = (directory / "run" / "log").read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""
    return text.splitlines()[-1] if text else ""


def remove(directory: Path) -> None:
    """All of it. Repeatable."""
    for name in ("sandbox", "run"):
        shutil.rmtree(directory / name, ignore_errors=True)
    (directory / "machine.json").unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(data)
    temporary.rename(path)
