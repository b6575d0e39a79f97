"""Disks of machines: `disks/<owner>/<name>.<format>`. Made under a temporary name and renamed; one that is there is taken back.

A disk made here is known by its name (`.qcow2`, `.raw`) from then on: a guest could write another format's header into it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from insula.errors import Conflict, DeadlineExceeded, HostFault, Invalid, NotFound, TooLarge, Unavailable
from insula.host import spawn
from insula.host.rmtree import remove_tree
from insula.host.tarstream import CHUNK, Limited, Plain, Source, consume
from insula.host.threads import change
from insula.model.instance import Disk, DiskConfig
from insula.tasks import in_thread
from insula.volumes.diskfile import SECTOR, DiskFacts, Format, probe
from insula.volumes.naming import check_part
from insula.volumes.qcow2 import overlay

_PROGRAM_S = 60.0
# qemu-img reads what strangers wrote: it gets little memory and time, see the limits that OpenStack settled on.
_LIMITS = ("prlimit", f"--as={2 << 30}", "--cpu=60")
_RESERVE_BYTES = 64 * 1024 * 1024
_ZEROS = bytes(64 * 1024)


class Disks:
    """The disks of one node."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
        self._folder = folder

    async def make(self, owner: str, disk: DiskConfig, backing: str) -> Disk:
        """See `contract.Volumes.make_disk`."""
        place = self._folder / check_part(owner, "disk's owner")
        check_part(disk.name, "disk")
        await change(place.mkdir, exist_ok=True)
        if disk.kind == "image":
            return await self._on_backing(place, disk, backing)
        if disk.kind == "file":
            return await self._file(disk)
        if disk.kind == "empty":
            path = await change(_make_empty, place, disk)
            return _resolved(disk, path, "raw")
        return _resolved(disk, await change(_make_seed, place, disk), "raw", readonly=True)

    async def _on_backing(self, place: Path, disk: DiskConfig, backing: str) -> Disk:
        facts = await in_thread(_probe, backing)
        if disk.readonly or disk.cdrom:
            return _resolved(disk, backing, facts.format, readonly=True)
        path, fresh = place / f"{disk.name}.qcow2", place / f"{disk.name}.new"
        if not await in_thread(path.exists):
            if disk.size_bytes and disk.size_bytes < facts.size_bytes:
                raise Invalid(
                    f"the disk {disk.name} cannot be {disk.size_bytes} bytes: its image has {facts.size_bytes}",
                    field="size",
                )
            content = overlay(backing, facts.format, disk.size_bytes or facts.size_bytes)
            await change(fresh.write_bytes, content)
            await change(_keep, fresh, path)
        return _resolved(disk, str(path), "qcow2")

    async def _file(self, disk: DiskConfig) -> Disk:
        if not disk.source.startswith("/"):
            raise Invalid(f"the disk file {disk.source!r} is not an absolute path", field="source")
        facts = await in_thread(_probe, disk.source)
        return _resolved(disk, disk.source, facts.format)

    async def drop(self, owner: str) -> None:
        """Delete an owner's disks. Repeatable."""
        await change(remove_tree, self._folder / check_part(owner, "disk's owner"), ignore_errors=True)

    async def receive(self, source: AsyncIterator[bytes], path: str, max_bytes: int) -> DiskFacts:
        """Write an image, decompressed and sparse, verified to be whole. Raises Invalid, Unsupported, TooLarge, HostFault."""
        target = Path(path)
        if await in_thread(target.exists):
            raise Conflict(f"the disk {path} is already there")
        fresh = target.with_name(target.name + ".new")
        try:
            await consume(source, lambda stream: _write_sparse(stream, fresh, max_bytes), "disk")
            facts = await in_thread(probe, str(fresh))
            if facts.format == "qcow2":
                await check_deeply(str(fresh))
            await change(_keep, fresh, target)
        finally:
            await change(fresh.unlink, missing_ok=True)
        return facts


