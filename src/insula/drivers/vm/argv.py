"""From a machine to QEMU's argument list: a pure function with golden tests. What is decided here, and why:

- The machine is created stopped (`-S`): create and start are two steps, and whoever attaches in between misses nothing.
- A shut-down or panicked guest stays as a stopped QEMU (`-action ...=pause`) until the driver has read why, also when
  Insula was not there at that moment; a reset goes on by itself.
- QEMU leaves root behind (`-runas`) when its files are open, one uid per machine, and may not start programs, raise
  limits or use obsolete system calls (`-sandbox`). Refusing setuid there (`elevateprivileges`) would forbid `-runas`.
- The serial line is a socket whose output is also logged as it is; nobody has to be connected, and QEMU never waits for
  a reader that is not there.
"""

from __future__ import annotations

import uuid as uuids

from insula.drivers.vm.devices import disk_arguments, json_argument, nic_arguments, small_arguments
from insula.drivers.vm.launch import MIB, Launch, check, cpus, has_screen, is_microvm
from insula.errors import Invalid, Unsupported
from insula.model.instance import MachineConfig, MachineSpec

_TCG_CACHE_MIB = 256  # QEMU's own default grows with the host's memory, to 1 GiB


def qemu_arguments(machine: MachineSpec, launch: Launch) -> list[str]:
    """The whole command. Raises Invalid or Unsupported for a machine that cannot be."""
    check(machine.config)
    if is_microvm(machine.config) and launch.accelerator != "kvm":
        # Without KVM's clock its kernel measures the time by the PIT, and hangs when the host is too busy for that.
        raise Unsupported(
            "A microvm needs KVM, which does not work on this host; q35 also runs emulated.",
            field="machine.machine_type",
        )
    return [
        launch.binary,
        *_base(launch),
        *_board(machine.config, launch),
        *_identity(machine.config, launch),
        *_boot(machine),
        *_lines(launch),
        *_screen(machine.config, launch),
        *small_arguments(machine.config),
        *disk_arguments(machine),
        *nic_arguments(machine),
    ]


def _base(launch: Launch) -> list[str]:
    out = ["-no-user-config", "-nodefaults", "-S", "-msg", "timestamp=on", "-pidfile", launch.pidfile]
    out += ["-name", f"guest={escape(launch.name)},debug-threads=off"]
    out += ["-action", "reboot=reset,shutdown=pause,panic=pause,watchdog=reset"]
    out += ["-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny"]
    if launch.uid:
        user = f"{launch.uid}:{launch.uid}"
        out += ["-run-with", f"user={user}"] if launch.version >= (9, 1) else ["-runas", user]
    return out


def _board(config: MachineConfig, launch: Launch) -> list[str]:
    machine = config.machine_type
    if is_microvm(config):
        machine += ",acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,auto-kernel-cmdline=on"
    else:
        machine += ",hpet=off,vmport=off"
    out: list[str] = []
    if firmware := launch.firmware:
        for unit, path, readonly in ((0, firmware.code, True), (1, firmware.variables, False)):
            node = {"driver": "file", "node-name": f"flash{unit}", "filename": path, "read-only": readonly}
            out += json_argument("-blockdev", node)
            machine += f",pflash{unit}=flash{unit}"
    accelerator = "kvm" if launch.accelerator == "kvm" else f"tcg,thread=multi,tb-size={_TCG_CACHE_MIB}"
    out += ["-machine", machine, "-accel", accelerator, "-cpu", cpu_model(config, launch)]
    out += ["-smp", f"{cpus(config)},sockets={config.sockets},cores={config.cores},threads={config.threads}"]
    out += ["-m", f"{-(-config.memory_bytes // MIB)}M", "-rtc", "base=utc"]
    if is_microvm(config):
        out += ["-global", "virtio-mmio.force-legacy=false"]
    return out


def cpu_model(config: MachineConfig, launch: Launch) -> str:
    """KVM shows the host's CPU; TCG the most that it can emulate, without 5-level page tables, which only slow it down."""
    if config.cpu_model and config.cpu_model not in ("host-model", "host-passthrough", "host"):
        return config.cpu_model
    return "host,migratable=on" if launch.accelerator == "kvm" else "max,la57=off"


def machine_uuid(config: MachineConfig, id: str) -> str:
    """The asked one, or one made from the instance's id, so that it stays the same. Raises Invalid."""
    if not config.uuid:
        return str(uuids.UUID(id[:32]))
    try:
        return str(uuids.UUID(config.uuid))
    except ValueError:
        raise Invalid(f"{config.uuid!r} is no UUID.", field="machine.uuid") from None


def _identity(config: MachineConfig, launch: Launch) -> list[str]:
    uuid = machine_uuid(config, launch.id)
    table = f"type=1,manufacturer=Insula,product=Insula machine,uuid={uuid}"
    if config.serial_number:
        table += f",serial={escape(config.serial_number)}"
    return ["-uuid", uuid] + ([] if is_microvm(config) else ["-smbios", table])


def _boot(machine: MachineSpec) -> list[str]:
    if machine.kernel:
        out = ["-kernel", machine.kernel]
        if machine.initrd:
            out += ["-initrd", machine.initrd]
        return out + (["-append", machine.kernel_args] if machine.kernel_args else [])
    if is_microvm(machine.config):
        raise Invalid("A microvm boots a kernel directly; it needs a kernel image.", field="machine.kernel_image")
    if machine.kernel_args or machine.initrd:
        raise Invalid("Kernel arguments and an initrd need a kernel.", field="machine.kernel_path")
    return ["-boot", "menu=off,strict=on"]


def _lines(launch: Launch) -> list[str]:
    monitor = f"socket,id=monitor0,fd={launch.monitor_fd},server=on,wait=off"
    serial = f"socket,id=serial0,fd={launch.serial_fd},server=on,wait=off"
    log = f",logfile={escape(launch.serial_log)},logappend=on" if launch.serial_log else ""
    return [
        *("-chardev", monitor, "-mon", "chardev=monitor0,mode=control"),
        *("-chardev", f"{serial}{log}", "-serial", "chardev:serial0"),
    ]


def _screen(config: MachineConfig, launch: Launch) -> list[str]:
    if not has_screen(config):
        return ["-display", "none"]
    return [
        *json_argument("-device", {"driver": "VGA", "id": "video0", "vgamem_mb": 16}),
        "-vnc",
        f"unix:{escape(launch.vnc)}",
    ]


def escape(value: str) -> str:
    """A value inside a comma-separated option; a comma is doubled. Raises Invalid for a NUL, which no argument can hold."""
    if "\0" in value:
        raise Invalid("A machine's name, serial number or path must not contain a NUL character.")
    return value.replace(",", ",,")
