"""What is wrong with a machine's spec beyond its schema. Pure; sentences follow KubeVirt's admission where it has one."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Any

from insula.errors import Cause
from insula.kinds.kubevirt.volumes import SOURCES
from insula.model.quantity import is_quantity, parse_quantity

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_MAC = re.compile(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}\Z")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_BINDINGS = ("masquerade", "bridge", "sriov", "passt", "macvtap", "slirp", "binding")
_NETWORKS = ("pod", "multus", "resourceClaim")
_INLINE_BYTES = 2048
_LEAST_MEMORY = 16 << 20
_MOST_CPUS = 255


def check_instance(spec: dict[str, Any], path: str) -> list[Cause]:
    """All causes. `path` is where the spec is: `spec`, or `spec.template.spec`. The schema has passed."""
    domain = spec.get("domain") or {}
    devices = domain.get("devices") or {}
    return [
        *_names(spec, path),
        *_cpu(domain, f"{path}.domain"),
        *_memory(domain, f"{path}.domain"),
        *_firmware(domain.get("firmware") or {}, f"{path}.domain.firmware"),
        *_disks(devices.get("disks") or [], spec.get("volumes") or [], path),
        *_volumes(spec, devices, path),
        *_networks(spec.get("networks") or [], devices.get("interfaces") or [], path),
        *_boot_order(devices, f"{path}.domain.devices"),
    ]


def invalid(field: str, message: str) -> Cause:
    """A value that is wrong."""
    return Cause(field, "FieldValueInvalid", message)


def _names(spec: dict[str, Any], path: str) -> Iterator[Cause]:
    for field in ("hostname", "subdomain"):
        if (value := spec.get(field)) and not _LABEL.match(value):
            yield invalid(
                f"{path}.{field}", f"{path}.{field} {value!r} does not conform to the kubernetes DNS_LABEL rules"
            )


def _cpu(domain: dict[str, Any], path: str) -> Iterator[Cause]:
    cpu = domain.get("cpu") or {}
    count = 1
    for word in ("sockets", "cores", "threads"):
        count *= cpu.get(word) or 1
    if count > _MOST_CPUS:
        yield invalid(f"{path}.cpu", f"{path}.cpu asks for {count} CPUs, a machine can have {_MOST_CPUS}")


def _memory(domain: dict[str, Any], path: str) -> Iterator[Cause]:
    guest = (domain.get("memory") or {}).get("guest")
    resources = domain.get("resources") or {}
    request = (resources.get("requests") or {}).get("memory")
    limit = (resources.get("limits") or {}).get("memory")
    places = (("memory.guest", guest), ("resources.requests.memory", request), ("resources.limits.memory", limit))
    given = [(f"{path}.{place}", value) for place, value in places if value is not None]
    if not given:
        yield Cause(
            f"{path}.memory.guest",
            "FieldValueRequired",
            f"no memory requested, at least one of {path}.memory.guest and {path}.resources.requests.memory must be set",
        )
    wrong = [place for place, value in given if not is_quantity(value) or parse_quantity(value) <= 0]
    for place in wrong:
        yield invalid(place, f"{place} must be a quantity greater than 0")
    if given and not wrong and parse_quantity(given[0][1]) < _LEAST_MEMORY:
        yield invalid(given[0][0], f"{given[0][0]} '{given[0][1]}' must be at least 16Mi")
    if not wrong and limit is not None and request is not None and parse_quantity(request) > parse_quantity(limit):
        place = f"{path}.resources.requests.memory"
        yield invalid(place, f"{place} '{request}' is greater than {path}.resources.limits.memory '{limit}'")


def _firmware(firmware: dict[str, Any], path: str) -> Iterator[Cause]:
    loader = firmware.get("bootloader") or {}
    if "bios" in loader and "efi" in loader:
        yield invalid(
            f"{path}.bootloader.efi",
            f"{path}.bootloader has both EFI and BIOS configured, but they are mutually exclusive.",
        )
    if (uuid := firmware.get("uuid")) and not _UUID.match(uuid):
        yield invalid(f"{path}.uuid", f"{path}.uuid {uuid!r} is no UUID")
    kernel = firmware.get("kernelBoot") or {}
    container = kernel.get("container")
    if kernel.get("kernelArgs") and not container:
        yield invalid(f"{path}.kernelBoot.kernelArgs", "kernel arguments cannot be provided without an external kernel")
    if container is not None and not container.get("kernelPath"):
        yield invalid(f"{path}.kernelBoot.container.kernelPath", f"{path}.kernelBoot.container needs a kernelPath")


def _repeated(elements: Sequence[dict[str, Any]], path: str) -> Iterator[Cause]:
    seen: dict[str, int] = {}
    for index, element in enumerate(elements):
        name = element.get("name", "")
        if name in seen:
            yield invalid(
                f"{path}[{index}].name", f"{path}[{seen[name]}] and {path}[{index}] must not have the same Name."
            )
        seen.setdefault(name, index)


def _disks(disks: list[dict[str, Any]], volumes: list[dict[str, Any]], path: str) -> Iterator[Cause]:
    where = f"{path}.domain.devices.disks"
    yield from _repeated(disks, where)
    known = {volume.get("name") for volume in volumes}
    for index, disk in enumerate(disks):
        place = f"{where}[{index}]"
        if disk["name"] not in known:
            yield invalid(f"{place}.name", f"{place}.Name '{disk['name']}' not found.")
        if not _LABEL.match(disk["name"]):
            yield invalid(f"{place}.name", f"{place}.name {disk['name']!r} must be a DNS label")
        if sum(kind in disk for kind in ("disk", "lun", "cdrom")) > 1:
            yield invalid(place, f"{place} can only have a single target type defined")
        if "cdrom" in disk and disk["cdrom"].get("bus") == "virtio":
            yield invalid(f"{place}.cdrom.bus", "Bus type virtio is invalid for CD-ROM device")
        if len(serial := disk.get("serial") or "") > 36 or not serial.isprintable() or not serial.isascii():
            yield invalid(f"{place}.serial", f"{place}.serial must be at most 36 printable ASCII characters")


def _volumes(spec: dict[str, Any], devices: dict[str, Any], path: str) -> Iterator[Cause]:
    volumes, where = spec.get("volumes") or [], f"{path}.volumes"
    yield from _repeated(volumes, where)
    used = {disk.get("name") for disk in [*(devices.get("disks") or ()), *(devices.get("filesystems") or ())]}
    for index, volume in enumerate(volumes):
        place = f"{where}[{index}]"
        if sum(volume.get(source) is not None for source in SOURCES) != 1:
            yield invalid(place, f"{place} must have exactly one source type set")
        if used and volume["name"] not in used and "memoryDump" not in volume:
            yield invalid(f"{place}.name", f"{place}.name '{volume['name']}' is not used by any disk")
        for source in ("cloudInitNoCloud", "cloudInitConfigDrive"):
            yield from _cloud_init(volume.get(source), f"{place}.{source}")
        if (empty := volume.get("emptyDisk")) and (
            not is_quantity(empty.get("capacity")) or parse_quantity(empty["capacity"]) <= 0
        ):
            yield invalid(
                f"{place}.emptyDisk.capacity", f"{place}.emptyDisk.capacity must be a quantity greater than 0"
            )


def _cloud_init(seed: dict[str, Any] | None, path: str) -> Iterator[Cause]:
    if seed is None:
        return
    user = [word for word in ("userData", "userDataBase64", "secretRef") if seed.get(word)]
    network = [word for word in ("networkData", "networkDataBase64", "networkDataSecretRef") if seed.get(word)]
    if len(user) > 1:
        yield invalid(path, f"{path} must have only one userdatasource set.")
    if len(network) > 1:
        yield invalid(path, f"{path} must have only one networkdata source set.")
    if not user and not network:
        yield invalid(path, f"{path} must have at least one userdatasource or one networkdatasource set.")
    for word in ("userData", "networkData"):
        if len((seed.get(word) or "").encode()) > _INLINE_BYTES:
            kind = "userdata" if word == "userData" else "networkdata"
            yield invalid(
                f"{path}.{word}",
                f"{path} {kind} exceeds {_INLINE_BYTES} byte limit. Should use {_SECRETS[word]} for larger data.",
            )


_SECRETS = {"userData": "UserDataSecretRef", "networkData": "NetworkDataSecretRef"}


def _networks(networks: list[dict[str, Any]], interfaces: list[dict[str, Any]], path: str) -> Iterator[Cause]:
    where = f"{path}.domain.devices.interfaces"
    yield from _repeated(networks, f"{path}.networks")
    yield from _repeated(interfaces, where)
    by_name = {network["name"]: network for network in networks}
    for index, network in enumerate(networks):
        if sum(network.get(kind) is not None for kind in _NETWORKS) != 1:
            yield invalid(
                f"{path}.networks[{index}]",
                "should have a network type"
                if not network.keys() & set(_NETWORKS)
                else "should have only one network type",
            )
        if network["name"] not in {interface["name"] for interface in interfaces}:
            yield invalid(
                f"{path}.networks[{index}].name", f"{path}.networks[{index}].name '{network['name']}' not found."
            )
        yield from _cidr(network.get("pod") or {}, f"{path}.networks[{index}].pod")
    pods = [network for network in networks if network.get("pod") is not None]
    if len(pods) > 1:
        yield Cause(
            f"{path}.networks",
            "FieldValueDuplicate",
            "more than one interface is connected to a pod network in " + path,
        )
    for index, interface in enumerate(interfaces):
        yield from _interface(interface, by_name, f"{where}[{index}]")


def _interface(interface: dict[str, Any], networks: dict[str, Any], place: str) -> Iterator[Cause]:
    if interface["name"] not in networks:
        yield invalid(f"{place}.name", f"{place}.name '{interface['name']}' not found.")
    elif interface.get("masquerade") is not None and networks[interface["name"]].get("pod") is None:
        yield invalid(f"{place}.name", "Masquerade interface only implemented with pod network")
    if sum(interface.get(binding) is not None for binding in _BINDINGS) != 1:
        yield invalid(place, f"{place} must have exactly one of {', '.join(_BINDINGS[:2])} or another binding")
    if (mac := interface.get("macAddress")) and not _MAC.match(mac):
        yield invalid(f"{place}.macAddress", f"interface {place}.name has malformed MAC address ({mac}).")
    for number, port in enumerate(interface.get("ports") or ()):
        if not 0 < port["port"] < 65536:
            yield invalid(f"{place}.ports[{number}]", "Port field must be in range 0 < x < 65536.")


def _cidr(pod: dict[str, Any], place: str) -> Iterator[Cause]:
    for field in ("vmNetworkCIDR", "vmIPv6NetworkCIDR"):
        if value := pod.get(field):
            try:
                ipaddress.ip_network(value, strict=False)
            except ValueError:
                yield invalid(f"{place}.{field}", f"{place}.{field} {value!r} is no network")


def _boot_order(devices: dict[str, Any], path: str) -> Iterator[Cause]:
    seen: dict[int, str] = {}
    for kind in ("disks", "interfaces"):
        for index, device in enumerate(devices.get(kind) or ()):
            order, place = device.get("bootOrder"), f"{path}.{kind}[{index}].bootOrder"
            if order is None:
                continue
            if order in seen:
                yield invalid(place, f"Boot order for {place} already set for a different device.")
            seen[order] = place