async def check_deeply(path: str) -> None:
    """Let qemu-img follow every pointer of a qcow2 disk, in a process of little memory. Raises Invalid, Unavailable."""
    command = [*_LIMITS, "qemu-img", "check", "-q", "-f", "qcow2", "--output=json", path]
    try:
        done = await spawn.run(command, deadline_s=_PROGRAM_S, check=False)
    except DeadlineExceeded:
        raise Invalid("the qcow2 disk takes too long to check") from None
    except HostFault as fault:
        raise Unavailable(f"disks cannot be checked: {fault.message}", hint="apt-get install qemu-utils") from None
    # 0 whole, 3 leaked clusters (harmless), 2 errors found, 1 could not be read.
    if done.code in (0, 3):
        return
    words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    found = _corruptions(done.stdout)
    detail = f"{found} errors" if found else (words[-1][:200] if words else f"qemu-img ended with {done.code}")
    raise Invalid(f"the qcow2 disk is truncated or damaged: {detail}")


def _corruptions(output: bytes) -> int:
    try:
        report = msgspec.json.decode(output)
        return int(report.get("corruptions", 0) or report.get("check-errors", 0))
    except (msgspec.DecodeError, AttributeError, ValueError):
        return 0


def _probe(path: str) -> DiskFacts:
    if not Path(path).is_file():
        raise NotFound(f"there is no disk file {path!r}")
    return probe(path)


def _resolved(disk: DiskConfig, path: str, format: Format, *, readonly: bool = False) -> Disk:
    return Disk(
        name=disk.name,
        path=path,
        format=format,
        bus=disk.bus,
        cdrom=disk.cdrom,
        readonly=disk.readonly or readonly,
        serial=disk.serial,
        boot_order=disk.boot_order,
    )


def _make_empty(place: Path, disk: DiskConfig) -> str:
    if disk.size_bytes <= 0:
        raise Invalid(f"the empty disk {disk.name} needs a size", field="size")
    path = place / f"{disk.name}.raw"
    if not path.exists():
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.truncate(-(-disk.size_bytes // SECTOR) * SECTOR)
        fresh.rename(path)
    return str(path)


def _make_seed(place: Path, disk: DiskConfig) -> str:
    """Written anew each time: the data may have changed."""
    from insula.volumes.seed import seed_iso  # takes 100 ms to load, and few need it

    path = place / f"{disk.name}.iso"
    fresh = path.with_suffix(".new")
    fresh.write_bytes(seed_iso(disk.files))
    fresh.chmod(0o600)  # it may hold passwords
    fresh.rename(path)
    return str(path)


def _write_sparse(stream: Source, path: Path, max_bytes: int) -> None:
    status = os.statvfs(path.parent)
    limit = min(max_bytes, max(0, status.f_bavail * status.f_frsize - _RESERVE_BYTES))
    # Holes take no room, so the free space bounds what is written, and `max_bytes` what is read.
    plain = Limited(Plain(stream), max_bytes, f"the disk is larger than the limit of {max_bytes} bytes")
    written = 0
    with path.open("wb") as file:
        while block := _whole_block(plain):
            if block == _ZEROS[: len(block)]:
                file.seek(len(block), os.SEEK_CUR)
                continue
            written += len(block)
            if written > limit:
                raise TooLarge(f"no space left on device: the disk needs more than the {limit} bytes that are free")
            try:
                file.write(block)
            except OSError as error:
                raise HostFault(f"cannot write the disk: {os.strerror(error.errno or 0)}", code=error.errno) from None
        file.truncate(file.tell())


def _whole_block(source: Source) -> bytes:
    """As many bytes as `_ZEROS` has, fewer at the end only, so that holes fall on block boundaries."""
    parts, missing = [], len(_ZEROS)
    while missing and (data := source.read(min(missing, CHUNK))):
        parts.append(data)
        missing -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _keep(fresh: Path, target: Path) -> None:
    file = os.open(fresh, os.O_RDONLY)
    try:
        os.fdatasync(file)
    finally:
        os.close(file)
    fresh.rename(target)
