"""From a VirtualMachineInstance to what the engine runs. Pure, with golden tests.

The object has passed the checks of `kinds/kubevirt`; what Insula does not do is refused here again, for objects that came
another way. How fields map: memory and topology to the hardware; limits to QEMU's control group, with room for QEMU itself;
the pod network to the node's default segment, where the guest has an address of its own (no second NAT).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import uuid
from collections.abc import Mapping
from typing import Any

from insula.agent.machinespec import instance_name, labels_of
from insula.errors import Cause, Invalid, Unsupported
from insula.kinds.kubevirt.checks import check_instance
from insula.kinds.kubevirt.defaults import GRACE_S, MACHINE_TYPE
from insula.kinds.kubevirt.refusals import refuse_instance
from insula.model.instance import (
    DiskConfig,
    InstanceConfig,
    MachineConfig,
    NetworkAttachment,
    Resources,
)
from insula.model.quantity import parse_quantity
from insula.model.resource import Resource

# What QEMU needs above the guest's memory before a limit kills it: its own, the screen's, and TCG's translations.
OVERHEAD_BYTES = 448 * 1024 * 1024
_UUIDS = uuid.UUID("8f6a2b8e-0c1d-5b52-9d5e-1a9a3f6f2a77")  # the name space of machines' UUIDs
_CPU_PERIOD_US = 100_000

Secrets = Mapping[str, Mapping[str, bytes]]


def image_references(machine: Resource) -> list[tuple[str, str]]:
    """The images that it needs, each with its pull policy (empty for the default)."""
    spec = machine["spec"]
    sources = [volume["containerDisk"] for volume in spec.get("volumes") or () if volume.get("containerDisk")]
    if container := _kernel(spec).get("container"):
        sources.append(container)
    return list(dict.fromkeys((source["image"], source.get("imagePullPolicy") or "") for source in sources))


def secret_names(machine: Resource) -> list[str]:
    """The Secrets that its cloud-init data comes from."""
    found = []
    for volume in machine["spec"].get("volumes") or ():
        seed = volume.get("cloudInitNoCloud") or {}
        found += [
            seed[word]["name"] for word in ("secretRef", "networkDataSecretRef") if (seed.get(word) or {}).get("name")
        ]
    return list(dict.fromkeys(found))


def instance_of(machine: Resource, secrets: Secrets) -> InstanceConfig:
    """The instance to run. `secrets` holds the data of those of `secret_names` that exist. Raises Invalid and Unsupported
    naming the field."""
    spec, meta = machine["spec"], machine["metadata"]
    _raise(Invalid, check_instance(spec, "spec"))
    _raise(Unsupported, refuse_instance(spec, "spec"))
    hardware = machine_config(machine, secrets)
    networks = _networks(machine)
    return InstanceConfig(
        name=instance_name(machine),
        driver="vm",
        hostname=hardware.hostname,
        network_mode="default" if networks else "none",
        networks=networks,
        resources=_resources(spec["domain"], hardware.memory_bytes),
        stop_timeout_s=float(spec.get("terminationGracePeriodSeconds", GRACE_S)),
        labels=labels_of(machine),
        annotations=dict(meta.get("annotations") or {}),
        machine=hardware,
        owner="kube",
    )


def machine_config(machine: Resource, secrets: Secrets) -> MachineConfig:
    """Its hardware."""
    spec, meta = machine["spec"], machine["metadata"]
    domain = spec["domain"]
    firmware, devices, cpu = domain.get("firmware") or {}, domain["devices"], domain.get("cpu") or {}
    kernel = _kernel(spec)
    container = kernel.get("container") or {}
    sockets, cores, threads = topology(domain)
    return MachineConfig(
        memory_bytes=memory_bytes(domain),
        sockets=sockets,
        cores=cores,
        threads=threads,
        cpu_model=cpu.get("model") or "",
        machine_type=(domain.get("machine") or {}).get("type") or MACHINE_TYPE,
        firmware="efi" if (firmware.get("bootloader") or {}).get("efi") is not None else "bios",
        uuid=firmware.get("uuid") or str(uuid.uuid5(_UUIDS, f"{meta['namespace']}/{meta['name']}")),
        serial_number=firmware.get("serial") or "",
        disks=_disks(machine, secrets),
        kernel_image=container.get("image") or "",
        kernel_path=container.get("kernelPath") or "",
        initrd_path=container.get("initrdPath") or "",
        kernel_args=kernel.get("kernelArgs") or "",
        nic_model=_nic_model(devices.get("interfaces") or []),
        graphics=devices.get("autoattachGraphicsDevice") is not False,
        rng=devices.get("rng") is not None,
        start_paused=spec.get("startStrategy") == "Paused",
        hostname=spec.get("hostname") or meta["name"].split(".")[0][:63],
    )


def _raise(fault: type[Invalid] | type[Unsupported], causes: list[Cause]) -> None:
    if causes:
        raise fault(causes[0].message, field=causes[0].field, causes=causes)


def _kernel(spec: dict[str, Any]) -> dict[str, Any]:
    found = ((spec["domain"].get("firmware") or {}).get("kernelBoot")) or {}
    return dict(found)


def memory_bytes(domain: dict[str, Any]) -> int:
    """What the guest sees: memory.guest, else the request, else the limit."""
    resources = domain.get("resources") or {}
    for value in (
        (domain.get("memory") or {}).get("guest"),
        (resources.get("requests") or {}).get("memory"),
        (resources.get("limits") or {}).get("memory"),
    ):
        if value is not None:
            return int(parse_quantity(value))
    raise Invalid("no memory requested", field="spec.domain.memory.guest")


def topology(domain: dict[str, Any]) -> tuple[int, int, int]:
    """Sockets, cores, threads: as said, else as many sockets as CPUs are asked for, rounded up."""
    cpu, resources = domain.get("cpu") or {}, domain.get("resources") or {}
    if any(cpu.get(word) for word in ("sockets", "cores", "threads")):
        return int(cpu.get("sockets") or 1), int(cpu.get("cores") or 1), int(cpu.get("threads") or 1)
    asked = (resources.get("limits") or {}).get("cpu") or (resources.get("requests") or {}).get("cpu") or 1
    return max(1, math.ceil(parse_quantity(asked))), 1, 1


def _resources(domain: dict[str, Any], guest_bytes: int) -> Resources:
    resources = domain.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    cpu_limit, cpu_request, memory_limit = limits.get("cpu"), requests.get("cpu"), limits.get("memory")
    most = None if memory_limit is None else max(int(parse_quantity(memory_limit)), guest_bytes) + OVERHEAD_BYTES
    return Resources(
        cpu_quota_us=None if cpu_limit is None else int(parse_quantity(cpu_limit) * _CPU_PERIOD_US),
        cpu_period_us=None if cpu_limit is None else _CPU_PERIOD_US,
        cpu_shares=None if cpu_request is None else max(2, int(parse_quantity(cpu_request) * 1024)),
        memory_bytes=most,
    )


def _networks(machine: Resource) -> tuple[NetworkAttachment, ...]:
    """Every card that there is leads to the pod network: the checks allow one at most."""
    cards = machine["spec"]["domain"]["devices"].get("interfaces") or []
    return tuple(
        NetworkAttachment(
            network="default",
            mac=(card.get("macAddress") or "").lower().replace("-", ":") or mac_of(machine, card.get("name", "")),
        )
        for card in cards
    )


def mac_of(machine: Resource, card: str) -> str:
    """The MAC of a card that has none in the manifest: locally administered, and the same for as long as the VirtualMachine
    lives, however often it is restarted; a guest that knows its cards by their MAC finds them again."""
    owners = machine["metadata"].get("ownerReferences") or ()
    uid = next((owner["uid"] for owner in owners if owner["kind"] == "VirtualMachine"), machine["metadata"]["uid"])
    digest = hashlib.sha256(f"{uid}/{card}".encode()).digest()
    return "02:49:" + digest[:4].hex(":")


def _nic_model(interfaces: list[dict[str, Any]]) -> str:
    return next((card["model"] for card in interfaces if card.get("model")), "virtio")


def _disks(machine: Resource, secrets: Secrets) -> tuple[DiskConfig, ...]:
    volumes = {volume["name"]: volume for volume in machine["spec"].get("volumes") or ()}
    disks = machine["spec"]["domain"]["devices"].get("disks") or []
    return tuple(_disk(machine, disk, volumes[disk["name"]], secrets) for disk in disks)


def _disk(machine: Resource, disk: dict[str, Any], volume: dict[str, Any], secrets: Secrets) -> DiskConfig:
    cdrom = disk.get("cdrom") is not None
    target = disk.get("cdrom") or disk.get("disk") or {}
    plug: dict[str, Any] = {
        "name": disk["name"],
        "bus": target.get("bus") or "sata",
        "cdrom": cdrom,
        "readonly": bool(target.get("readonly", cdrom)),
        "serial": disk.get("serial") or "",
        "boot_order": disk.get("bootOrder") or 0,
    }
    if source := volume.get("containerDisk"):
        path = f"!{source['path']}" if source.get("path") else ""
        return DiskConfig(kind="image", source=source["image"] + path, **plug)
    if empty := volume.get("emptyDisk"):
        return DiskConfig(kind="empty", size_bytes=int(parse_quantity(empty["capacity"])), **plug)
    return DiskConfig(kind="cloudinit", files=seed_files(machine, volume, secrets), **plug)


def seed_files(machine: Resource, volume: dict[str, Any], secrets: Secrets) -> dict[str, str]:
    """The files of a NoCloud seed (cloud-init's documentation of that data source)."""
    meta, seed, name = machine["metadata"], volume["cloudInitNoCloud"], volume["name"]
    hostname = machine["spec"].get("hostname") or meta["name"].split(".")[0][:63]
    files = {
        "meta-data": f"instance-id: {meta['name']}.{meta['namespace']}.{meta['uid']}\nlocal-hostname: {hostname}\n",
        "user-data": _data(seed, "userData", "userDataBase64", "secretRef", name, secrets),
    }
    if network := _data(seed, "networkData", "networkDataBase64", "networkDataSecretRef", name, secrets):
        files["network-config"] = network
    return files


def _data(seed: dict[str, Any], plain: str, encoded: str, reference: str, volume: str, secrets: Secrets) -> str:
    if seed.get(plain):
        return str(seed[plain])
    field = f"spec.volumes[{volume}].cloudInitNoCloud"
    try:
        if seed.get(encoded):
            return base64.b64decode(seed[encoded], validate=True).decode()
        name = (seed.get(reference) or {}).get("name")
        return _from_secret(name, plain, secrets, f"{field}.{reference}") if name else ""
    except (binascii.Error, UnicodeDecodeError):
        raise Invalid(f"{field}.{encoded} is not base64 of a text.", field=f"{field}.{encoded}") from None


def _from_secret(name: str, word: str, secrets: Secrets, field: str) -> str:
    """KubeVirt reads the keys `userdata` and `userData`, `networkdata` and `networkData`."""
    if name not in secrets:
        raise Invalid(f"{field} names the Secret {name}, which does not exist.", field=field)
    for key in (word.lower(), word):
        if key in secrets[name]:
            return secrets[name][key].decode()
    raise Invalid(f"The Secret {name} of {field} has neither of the keys {word.lower()} and {word}.", field=field)
