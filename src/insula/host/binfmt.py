"""Programs of other processor architectures: what binfmt_misc does with them, and telling it to hand them to qemu-user.

The rules say by a magic number and a mask which files go to which interpreter. A container sees only its own files, so the
interpreter has to be opened when the rule is made: flag F. Sources: the kernel's admin-guide/binfmt-misc.rst, the ELF
header of elf(5), the machine numbers of <linux/elf-em.h>.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from insula.errors import HostFault, Unavailable
from insula.host import mounts
from insula.host.rootfd import open_in

FOLDER = Path("/proc/sys/fs/binfmt_misc")
_EXEC = 2  # ET_EXEC; the mask lets ET_DYN (3) through as well
_HEADER = 20
_TELLS_ARGV0 = (5, 12)
# Version and padding count, the ABI of the operating system does not, nor the lowest bit of the type.
_MASK = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff"


class Machine(Struct, frozen=True, kw_only=True):
    """An architecture in Go's word, qemu's word, and how its programs begin: 32 or 64 bits, byte order, machine number."""

    name: str
    qemu: str
    number: int
    bits: int = 64
    big: bool = False

    @property
    def magic(self) -> bytes:
        """The first bytes of its programs."""
        ident = b"\x7fELF" + bytes([2 if self.bits == 64 else 1, 2 if self.big else 1, 1]) + bytes(9)
        return ident + struct.pack(">HH" if self.big else "<HH", _EXEC, self.number)


MACHINES: tuple[Machine, ...] = (
    Machine(name="amd64", qemu="x86_64", number=62),
    Machine(name="arm64", qemu="aarch64", number=183),
    Machine(name="386", qemu="i386", number=3, bits=32),
    Machine(name="arm", qemu="arm", number=40, bits=32),
    Machine(name="ppc64le", qemu="ppc64le", number=21),
    Machine(name="s390x", qemu="s390x", number=22, big=True),
    Machine(name="riscv64", qemu="riscv64", number=243),
    Machine(name="mips64le", qemu="mips64el", number=8),
    Machine(name="mips64", qemu="mips64", number=8, big=True),
    Machine(name="loong64", qemu="loongarch64", number=258),
)
_NATIVE = {"x86_64": ("amd64", "386"), "aarch64": ("arm64", "arm"), "i686": ("386",), "armv7l": ("arm",)}


class Rule(Struct, frozen=True, kw_only=True):
    """One entry of binfmt_misc. `magic` and `mask` are empty for a rule by a file name's ending."""

    name: str
    enabled: bool
    interpreter: str
    flags: str
    magic: bytes = b""
    mask: bytes = b""

    def takes(self, machine: Machine) -> bool:
        """Whether programs of a machine are its."""
        if not (self.enabled and self.magic) or len(self.magic) > _HEADER:
            return False
        mask = self.mask or b"\xff" * len(self.magic)
        return all(want & m == have & m for want, have, m in zip(self.magic, machine.magic, mask, strict=False))


def native(host: str = "") -> tuple[str, ...]:
    """The architectures that this processor runs by itself, as a rule."""
    host = host or platform.machine()
    return _NATIVE.get(host, (next((each.name for each in MACHINES if each.qemu == host), host),))


def parse_rule(name: str, text: str) -> Rule:
    """Read one file of binfmt_misc. Lines of other shapes are passed over."""
    words = dict(line.partition(" ")[::2] for line in text.splitlines())
    at_start = words.get("offset", "0") == "0"
    return Rule(
        name=name,
        enabled="enabled" in words,
        interpreter=words.get("interpreter", ""),
        flags=words.get("flags:", ""),
        magic=_unhex(words.get("magic", "")) if at_start else b"",
        mask=_unhex(words.get("mask", "")),
    )


