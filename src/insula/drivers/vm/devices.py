"""Disks, network cards and the small devices as QEMU arguments. Pure; JSON forms, so that no value can add an option.

Sources: qemu(1), the QMP reference for `blockdev-add`, and the device properties that `-device NAME,help` prints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from insula.drivers.vm.launch import is_microvm
from insula.errors import Invalid
from insula.model.instance import Disk, MachineConfig, MachineSpec, Tap

_NICS = {
    "virtio": "virtio-net-pci",
    "e1000": "e1000",
    "e1000e": "e1000e",
    "rtl8139": "rtl8139",
    "ne2k_pci": "ne2k_pci",
    "pcnet": "pcnet",
    "vmxnet3": "vmxnet3",
}
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}\Z", re.IGNORECASE)
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")
_SERIAL = re.compile(r"[\x20-\x7e]{0,36}\Z")
_SATA_PORTS = 6  # of q35's built-in AHCI controller


def json_argument(option: str, value: dict[str, Any]) -> list[str]:
    """An option with its value as JSON, without blanks."""
    return [option, json.dumps(value, separators=(",", ":"))]


def disk_arguments(machine: MachineSpec) -> list[str]:
    """Back ends and devices of all disks, with the controllers that their buses need."""
    out: list[str] = []
    buses = {disk.bus for disk in machine.disks}
    if "scsi" in buses:
        out += json_argument("-device", {"driver": virtio("scsi", machine.config), "id": "scsi0"})
    if "usb" in buses:
        out += json_argument("-device", {"driver": "qemu-xhci", "id": "usb0"})
    sata_ports = iter(range(_SATA_PORTS))
    for index, (disk, bootindex) in enumerate(zip(machine.disks, boot_order(machine.disks), strict=True)):
        out += _backend(f"disk{index}", disk)
        device = _disk_device(f"disk{index}", disk, machine.config, sata_ports)
        if bootindex:
            device["bootindex"] = bootindex
        if disk.serial:
            device["serial"] = _serial(disk)
        out += json_argument("-device", device)
    return out


def boot_order(disks: Sequence[Disk]) -> list[int]:
    """The boot index of each disk, 0 for none: as asked, or in the order of the list when nothing was asked."""
    if any(disk.boot_order for disk in disks):
        return [disk.boot_order for disk in disks]
    return list(range(1, len(disks) + 1))


def _backend(node: str, disk: Disk) -> list[str]:
    """A file node with image locking, below a format node. The format is named: a guest that writes a qcow2 header into
    its raw disk must not be able to name a backing file of the host (CVE-2008-2004)."""
    readonly = disk.readonly or disk.cdrom
    file = {
        "driver": "file",
        "node-name": f"{node}-file",
        "filename": disk.path,
        "read-only": readonly,
        "locking": "auto",
        "discard": "unmap",
        "aio": "threads",
        "cache": {"direct": False, "no-flush": False},
    }
    top = {"driver": disk.format, "node-name": node, "file": f"{node}-file", "read-only": readonly, "discard": "unmap"}
    return json_argument("-blockdev", file) + json_argument("-blockdev", top)


def _disk_device(node: str, disk: Disk, config: MachineConfig, sata_ports: Iterator[int]) -> dict[str, Any]:
    where = f"machine.disks[{disk.name}].bus"
    if is_microvm(config) and (disk.bus not in ("virtio", "scsi") or disk.cdrom):
        raise Invalid(f"A microvm has virtio disks only, {disk.name} is on {disk.bus}.", field=where)
    device: dict[str, Any] = {"drive": node, "id": f"{node}-device"}
    match disk.bus:
        case "virtio" if disk.cdrom:
            raise Invalid(f"The CD-ROM {disk.name} cannot be on virtio; sata, scsi or usb is accepted.", field=where)
        case "virtio":
            return {"driver": virtio("blk", config), **device}
        case "sata":
            port = next(sata_ports, None)
            if port is None:
                raise Invalid(f"A machine has {_SATA_PORTS} SATA ports; {disk.name} is one too many.", field=where)
            return {"driver": "ide-cd" if disk.cdrom else "ide-hd", "bus": f"ide.{port}", **device}
        case "scsi":
            return {"driver": "scsi-cd" if disk.cdrom else "scsi-hd", "bus": "scsi0.0", **device}
        case "usb" if disk.cdrom:
            raise Invalid(f"The CD-ROM {disk.name} cannot be on usb; sata or scsi is accepted.", field=where)
        case "usb":
            return {"driver": "usb-storage", "bus": "usb0.0", **device}
        case _:
            raise Invalid(f"Unknown disk bus {disk.bus!r}; virtio, sata, scsi or usb is accepted.", field=where)


def _serial(disk: Disk) -> str:
    if not _SERIAL.match(disk.serial):
        raise Invalid(
            f"The serial number of {disk.name} must be at most 36 printable ASCII characters.",
            field=f"machine.disks[{disk.name}].serial",
        )
    return disk.serial


def nic_arguments(machine: MachineSpec) -> list[str]:
    """The network cards on their taps. No boot ROM: it would cost the firmware a second and is never used."""
    out: list[str] = []
    for index, tap in enumerate(machine.taps):
        if not _INTERFACE.match(tap.name):
            raise Invalid(f"{tap.name!r} is no interface name.", field="machine.taps")
        out += ["-netdev", f"tap,id=net{index},ifname={tap.name},script=no,downscript=no,vhost=off"]
        out += json_argument("-device", _nic(index, tap, machine.config))
    return out


def _nic(index: int, tap: Tap, config: MachineConfig) -> dict[str, Any]:
    driver = virtio("net", config) if tap.model == "virtio" else _NICS.get(tap.model)
    if driver is None or (is_microvm(config) and tap.model != "virtio"):
        accepted = "virtio" if is_microvm(config) else ", ".join(_NICS)
        raise Invalid(f"Unknown network card {tap.model!r}; accepted: {accepted}.", field="machine.nic_model")
    if not _MAC.match(tap.mac):
        raise Invalid(f"{tap.mac!r} is no MAC address.", field="machine.taps")
    device = {"driver": driver, "netdev": f"net{index}", "id": f"net{index}-device", "mac": tap.mac}
    return device if is_microvm(config) else {**device, "romfile": ""}


def small_arguments(config: MachineConfig) -> list[str]:
    """Random numbers, the memory balloon, and the device through which a guest reports its panic."""
    out: list[str] = []
    if config.rng:
        out += json_argument("-object", {"qom-type": "rng-random", "id": "random0", "filename": "/dev/urandom"})
        out += json_argument("-device", {"driver": virtio("rng", config), "rng": "random0", "id": "rng0"})
    balloon = {
        "driver": virtio("balloon", config),
        "id": "balloon0",
        "deflate-on-oom": True,
        "free-page-reporting": True,
    }
    out += json_argument("-device", balloon)
    if not is_microvm(config):
        out += json_argument("-device", {"driver": "pvpanic-pci", "id": "panic0"})
    return out


def virtio(what: str, config: MachineConfig) -> str:
    """The virtio device in the form that the machine's bus takes."""
    return f"virtio-{what}-{'device' if is_microvm(config) else 'pci'}"
