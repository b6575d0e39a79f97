"""What QEMU is started with besides the machine itself, and the words of a machine that more than one file here checks."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

from insula.errors import Invalid, Unsupported
from insula.model.instance import MachineConfig

Accelerator = Literal["kvm", "tcg"]
MIB = 1024 * 1024
LEAST_MEMORY_BYTES = 16 * MIB
MOST_CPUS = 255  # q35 without an interrupt remapper

_MACHINE_TYPES = re.compile(r"(q35|pc|microvm|pc-q35-[a-z0-9.]+|pc-i440fx-[a-z0-9.]+)\Z")
_CPU_MODELS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


class Firmware(Struct, frozen=True, kw_only=True):
    """UEFI: the code, read-only and shared, and this machine's own copy of the variables."""

    code: str
    variables: str


class Launch(Struct, frozen=True, kw_only=True):
    """One start of QEMU. The monitor and the serial line are listening sockets that QEMU inherits as descriptors, so they
    can be connected to before it runs; `vnc` is a socket path; `uid` 0 keeps QEMU root. `version` is QEMU's (major, minor)."""

    binary: str
    version: tuple[int, int]
    accelerator: Accelerator
    id: str
    name: str
    monitor_fd: int
    serial_fd: int
    vnc: str
    serial_log: str
    pidfile: str
    uid: int = 0
    firmware: Firmware | None = None


def check(config: MachineConfig) -> None:
    """Refuse what no QEMU of ours can run. Raises Invalid or Unsupported naming the field."""
    if config.arch not in ("x86_64", "amd64"):
        raise Unsupported(f"The vm driver runs x86_64 machines, not {config.arch}.", field="machine.arch")
    if not _MACHINE_TYPES.match(config.machine_type):
        raise Invalid(
            f"Unknown machine type {config.machine_type!r}; q35, pc, microvm or one of their versions is accepted.",
            field="machine.machine_type",
        )
    if config.memory_bytes < LEAST_MEMORY_BYTES:
        raise Invalid(
            f"A machine needs at least {LEAST_MEMORY_BYTES // MIB} MiB of memory, {config.memory_bytes} bytes were given.",
            field="machine.memory_bytes",
        )
    for field in ("sockets", "cores", "threads"):
        if getattr(config, field) < 1:
            raise Invalid(f"A machine needs at least one of its {field}.", field=f"machine.{field}")
    if cpus(config) > MOST_CPUS:
        raise Invalid(
            f"A machine can have at most {MOST_CPUS} CPUs, {cpus(config)} were asked for.", field="machine.cores"
        )
    if config.cpu_model and not _CPU_MODELS.match(config.cpu_model):
        raise Invalid(f"{config.cpu_model!r} is no CPU model.", field="machine.cpu_model")
    if config.firmware == "efi" and is_microvm(config):
        raise Invalid("A microvm boots a kernel directly and has no UEFI firmware.", field="machine.firmware")


def cpus(config: MachineConfig) -> int:
    """How many CPUs the guest sees."""
    return config.sockets * config.cores * config.threads


def is_microvm(config: MachineConfig) -> bool:
    """Whether it is QEMU's minimal machine: virtio over memory-mapped registers, no PCI, no screen."""
    return config.machine_type == "microvm"


def has_screen(config: MachineConfig) -> bool:
    """Whether it has a graphics card, and so VNC."""
    return config.graphics and not is_microvm(config)
