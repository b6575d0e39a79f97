"""This node's Node object: what it is, what it has, whether it is ready.

The agent of the same process as the API renews no lease: it cannot be silent while the API lives, and an idle machine writes
nothing. The object is written when something in it changes.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from insula import __version__, clock
from insula.agent.services import NODES, Services
from insula.errors import AlreadyExists, Conflict, NotFound
from insula.model.resource import Resource

MAX_PODS = 1000
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "s390x": "s390x", "ppc64le": "ppc64le", "riscv64": "riscv64"}
KUBELET = "v1.37.0+insula"


def memory_bytes() -> int:
    """All memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def _os_image() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def node_of(name: str) -> Resource:
    """The object as it is first written. Reads the machine's facts."""
    arch = ARCHITECTURES.get(platform.machine(), platform.machine())
    labels = {
        "kubernetes.io/arch": arch,
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": name,
        "beta.kubernetes.io/arch": arch,
        "beta.kubernetes.io/os": "linux",
        "node-role.kubernetes.io/control-plane": "",
        "kubevirt.io/schedulable": "true",
    }
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {}}


def status_of(name: str, address: str, handlers: Iterable[str], disk_bytes: int) -> dict[str, Any]:
    """Capacity, addresses, versions and the levels that there are."""
    amounts = {
        "cpu": str(cpu_count()),
        "memory": f"{memory_bytes() // 1024}Ki",
        "ephemeral-storage": f"{disk_bytes // 1024}Ki",
        "pods": str(MAX_PODS),
        "hugepages-2Mi": "0",
    }
    info = {
        "machineID": _text("/etc/machine-id"),
        "systemUUID": _text("/sys/class/dmi/id/product_uuid"),
        "bootID": _text("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": platform.release(),
        "osImage": _os_image(),
        "containerRuntimeVersion": f"insula://{__version__}",
        "kubeletVersion": KUBELET,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
    }
    return {
        "capacity": amounts,
        "allocatable": dict(amounts),
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
        "nodeInfo": info,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
        "runtimeHandlers": [{"name": handler} for handler in sorted(handlers)],
    }


def conditions(old: list[dict[str, Any]], now: str) -> list[dict[str, Any]]:
    """The four conditions of a healthy node; a transition time moves only when a status does."""
    wanted = (
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "insula is ready to run workloads"),
    )
    before = {found["type"]: found for found in old}
    result = []
    for type_, status, reason, message in wanted:
        same = before.get(type_, {}).get("status") == status
        since = before[type_]["lastTransitionTime"] if same else now
        times = {"lastHeartbeatTime": now, "lastTransitionTime": since}
        result.append({"type": type_, "status": status, "reason": reason, "message": message, **times})
    return result


async def register(services: Services, handlers: Iterable[str] | None = None) -> Resource:
    """Write this node's object: made if absent, its status brought up to date. `handlers` are the levels that it has; without,
    those that it was known to have."""
    disk = os.statvfs(services.folder)
    for _ in range(5):
        node = await _get_or_create(services)
        old = node.get("status") or {}
        known = [handler["name"] for handler in old.get("runtimeHandlers") or ()]
        levels = known if handlers is None else handlers
        status = status_of(services.node, services.address, levels, disk.f_blocks * disk.f_frsize)
        status["conditions"] = conditions(old.get("conditions") or [], clock.rfc3339(clock.now()))
        try:
            return await services.client.update(NODES, {**node, "status": status}, sub="status")
        except (Conflict, NotFound):
            continue
    raise Conflict(f"node {services.node} keeps changing while it is registered")


async def tell_levels(services: Services) -> None:
    """Write which levels this node has, where that is not known yet: trying them may take seconds, on a KVM that hangs for
    example, and a node is ready for containers before."""
    found = await services.engine.probe()
    node = await services.client.get(NODES, services.node)
    known = {handler["name"] for handler in (node.get("status") or {}).get("runtimeHandlers") or ()}
    if known != set(found):
        await register(services, found)


async def _get_or_create(services: Services) -> Resource:
    try:
        return await services.client.get(NODES, services.node)
    except NotFound:
        try:
            return await services.client.create(NODES, node_of(services.node))
        except AlreadyExists:
            return await services.client.get(NODES, services.node)
