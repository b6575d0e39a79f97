"""QEMU as a program on this host: where it is, which version, its firmware, starting it, finding one that was left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from insula.errors import HostFault, Invalid, Unavailable
from insula.host import spawn
from insula.host.pidfd import ProcessId, identify

_LONGEST_SOCKET_PATH = 107  # unix(7): sun_path holds 108 bytes with its NUL
_STDERR_BYTES = 8192

# (code, variables template): Debian and Ubuntu, Fedora, Arch. Only the 4 MiB builds: their variables hold a modern dbx.
_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE_4M.fd", "/usr/share/edk2/ovmf/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)


class Version(Struct, frozen=True, order=True):
    """QEMU's version; `text` as it prints it."""

    major: int
    minor: int
    text: str


def find(arch: str = "x86_64") -> str:
    """The emulator's path. Raises Unavailable."""
    name = f"qemu-system-{arch}"
    path = shutil.which(name, path=spawn.ENVIRONMENT["PATH"])
    if path is None:
        raise Unavailable(f"{name} is not installed", hint="install the package qemu-system-x86")
    return path


async def version(binary: str) -> Version:
    """Ask it. Raises HostFault."""
    done = await spawn.run([binary, "--version"], deadline_s=10)
    found = re.search(rb"version (\d+)\.(\d+)\S*", done.stdout)
    if found is None:
        raise HostFault(
            f"{binary} --version answered nothing that looks like a version.", command=f"{binary} --version"
        )
    text = found.group(0).removeprefix(b"version ").decode()
    return Version(int(found.group(1)), int(found.group(2)), text)


def find_firmware() -> tuple[str, str]:
    """UEFI's code and template of variables. Raises Unavailable."""
    for code, variables in _FIRMWARE:
        if Path(code).exists() and Path(variables).exists():
            return code, variables
    raise Unavailable("UEFI firmware for machines is not installed", hint="install the package ovmf")


def listen(path: str) -> socket.socket:
    """A listening Unix socket for root alone, replacing one that a crash left. Raises Invalid when the path is too long."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise Invalid(
            f"The socket path {path} has {len(os.fsencode(path))} characters, {_LONGEST_SOCKET_PATH} are possible.",
            hint="choose a shorter root folder",
        )
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        Path(path).chmod(0o600)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener


def start(argv: Sequence[str], *, pass_fds: Sequence[int], stderr_path: str) -> spawn.Child:
    """Start it in a session of its own, so that it outlives us and our process group. What it says goes to a file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    stderr = os.open(stderr_path, flags, 0o600)
    try:
        child = spawn.start(argv, stderr=stderr, pass_fds=pass_fds, cwd="/", new_session=True)
    finally:
        os.close(stderr)
    child.let_go()
    return child


def last_words(stderr_path: str) -> str:
    """The end of what it wrote to its standard error."""
    try:
        with open(stderr_path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _STDERR_BYTES))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def find_strays(pidfile: str) -> list[ProcessId]:
    """Every QEMU that was started with this pidfile, whether it has written it yet or not. Reads /proc once."""
    wanted = b"\0-pidfile\0" + os.fsencode(pidfile) + b"\0"
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            words = Path(entry.path, "cmdline").read_bytes()
        except OSError:
            continue
        if wanted in words and (process := identify(int(entry.name))):
            found.append(process)
    return found
