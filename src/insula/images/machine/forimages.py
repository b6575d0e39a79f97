"""The initramfs of a machine that runs a container image: the agent, which is its only program, and the modules that it needs.

The agent is one file of C, compiled by tcc against musl into some 100 KB in a fraction of a second. Both come as the
distribution's packages, unpacked and never installed, as the kernel does; so no compiler has to be on a user's machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from insula.host import spawn
from insula.images.machine import cpio
from insula.images.machine.fetch import find_one
from insula.images.machine.kernel import Module, closure

COMPILER_PACKAGES = ("tcc", "musl-dev")
MODULES = ("virtio_pci", "virtio_mmio", "virtio_console", "virtio_net", "virtiofs", "af_packet")
_FOLDERS = ("dev", "proc", "sys", "run", "modules")


async def compile_agent(tree: Path, program: Path) -> None:
    """Compile the agent with what the packages' tree holds. Raises HostFault with the compiler's words."""
    with as_file(files("insula.images.machine") / "agent" / "agent.c") as source:
        await spawn.run(compiler_arguments(tree, str(source), str(program)), deadline_s=60)


def compiler_arguments(tree: Path, source: str, program: str) -> list[str]:
    """tcc with musl in place of the C library that it would look for: found below `tree`. Raises HostFault."""
    own = find_one(tree, "libtcc1.a")
    libc = find_one(tree, "libc.a").parent
    headers = next(path.parent for path in sorted(tree.glob("usr/include/*-linux-musl/stdio.h")))
    return [
        *(str(tree / "usr/bin/tcc"), f"-B{own.parent}", "-nostdinc", "-nostdlib", "-static"),
        *(f"-I{own.parent / 'include'}", f"-I{headers}", "-o", program),
        *(str(libc / "crt1.o"), str(libc / "crti.o"), source, str(libc / "libc.a"), str(own), str(libc / "crtn.o")),
    ]


def build_image_initramfs(agent: bytes, modules: Sequence[Module]) -> bytes:
    """The archive, not compressed: it is small, and unpacking would cost an emulated CPU more than reading."""
    chosen = closure(MODULES, {module.name: module for module in modules})
    entries = [cpio.folder(path) for path in _FOLDERS]
    entries += [cpio.device("dev/console", 5, 1), cpio.file("init", agent, 0o755)]
    entries.append(cpio.file("modules/order", "".join(f"{module.name}\n" for module in chosen).encode()))
    entries += [cpio.file(f"modules/{module.name}.ko", module.code) for module in chosen]
    return cpio.archive(entries)
