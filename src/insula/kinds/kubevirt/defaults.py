"""What is filled into a machine's spec, as KubeVirt's admission does it for amd64. Changes its argument in place."""

from __future__ import annotations

from typing import Any

GRACE_S = 30
MACHINE_TYPE = "q35"
_NO_BUS_GIVEN = "sata"  # KubeVirt's choice: every guest has a driver for it


def default_instance(spec: dict[str, Any]) -> None:
    """Everything that a VirtualMachineInstance gets when it is made."""
    domain = spec.get("domain")
    if not isinstance(domain, dict) or not isinstance(domain.setdefault("devices", {}), dict):
        return  # the schema refuses it
    spec.setdefault("terminationGracePeriodSeconds", GRACE_S)
    default_board(spec)
    _default_cpu(domain)
    _default_memory(domain)
    _default_networks(spec, domain["devices"])
    _default_disks(spec, domain["devices"])


def default_board(spec: dict[str, Any]) -> None:
    """The board's type; for a VirtualMachine's template this is all."""
    domain = spec.get("domain")
    if isinstance(domain, dict):
        machine = domain.setdefault("machine", {})
        if isinstance(machine, dict) and not machine.get("type"):
            machine["type"] = MACHINE_TYPE


def _default_cpu(domain: dict[str, Any]) -> None:
    """A named topology is completed; without one the CPU request decides, later."""
    cpu = domain.get("cpu")
    if isinstance(cpu, dict) and any(cpu.get(word) for word in ("sockets", "cores", "threads")):
        for word in ("sockets", "cores", "threads"):
            cpu.setdefault(word, 1)


def _default_memory(domain: dict[str, Any]) -> None:
    """The request follows the guest's memory; the limit, where there is only that, the request."""
    guest = _mapping(domain.get("memory")).get("guest")
    resources = domain.setdefault("resources", {})
    limit = _mapping(_mapping(resources).get("limits")).get("memory")
    if isinstance(resources, dict) and (guest is not None or limit is not None):
        requests = resources.setdefault("requests", {})
        if isinstance(requests, dict):
            requests.setdefault("memory", guest if guest is not None else limit)


def _mapping(value: Any) -> dict[str, Any]:
    """Defaults come before the schema is checked: anything may be anywhere."""
    return value if isinstance(value, dict) else {}


def _elements(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _default_networks(spec: dict[str, Any], devices: dict[str, Any]) -> None:
    if devices.get("autoattachPodInterface") is False or spec.get("networks") or devices.get("interfaces"):
        return
    spec["networks"] = [{"name": "default", "pod": {}}]
    devices["interfaces"] = [{"name": "default", "masquerade": {}}]


def _default_disks(spec: dict[str, Any], devices: dict[str, Any]) -> None:
    """A volume that no disk names gets one; a disk of no kind is a disk; a bus not named is SATA."""
    disks = devices.setdefault("disks", [])
    if not isinstance(disks, list):
        return
    named = [each.get("name") for each in [*_elements(disks), *_elements(devices.get("filesystems"))]]
    for volume in _elements(spec.get("volumes")):
        if volume.get("name") not in named and "memoryDump" not in volume:
            disks.append({"name": volume.get("name")})
    for disk in _elements(disks):
        if not any(kind in disk for kind in ("disk", "lun", "cdrom")):
            disk["disk"] = {}
        for kind in ("disk", "lun", "cdrom"):
            if isinstance(target := disk.get(kind), dict) and not target.get("bus"):
                target["bus"] = _NO_BUS_GIVEN
