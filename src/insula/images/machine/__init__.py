"""The demo machine `insula/linux`: the distribution's cloud kernel with a busybox user space.

It has a DHCP client, a login on serial line and screen, a web page on port 80, the ACPI power button, and a small reader
of cloud-init's NoCloud seed. One image holds it in two forms: kernel and initramfs under /boot for direct kernel boot, and
a disk under /disk for a containerDisk. Built once with no network but apt's, and kept in a cache folder; beside it, the
initramfs with which the same kernel runs container images (`docker run --runtime vm`).
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from importlib.resources import files
from pathlib import Path

from msgspec import Struct

from insula import tasks
from insula.images import demo
from insula.images.build import FileEntry
from insula.images.machine import fetch, forimages
from insula.images.machine.disk import write_disk
from insula.images.machine.initramfs import build_initramfs
from insula.images.machine.kernel import read_kernel, require_amd64

NAME = "insula/linux:latest"
KERNEL_PATH = "/boot/vmlinuz"
INITRD_PATH = "/boot/initrd"
DISK_PATH = "/disk/linux.img"
KERNEL_ARGUMENTS = "console=ttyS0 quiet"
CONFIG = {
    "Labels": {
        "insula.machine.kernel": KERNEL_PATH,
        "insula.machine.initrd": INITRD_PATH,
        "insula.machine.kernel-args": KERNEL_ARGUMENTS,
    }
}
_STALE_S = 3600
_DISK_ARGUMENTS = "console=tty0 console=ttyS0 quiet"


class MachineFiles(Struct, frozen=True, kw_only=True):
    """The built files on this host."""

    kernel: Path
    initrd: Path
    disk: Path
    image_initrd: Path  # for machines that run a container image, on the same kernel


def image_files(built: MachineFiles) -> list[FileEntry]:
    """What the image holds, for `add_files_image` together with `NAME` and `CONFIG`."""
    return [
        FileEntry(path=KERNEL_PATH, source=str(built.kernel)),
        FileEntry(path=INITRD_PATH, source=str(built.initrd)),
        FileEntry(path=DISK_PATH, source=str(built.disk)),
    ]


async def build(cache: Path, *, refresh: bool = False) -> MachineFiles:
    """Build it into `cache`, or find it there; `refresh` takes the distribution's newest kernel. About 5 s beside the
    download of 30 MB. Raises Unavailable (apt, busybox), Unsupported (not x86_64)."""
    require_amd64()
    busybox = Path(demo.find_busybox())
    folder = cache / f"linux-{await tasks.in_thread(_recipe, busybox)}"
    built = MachineFiles(
        kernel=folder / "vmlinuz",
        initrd=folder / "initrd",
        disk=folder / "disk.img",
        image_initrd=folder / "image-initrd",
    )
    if refresh or not folder.exists():
        fresh = cache / f"linux.{secrets.token_hex(4)}.new"
        await tasks.in_thread(_start_afresh, fresh)
        try:
            await _build(fresh, busybox)
            await tasks.in_thread(_replace, fresh, folder)
        finally:
            await tasks.in_thread(shutil.rmtree, fresh, ignore_errors=True)
    return built


async def _build(folder: Path, busybox: Path) -> None:
    tree = folder / "tree"
    packages = [*await fetch.kernel_packages(), *fetch.BOOT_PACKAGES, *forimages.COMPILER_PACKAGES]
    await fetch.download_and_unpack(packages, tree)
    await forimages.compile_agent(tree, folder / "agent")
    applets = await tasks.in_thread(demo.applets, str(busybox))
    await tasks.in_thread(_assemble, folder, tree, busybox, applets)


def _assemble(folder: Path, tree: Path, busybox: Path, applets: list[str]) -> None:
    kernel = read_kernel(tree)
    shutil.copyfile(kernel.image, folder / "vmlinuz")
    initrd = build_initramfs(kernel.version, kernel.modules, busybox.read_bytes(), applets)
    (folder / "initrd").write_bytes(initrd)
    agent = (folder / "agent").read_bytes()
    (folder / "image-initrd").write_bytes(forimages.build_image_initramfs(agent, kernel.modules))
    write_disk(
        folder / "disk.img",
        kernel=folder / "vmlinuz",
        initrd=folder / "initrd",
        isolinux=fetch.find_one(tree, "isolinux.bin"),
        ldlinux=fetch.find_one(tree / "usr/lib/syslinux/modules/bios", "ldlinux.c32"),
        arguments=_DISK_ARGUMENTS,
    )
    shutil.rmtree(tree)


def _recipe(busybox: Path) -> str:
    """A short name for what goes in besides the packages: our own files and the busybox."""
    digest = hashlib.sha256(busybox.read_bytes())
    here = files("insula.images.machine")
    for part in (here, here / "guest", here / "agent"):
        for file in sorted(part.iterdir(), key=lambda each: each.name):
            if file.is_file():
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _start_afresh(folder: Path) -> None:
    """Make the folder to build in; what builds left that were killed long ago goes."""
    folder.mkdir(parents=True)
    for stale in folder.parent.glob("linux.*.new"):
        if time.time() - stale.stat().st_mtime > _STALE_S:
            shutil.rmtree(stale, ignore_errors=True)


def _replace(fresh: Path, folder: Path) -> None:
    """Rename into place. A concurrent build of the same recipe may have been first: either result will do."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.exists():
            raise
