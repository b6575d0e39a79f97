"""What KubeVirt knows and Insula does not do with a machine: refused when the object is written, by name, so that nobody
believes to have what is not there. Settings that only tune (cache, I/O threads, enlightenments) are accepted and have no
effect; docs/compatibility.md lists them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from insula.errors import Cause

_SPEC = {
    "livenessProbe": "probes of machines are not carried out",
    "readinessProbe": "probes of machines are not carried out",
    "accessCredentials": "access credentials are not put into guests; use cloudInitNoCloud",
    "resourceClaims": "devices cannot be claimed for machines",
}
_DOMAIN = {
    "launchSecurity": "encrypted memory is not supported",
    "cpu.features": "single CPU features cannot be chosen; name a model",
    "cpu.dedicatedCpuPlacement": "CPUs cannot be dedicated to a machine",
    "cpu.isolateEmulatorThread": "the emulator has no CPU of its own",
    "cpu.numa": "memory nodes cannot be passed through",
    "cpu.realtime": "real-time scheduling is not supported",
    "cpu.maxSockets": "CPUs cannot be plugged in",
    "memory.hugepages": "huge pages are not supported",
    "memory.maxGuest": "memory cannot be plugged in",
    "firmware.acpi": "ACPI tables cannot be added",
    "firmware.kernelBoot.container.imagePullSecret": "pull secrets of machines are not supported",
    "clock.timezone": "the guest's clock runs in UTC",
    "devices.tpm": "a TPM is not supported",
    "devices.watchdog": "a watchdog is not supported",
    "devices.inputs": "input devices besides keyboard and mouse are not supported",
    "devices.sound": "sound is not supported",
    "devices.gpus": "devices of the host cannot be passed through",
    "devices.hostDevices": "devices of the host cannot be passed through",
    "devices.filesystems": "file systems cannot be shared with a machine",
    "devices.autoattachVSOCK": "VSOCK is not supported",
    "devices.clientPassthrough": "USB redirection is not supported",
    "devices.downwardMetrics": "metrics are not shown to guests",
}
_DISK = {
    "lun": "LUNs are not supported; use disk",
    "shareable": "a disk belongs to one machine",
    "disk.pciAddress": "PCI addresses cannot be chosen",
}
_INTERFACE = {
    "sriov": "SR-IOV is not supported; use masquerade or bridge",
    "passt": "passt is not supported; use masquerade or bridge",
    "macvtap": "macvtap is not supported; use masquerade or bridge",
    "slirp": "slirp is not supported; use masquerade or bridge",
    "binding": "binding plugins are not supported; use masquerade or bridge",
    "bootOrder": "machines do not boot from the network",
    "pciAddress": "PCI addresses cannot be chosen",
    "dhcpOptions": "DHCP options cannot be added",
    "acpiIndex": "interface indexes cannot be chosen",
}
_VOLUMES = ("containerDisk", "cloudInitNoCloud", "emptyDisk")
_NOT_SOURCES = ("name", *_VOLUMES)
_MODELS = ("virtio", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet")


def refuse_instance(spec: dict[str, Any], path: str) -> list[Cause]:
    """Every unsupported field that is set. `path` is where the spec is."""
    domain = spec.get("domain") or {}
    devices = domain.get("devices") or {}
    return [
        *_set_fields(spec, _SPEC, path),
        *_set_fields(domain, _DOMAIN, f"{path}.domain"),
        *_architecture(spec, path),
        *_secure_boot(domain, f"{path}.domain.firmware.bootloader.efi.secureBoot"),
        *_volumes(spec.get("volumes") or [], f"{path}.volumes"),
        *_each(devices.get("disks") or [], _DISK, f"{path}.domain.devices.disks"),
        *_each(devices.get("interfaces") or [], _INTERFACE, f"{path}.domain.devices.interfaces"),
        *_cards(spec.get("networks") or [], devices.get("interfaces") or [], path),
    ]


def unsupported(field: str, why: str) -> Cause:
    """A field that Insula refuses."""
    return Cause(field, "FieldValueNotSupported", f"{field} is not supported by Insula: {why}")


def _set_fields(value: dict[str, Any], refused: dict[str, str], path: str) -> Iterator[Cause]:
    for name, why in refused.items():
        found: Any = value
        for step in name.split("."):
            found = found.get(step) if isinstance(found, dict) else None
        if found is not None and found is not False and found != [] and found != "":
            yield unsupported(f"{path}.{name}", why)


def _each(elements: list[dict[str, Any]], refused: dict[str, str], path: str) -> Iterator[Cause]:
    for index, element in enumerate(elements):
        yield from _set_fields(element, refused, f"{path}[{index}]")


def _architecture(spec: dict[str, Any], path: str) -> Iterator[Cause]:
    if (wanted := spec.get("architecture")) and wanted not in ("amd64", "x86_64"):
        yield unsupported(f"{path}.architecture", f"machines are amd64, not {wanted}")


def _secure_boot(domain: dict[str, Any], field: str) -> Iterator[Cause]:
    efi = ((domain.get("firmware") or {}).get("bootloader") or {}).get("efi")
    if efi is not None and efi.get("secureBoot", True):
        yield unsupported(field, "set it to false (it defaults to true); what is booted is not verified")


def _volumes(volumes: list[dict[str, Any]], path: str) -> Iterator[Cause]:
    for index, volume in enumerate(volumes):
        for source in volume:
            if source not in _NOT_SOURCES:
                yield unsupported(f"{path}[{index}].{source}", f"use one of {', '.join(_VOLUMES)}")
        if (volume.get("containerDisk") or {}).get("imagePullSecret"):
            yield unsupported(
                f"{path}[{index}].containerDisk.imagePullSecret", "pull secrets of machines are not supported"
            )


def _cards(networks: list[dict[str, Any]], interfaces: list[dict[str, Any]], path: str) -> Iterator[Cause]:
    for index, network in enumerate(networks):
        for kind in ("multus", "resourceClaim"):
            if network.get(kind) is not None:
                yield unsupported(f"{path}.networks[{index}].{kind}", "machines join the pod network")
    for index, interface in enumerate(interfaces):
        field = f"{path}.domain.devices.interfaces[{index}]"
        if (model := interface.get("model")) and model not in _MODELS:
            yield unsupported(f"{field}.model", f"use one of {', '.join(_MODELS)}")
        if interface.get("state") in ("down", "absent"):
            yield unsupported(f"{field}.state", "cards are always plugged in and up")