def _unhex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def machine_of(header: bytes) -> Machine | None:
    """Whose program begins like this; None for a script, an unknown machine, no program at all."""
    if len(header) < _HEADER or not header.startswith(b"\x7fELF"):
        return None
    bits, big = {1: 32, 2: 64}.get(header[4], 0), header[5] == 2
    (number,) = struct.unpack_from(">H" if big else "<H", header, 18)
    return next((each for each in MACHINES if (each.bits, each.big, each.number) == (bits, big, number)), None)


def registration(machine: Machine, interpreter: str, *, keeps_argv0: bool = True) -> bytes:
    """What is written to `register`. The interpreter gets the program opened, with its credentials, and (P) its real argv[0],
    which programs such as busybox live by; the kernel tells qemu so since Linux 5.12."""

    def escaped(data: bytes) -> str:
        return "".join(f"\\x{byte:02x}" for byte in data)

    flags = "OCPF" if keeps_argv0 else "OCF"
    return f":qemu-{machine.qemu}:M::{escaped(machine.magic)}:{escaped(_MASK)}:{interpreter}:{flags}".encode()


# --- this host ----------------------------------------------------------------------------------------------------


def rules(folder: Path = FOLDER) -> list[Rule]:
    """All rules; none where binfmt_misc is not mounted. Blocks for a moment."""
    found = []
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.name not in ("register", "status"):
                with suppress(OSError):
                    found.append(parse_rule(entry.name, entry.read_text()))
    return found


def missing(machine: Machine, known: list[Rule]) -> str:
    """Why its programs cannot run in a container, and what helps; empty when they can."""
    package = f"install the package qemu-user-static and run: insula emulation enable {machine.name}"
    rule = next((rule for rule in known if rule.takes(machine)), None)
    if rule is None:
        return f"nothing on this machine runs programs for {machine.name}; {package}"
    if "F" not in rule.flags:
        return (
            f"the rule {rule.name} of binfmt_misc opens {rule.interpreter} too late for containers (it lacks the flag F); "
            f"run: insula emulation enable {machine.name}"
        )
    return ""


def find_emulator(machine: Machine) -> str:
    """The static qemu for a machine. Raises Unavailable naming the package."""
    path = shutil.which(f"qemu-{machine.qemu}-static") or shutil.which(f"qemu-{machine.qemu}")
    if path is None:
        raise Unavailable(
            f"qemu-{machine.qemu}-static is not installed",
            hint="install the package qemu-user-static, or qemu-user-binfmt",
        )
    return os.path.realpath(path)


def enable(machine: Machine, interpreter: str) -> bool:
    """Make a rule, in place of one that will not do. Says whether anything changed. Blocks. Raises HostFault."""
    if not (FOLDER / "register").exists():
        mounts.mount("binfmt_misc", str(FOLDER), "binfmt_misc")
    if not missing(machine, rules()):
        return False
    for rule in rules():
        if rule.takes(machine):
            _write(FOLDER / rule.name, b"-1")
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    _write(FOLDER / "register", registration(machine, interpreter, keeps_argv0=release >= _TELLS_ARGV0))
    return True


def disable(machine: Machine) -> bool:
    """Take our rule away. Says whether there was one. Blocks. Raises HostFault."""
    path = FOLDER / f"qemu-{machine.qemu}"
    if not path.exists():
        return False
    _write(path, b"-1")
    return True


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as fault:
        reason = fault.strerror or str(fault)
        raise HostFault(f"the kernel refused a rule of binfmt_misc: {reason}", command=f"echo ... > {path}") from fault


def program_of(root: str, argument: str, search: str) -> Machine | None:
    """Whose program a container would begin with, found below its root as execvp(3) does; None when that cannot be told.
    Blocks for a moment."""
    places = [argument] if "/" in argument else [f"{folder}/{argument}" for folder in search.split(":") if folder]
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for place in places:
            with suppress(OSError):
                # Without O_NONBLOCK a FIFO of the image would hold us up.
                file = open_in(descriptor, place, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    return machine_of(os.read(file, _HEADER))
                finally:
                    os.close(file)
    finally:
        os.close(descriptor)
    return None
