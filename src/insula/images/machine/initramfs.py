"""The demo machine's user space: a static busybox and the scripts of `guest/`, as an initramfs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from importlib.resources import files

from insula.images.machine import cpio
from insula.images.machine.kernel import Module

_FOLDERS = (
    "bin", "dev", "etc", "etc/acpi", "etc/acpi/PWRF", "lib", "lib/modules", "mnt", "proc", "root", "run", "sbin", "sys",
    "tmp", "usr", "usr/bin", "usr/sbin", "var", "var/log", "www",
)  # fmt: skip

# guest/ name, place in the machine, mode
_SCRIPTS = (
    ("inittab", "etc/inittab", 0o644),
    ("rc", "etc/rc", 0o755),
    ("udhcpc", "etc/udhcpc", 0o755),
    ("page", "etc/page", 0o755),
    ("nocloud", "etc/nocloud", 0o755),
    ("profile", "etc/profile", 0o644),
    ("issue", "etc/issue", 0o644),
    ("poweroff-button", "etc/acpi/PWRF/00000080", 0o755),
)

_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\ntty:x:5:\n",
    "etc/shells": "/bin/sh\n",
    "etc/securetty": "ttyS0\ntty1\nhvc0\n",
}


def build_initramfs(version: str, modules: Sequence[Module], busybox: bytes, applets: Sequence[str]) -> bytes:
    """The compressed archive. `applets` are the names that the busybox answers to; `version` is the kernel's."""
    entries = [cpio.folder(path, 0o1777 if path == "tmp" else 0o755) for path in _FOLDERS]
    entries.append(cpio.device("dev/console", 5, 1))
    entries.append(cpio.device("dev/null", 1, 3, 0o666))
    entries.append(cpio.file("bin/busybox", busybox, 0o755))
    entries.append(cpio.link("init", "/sbin/init"))
    entries.append(cpio.link("linuxrc", "/bin/busybox"))
    entries += [
        cpio.link(_applet_path(name), "/bin/busybox") for name in sorted(applets) if name not in {"busybox", "linuxrc"}
    ]
    entries += _configuration()
    entries += _module_tree(version, modules)
    return compress(cpio.archive(entries))


def compress(data: bytes) -> bytes:
    """gzip without a time stamp: every kernel reads it, and unpacking costs an emulated CPU little."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def _applet_path(name: str) -> str:
    folder = (
        "sbin" if name in {"init", "getty", "reboot", "poweroff", "halt", "modprobe", "insmod", "udhcpc"} else "bin"
    )
    return f"{folder}/{name}"


def _configuration() -> list[cpio.Entry]:
    guest = files("insula.images.machine") / "guest"
    entries = [cpio.file(path, (guest / name).read_bytes(), mode) for name, path, mode in _SCRIPTS]
    entries += [cpio.file(path, text.encode()) for path, text in _TEXTS.items()]
    entries.append(cpio.file("etc/shadow", b"root::19000:0:99999:7:::\n", 0o600))
    return entries


def _module_tree(version: str, modules: Sequence[Module]) -> list[cpio.Entry]:
    """The modules with the index files that busybox modprobe reads, as depmod(8) would write them."""
    base = f"lib/modules/{version}"
    known = {module.name: module for module in modules}
    depends, aliases = [], []
    for module in modules:
        needs = " ".join(f"{need}.ko" for need in _all_needs(module, known))
        depends.append(f"{module.name}.ko:{' ' + needs if needs else ''}\n")
        aliases += [f"alias {alias} {module.name}\n" for alias in module.aliases]
    entries = [cpio.folder(base)]
    entries += [cpio.file(f"{base}/{module.name}.ko", module.code) for module in modules]
    entries.append(cpio.file(f"{base}/modules.dep", "".join(depends).encode()))
    entries.append(cpio.file(f"{base}/modules.alias", "".join(aliases).encode()))
    return entries


def _all_needs(module: Module, known: dict[str, Module]) -> list[str]:
    """Every module needed, directly or not; the one to load first stands last, as modules.dep has it."""
    found: list[str] = []
    for need in module.depends:
        if need in known:
            found = [need, *_all_needs(known[need], known), *found]
    return list(dict.fromkeys(reversed(found)))[::-1]
