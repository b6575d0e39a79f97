"""Which accelerator works here: found out by running a guest, not by looking at /dev/kvm.

The guest is `probe_guest.S`, a ROM of 64 KiB. Natively it needs a few milliseconds beyond QEMU's own start; a KVM that
merely emulates, that loses interrupts or that never enters the guest misses the deadline, and TCG is used instead. The
answer holds until this host boots again or QEMU or the kernel changes; it is kept in a file beside the sockets.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from base64 import b64decode
from pathlib import Path

import msgspec
from msgspec import Struct

from insula import tasks
from insula.drivers.vm.launch import Accelerator
from insula.errors import DeadlineExceeded, HostFault, InsulaError
from insula.host import kvm, pidfd, qemu, spawn

DEADLINE_S = 1.5
ROM_BYTES = 64 * 1024
_EXIT_OK = 0x21 << 1 | 1  # isa-debug-exit turns the byte written into this exit code
_RESET_VECTOR = b"\xea\x00\x00\x00\xf0"  # ljmp $0xf000, $0: to the ROM's first byte

# The code of probe_guest.S; a test assembles it again where an assembler is installed.
GUEST = b64decode(
    b"+i5mDwEWiAEPIMAMAQ8iwGbqGAAPAAgAZrgQAI7YjsCO0LkgoQcASXX9/DHAvwAQAAC5ABQAAPOrxwUAEAAAAyAAAMcFACAAAAMw"
    b"AADHBRggAAADQAAAxwUAMAAAgwAAAMcFuE8AAJsA4P4PIOCDyCAPIuC4ABAAAA8i2LmAAADADzINAAEAAA8wDyDADQAAAIAPIsDq"
    b"nAAPABgAvPB/AAC5gJaYAP/Jdfy/DgAAAL5DAQ8A6GoAAAC/IAAAAL5UAQ8A6FsAAAAPAR2/AAAASMcEJQAAIABVAAAAgDwlAAAg"
    b"AFV1czHAD6IPMWa6+AOwS+6/AADg/seH8AAAAP8BAADHh+ADAAALAAAAx4cgAwAAIAAAAMeHgAMAAKCGAQD79Ov9wecEgccAUAAA"
    b"Zok3ZsdHAhgAZsdHBACOwe4QZol3BsPHBCUIMAAAgwAgAEiDxAhIz7Ah6wKwEWa6AQXu9Ov9Zg8fRAAAAAAAAAAAAAD//wAAAJrP"
    b"AP//AAAAks8A//8AAACarwAfAGgBDwD/DwBQAAAAAAAA"
)


class Found(Struct, frozen=True, kw_only=True):
    """The accelerator to use, why, and the QEMU that it was found with. `key` tells for which host state it holds."""

    key: str
    accelerator: Accelerator
    reason: str
    binary: str
    version: qemu.Version
    took_s: float = 0.0


def rom(code: bytes = GUEST) -> bytes:
    """The guest as a firmware image: code at F000:0000, the CPU's first instruction jumps there."""
    image = bytearray(code.ljust(ROM_BYTES, b"\xff"))
    image[0xFFF0 : 0xFFF0 + len(_RESET_VECTOR)] = _RESET_VECTOR
    return bytes(image)


def guest_arguments(binary: str, accelerator: str, rom_path: str, *, cpu: str = "host") -> list[str]:
    """QEMU's command for the probe guest. Pure."""
    machine = ["-machine", "q35", "-accel", accelerator, "-cpu", cpu, "-m", "16", "-bios", rom_path]
    quiet = ["-no-user-config", "-nodefaults", "-display", "none", "-serial", "null", "-no-reboot"]
    return [binary, *quiet, *machine, "-device", "isa-debug-exit,iobase=0x501,iosize=1"]


async def run_guest(
    binary: str, accelerator: str, folder: Path, *, cpu: str = "host", deadline_s: float = DEADLINE_S
) -> str:
    """Run the guest; an empty answer means that it ran to its end, else it is the reason why not, for `doctor`."""
    rom_path = folder / f"probe-{os.getpid()}.rom"
    await tasks.in_thread(rom_path.write_bytes, rom())
    try:
        argv = guest_arguments(binary, accelerator, str(rom_path), cpu=cpu)
        done = await spawn.run(argv, deadline_s=deadline_s, check=False)
    except DeadlineExceeded:
        return f"a tiny guest did not come to its end within {deadline_s:g} s"
    finally:
        rom_path.unlink(missing_ok=True)
    if done.code == _EXIT_OK:
        return ""
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return f"QEMU could not run a tiny guest: {words[-1] if words else f'exit code {done.code}'}"


class Accelerators:
    """Finds the accelerator once and remembers it. Safe to ask from several tasks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = asyncio.Lock()
        self._found: Found | None = None

    async def find(self) -> Found:
        """The answer for this host; takes up to `DEADLINE_S` the first time. Raises Unavailable without QEMU."""
        async with self._lock:
            if self._found is None:
                self._found = await self._remembered() or await self._alone()
            return self._found

    async def _alone(self) -> Found:
        """Another driver of this host may be trying at this moment; then its answer is ours."""
        await tasks.in_thread(lambda: self._folder.mkdir(parents=True, exist_ok=True, mode=0o700))
        lock = await tasks.in_thread(os.open, self._folder / "probe.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await tasks.in_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            return await self._remembered() or await self._try()
        finally:
            os.close(lock)

    @property
    def _file(self) -> Path:
        return self._folder / "accelerator.json"

    def _key(self, binary: str) -> str:
        status = Path(binary).stat()
        return f"{pidfd.boot_id()} {os.uname().release} {binary} {status.st_mtime_ns} {status.st_size}"

    async def _remembered(self) -> Found | None:
        try:
            found = msgspec.json.decode(await tasks.in_thread(self._file.read_bytes), type=Found)
        except (OSError, msgspec.DecodeError):
            return None
        return found if found.key == self._key(qemu.find()) else None

    async def _try(self) -> Found:
        binary = qemu.find()
        version, began = await qemu.version(binary), time.monotonic()
        accelerator, reason = await _decide(binary, self._folder)
        found = Found(
            key=self._key(binary),
            accelerator=accelerator,
            reason=reason,
            binary=binary,
            version=version,
            took_s=round(time.monotonic() - began, 3),
        )
        await tasks.in_thread(self._remember, found)
        return found

    def _remember(self, found: Found) -> None:
        fresh = self._file.with_suffix(f".{os.getpid()}.new")
        fresh.write_bytes(msgspec.json.encode(found))
        fresh.rename(self._file)


async def _decide(binary: str, folder: Path) -> tuple[Accelerator, str]:
    try:
        await tasks.in_thread(kvm.check_device)
        trouble = await run_guest(binary, "kvm", folder)
    except (InsulaError, HostFault) as fault:
        trouble = str(fault)
    if trouble:
        return (
            "tcg",
            f"machines are emulated (TCG), about ten times slower: KVM does not work here, {trouble.rstrip('.')}",
        )
    return "kvm", "machines use KVM: a tiny guest ran to its end"
