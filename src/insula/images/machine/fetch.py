"""Getting the distribution's packages that the demo machine is made of: downloaded with apt, unpacked, never installed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from insula import tasks
from insula.errors import HostFault, Unavailable
from insula.host import spawn
from insula.images.machine.kernel import META_PACKAGES

BOOT_PACKAGES = ("isolinux", "syslinux-common")
_DOWNLOAD_S = 600.0
_HINT = "run `apt-get update`, and see that this host reaches its package mirror"


async def kernel_packages() -> list[str]:
    """The packages of the distribution's current kernel for machines. Raises Unavailable."""
    if shutil.which("apt-get", path=spawn.ENVIRONMENT["PATH"]) is None:
        raise Unavailable("The demo machine is made of Debian or Ubuntu packages, and apt-get is not here.")
    for meta in META_PACKAGES:
        shown = await spawn.run(["apt-cache", "depends", meta], check=False)
        if found := re.search(rb"Depends: (linux-image-[0-9]\S+)", shown.stdout):
            image = found.group(1).decode()
            return [image, *await _split_modules(image)]
    raise Unavailable("apt knows no kernel package for machines", hint=_HINT)


async def _split_modules(image: str) -> list[str]:
    """Ubuntu's second package."""
    modules = image.replace("linux-image-", "linux-modules-", 1)
    known = await spawn.run(["apt-cache", "show", "--no-all-versions", modules], check=False)
    return [modules] if known.code == 0 else []


async def download_and_unpack(packages: Sequence[str], folder: Path) -> None:
    """Put the contents of the packages below `folder`. apt checks their signatures. Raises Unavailable, HostFault."""
    archives = folder / "archives"
    await tasks.in_thread(lambda: archives.mkdir(parents=True))
    try:
        # apt's own unprivileged user could not write here; the download is verified either way.
        argv = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages]
        await spawn.run(argv, cwd=str(archives), deadline_s=_DOWNLOAD_S)
    except HostFault as fault:
        raise Unavailable(f"The packages of the demo machine could not be downloaded: {fault}", hint=_HINT) from fault
    for archive in sorted(archives.glob("*.deb")):
        await spawn.run(["dpkg", "-x", str(archive), str(folder)], deadline_s=120)
    await tasks.in_thread(shutil.rmtree, archives)


def find_one(folder: Path, name: str) -> Path:
    """A file of that name in an unpacked tree. Raises HostFault."""
    found = sorted(folder.rglob(name))
    if not found:
        raise HostFault(f"{name} is not in the downloaded packages.")
    return found[0]
