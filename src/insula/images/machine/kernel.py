"""The guest kernel: fetched with apt as the distribution's package, unpacked (never installed), and its modules chosen.

Debian packs image and modules together in `linux-image-VERSION-cloud-amd64`; Ubuntu splits them into `linux-image-` and
`linux-modules-`. Modules may be plain, .xz or .zst. There is no modules.dep in the packages (it is made at install
time), so dependencies and aliases are read from each module's own .modinfo section (kernel: include/linux/module.h).
"""

from __future__ import annotations

import lzma
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import zstandard
from msgspec import Struct

from insula.errors import HostFault, Unsupported

META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")

# What a machine of ours can show its guest: virtio, the q35 SATA controller, CD-ROMs, the power button, common NICs.
MODULES = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "virtio_rng",
    "virtio_balloon",
    "virtio_console",
    "virtiofs",
    "sd_mod",
    "sr_mod",
    "ahci",
    "ata_piix",
    "isofs",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859_1",
    "nls_utf8",
    "af_packet",
    "button",
    "pvpanic_pci",
    "evdev",
    "e1000",
    "e1000e",
    "8139cp",
)


class Module(Struct, frozen=True, kw_only=True):
    """One kernel module: its name with underscores, its code uncompressed, and what its .modinfo says."""

    name: str
    code: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


class Kernel(Struct, frozen=True, kw_only=True):
    """An unpacked kernel: the version as `uname -r` shows it, the boot image, the modules in loading order."""

    version: str
    image: Path
    modules: tuple[Module, ...]


def require_amd64() -> None:
    """The demo machine is built for x86-64 only. Raises Unsupported elsewhere."""
    if platform.machine() != "x86_64":
        raise Unsupported(f"The demo machine image can be built on x86_64 only, this is {platform.machine()}.")


def read_kernel(root: Path) -> Kernel:
    """What an unpacked package tree holds. Raises HostFault when there is no kernel in it."""
    images = sorted(root.glob("boot/vmlinuz-*"))
    if not images:
        raise HostFault(f"No kernel image was found under {root}/boot.")
    version = images[-1].name.removeprefix("vmlinuz-")
    trees = [root / "lib/modules" / version, root / "usr/lib/modules" / version]
    files = {_name(path): path for tree in trees for path in tree.rglob("*.ko*")}
    return Kernel(version=version, image=images[-1], modules=tuple(closure(MODULES, _Lazy(files))))


def closure(wanted: Iterable[str], known: Mapping[str, Module]) -> list[Module]:
    """The wanted modules with all they need, each after its needs. One that is absent is built into the kernel, or not there."""
    found: dict[str, Module] = {}

    def visit(name: str) -> None:
        if name not in found and name in known:
            for need in known[name].depends:
                visit(need)
            found[name] = known[name]

    for name in wanted:
        visit(name)
    return list(found.values())


class _Lazy(Mapping[str, Module]):
    """The modules of a tree, each read when it is asked for."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._read: dict[str, Module] = {}

    def __getitem__(self, name: str) -> Module:
        if name not in self._read:
            self._read[name] = _read(name, self._files[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files


def _name(path: Path) -> str:
    return path.name.split(".ko", 1)[0].replace("-", "_")


def _read(name: str, path: Path) -> Module:
    code = path.read_bytes()
    if path.suffix == ".xz":
        code = lzma.decompress(code)
    elif path.suffix == ".zst":
        code = zstandard.ZstdDecompressor().decompressobj().decompress(code)
    needs = _modinfo(code, b"depends")
    depends = tuple(need.replace("-", "_") for line in needs for need in line.split(",") if need)
    return Module(name=name, code=code, depends=depends, aliases=tuple(_modinfo(code, b"alias")))


def _modinfo(code: bytes, key: bytes) -> list[str]:
    return [match.decode() for match in re.findall(rb"\0" + key + rb"=([^\0]*)(?=\0)", code)]
