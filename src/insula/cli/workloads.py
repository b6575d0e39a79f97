"""Everything that runs, as one list: containers, pods and machines are instances of one engine."""

from __future__ import annotations

from typing import Any

from insula import clock
from insula.cli.doors import Door

MACHINES = "/apis/kubevirt.io/v1/virtualmachineinstances"


async def rows(docker: Door, kubernetes: Door) -> list[dict[str, Any]]:
    """One row per workload: what it is, its name, its state, address, age and the door that made it."""
    found = [_container(item) for item in await docker.call("GET", "/containers/json?all=1") if _own(item)]
    pods = await kubernetes.call("GET", "/api/v1/pods")
    found += [_pod(item) for item in pods["items"] if not _mirror(item)]
    machines = await kubernetes.call("GET", MACHINES)
    found += [_machine(item) for item in machines["items"]]
    return sorted(found, key=lambda row: (row["kind"], row["name"]))


def _own(item: dict[str, Any]) -> bool:
    labels = item.get("Labels") or {}
    return "io.kubernetes.pod.uid" not in labels and "kubevirt.io/vmi" not in labels


def _mirror(pod: dict[str, Any]) -> bool:
    return "kubernetes.io/config.mirror" in (pod["metadata"].get("annotations") or {})


def _container(item: dict[str, Any]) -> dict[str, Any]:
    networks = (item.get("NetworkSettings") or {}).get("Networks") or {}
    return {
        "kind": "container",
        "name": item["Names"][0].lstrip("/"),
        "state": item["Status"],
        "address": next((network["IPAddress"] for network in networks.values() if network.get("IPAddress")), ""),
        "image": item["Image"],
        "door": "docker",
    }


def _pod(item: dict[str, Any]) -> dict[str, Any]:
    status = item.get("status") or {}
    ready = [found.get("ready", False) for found in status.get("containerStatuses") or ()]
    state = "Terminating" if item["metadata"].get("deletionTimestamp") else status.get("phase", "Pending")
    return {
        "kind": "pod",
        "name": f"{item['metadata']['namespace']}/{item['metadata']['name']}",
        "state": f"{state} {sum(ready)}/{len(item['spec']['containers'])}, {age(item)}",
        "address": status.get("podIP", ""),
        "image": ",".join(container["image"] for container in item["spec"]["containers"]),
        "door": "kubernetes",
    }


def _machine(item: dict[str, Any]) -> dict[str, Any]:
    status = item.get("status") or {}
    conditions = {found["type"]: found for found in status.get("conditions") or ()}
    accelerator = (conditions.get("Accelerated") or {}).get("reason", "")
    return {
        "kind": "machine",
        "name": f"{item['metadata']['namespace']}/{item['metadata']['name']}",
        "state": ", ".join(part for part in (status.get("phase", "Pending"), accelerator, age(item)) if part),
        "address": next((found.get("ipAddress", "") for found in status.get("interfaces") or ()), ""),
        "image": ",".join(_images(item["spec"])),
        "door": "kubevirt",
    }


def _images(spec: dict[str, Any]) -> list[str]:
    images = [volume["containerDisk"]["image"] for volume in spec.get("volumes") or () if volume.get("containerDisk")]
    boot = ((spec.get("domain") or {}).get("firmware") or {}).get("kernelBoot") or {}
    return [*images, *([boot["container"]["image"]] if boot.get("container") else [])]


def age(item: dict[str, Any]) -> str:
    """How old an object is, as kubectl writes it."""
    seconds = int((clock.now() - clock.parse_rfc3339(item["metadata"]["creationTimestamp"])).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"
