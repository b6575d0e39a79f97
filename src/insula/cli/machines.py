"""Virtual machines as the command line makes and shows them: KubeVirt's objects, pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from insula import clock
from insula.errors import Invalid
from insula.model.quantity import parse_quantity

GROUP = "/apis/kubevirt.io/v1"
SUBRESOURCES = "/apis/subresources.kubevirt.io/v1"
PROTOCOL = "plain.kubevirt.io"  # raw bytes in binary frames, both ways
INLINE_BYTES = 2048  # KubeVirt refuses longer user data in the manifest itself
_KERNEL, _INITRD, _ARGUMENTS = "insula.machine.kernel", "insula.machine.initrd", "insula.machine.kernel-args"

FINAL = ("Succeeded", "Failed")
_HOPELESS = ("ErrImagePull", "ErrImageNeverPull", "FailedCreate")

Resource = dict[str, Any]


class Boot(Struct, frozen=True, kw_only=True):
    """What it starts from: a kernel inside of the image when `kernel` is set, else the disk that the image holds."""

    kernel: str = ""
    initrd: str = ""
    arguments: str = ""


class Wish(Struct, frozen=True, kw_only=True):
    """What `insula vm create` was asked for."""

    name: str
    image: str
    namespace: str = "default"
    memory: str = "512Mi"
    cpus: int = 1
    boot: Boot = Boot()
    user_data: str = ""
    start: bool = True


def boot_of(labels: Mapping[str, str]) -> Boot:
    """How an image wants to be started, from its labels: those that `insula/linux` carries say where its kernel is."""
    return Boot(kernel=labels.get(_KERNEL, ""), initrd=labels.get(_INITRD, ""), arguments=labels.get(_ARGUMENTS, ""))


def machine(wish: Wish) -> Resource:
    """The VirtualMachine. Raises Invalid for a memory size that is none."""
    try:
        parse_quantity(wish.memory)
    except Invalid as fault:
        raise Invalid(f"--memory {wish.memory} is not a size", hint="for example 512Mi or 2Gi") from fault
    disks, volumes = _disks(wish)
    domain: Resource = {
        "cpu": {"cores": wish.cpus},
        "memory": {"guest": wish.memory},
        "devices": {"disks": disks, "interfaces": [{"name": "default", "masquerade": {}}], "rng": {}},
    }
    if wish.boot.kernel:
        domain["firmware"] = {"kernelBoot": _kernel(wish)}
    spec: Resource = {"domain": domain, "networks": [{"name": "default", "pod": {}}], "volumes": volumes}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": wish.name, "namespace": wish.namespace},
        "spec": {
            "runStrategy": "Always" if wish.start else "Halted",
            "template": {"metadata": {"labels": {"kubevirt.io/domain": wish.name}}, "spec": spec},
        },
    }


def _kernel(wish: Wish) -> Resource:
    container = {"image": wish.image, "imagePullPolicy": "IfNotPresent", "kernelPath": wish.boot.kernel}
    if wish.boot.initrd:
        container["initrdPath"] = wish.boot.initrd
    arguments = {"kernelArgs": wish.boot.arguments} if wish.boot.arguments else {}
    return {"container": container, **arguments}


def _disks(wish: Wish) -> tuple[list[Resource], list[Resource]]:
    disks, volumes = [], []
    if not wish.boot.kernel:
        disks.append({"name": "root", "disk": {"bus": "virtio"}})
        source = {"image": wish.image, "imagePullPolicy": "IfNotPresent"}
        volumes.append({"name": "root", "containerDisk": source})
    if wish.user_data:
        disks.append({"name": "cloud-init", "disk": {"bus": "virtio"}})
        seed: Resource = (
            {"secretRef": {"name": secret_name(wish.name)}} if has_secret(wish) else {"userData": wish.user_data}
        )
        volumes.append({"name": "cloud-init", "cloudInitNoCloud": seed})
    return disks, volumes


def has_secret(wish: Wish) -> bool:
    """Whether the user data is too long for the manifest and lives in a Secret."""
    return len(wish.user_data.encode()) > INLINE_BYTES


def secret_name(name: str) -> str:
    """The Secret beside a machine."""
    return f"{name}-cloud-init"


def secret(wish: Wish) -> Resource:
    """The Secret with the user data; it is deleted with its machine once it names it as its owner."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret_name(wish.name), "namespace": wish.namespace},
        "stringData": {"userdata": wish.user_data},
    }


def owned_by(made: Resource) -> Resource:
    """A merge patch that makes a VirtualMachine the owner of what is patched."""
    owner = {
        "apiVersion": made["apiVersion"],
        "kind": made["kind"],
        "name": made["metadata"]["name"],
        "uid": made["metadata"]["uid"],
    }
    return {"metadata": {"ownerReferences": [owner]}}


def manifests(wish: Wish) -> list[Resource]:
    """All that is created, in order."""
    return [*([secret(wish)] if has_secret(wish) else []), machine(wish)]


def row(made: Resource, instance: Resource | None) -> dict[str, Any]:
    """One line of `insula vm list`. `instance` is its running VirtualMachineInstance, if any."""
    status, domain = made.get("status") or {}, made["spec"]["template"]["spec"]["domain"]
    running = (instance or {}).get("status") or {}
    cpu = domain.get("cpu") or {}
    return {
        "namespace": made["metadata"]["namespace"],
        "name": made["metadata"]["name"],
        "status": status.get("printableStatus") or "Stopped",
        "ready": bool(status.get("ready")),
        "address": next((card.get("ipAddress", "") for card in running.get("interfaces") or ()), ""),
        "cpus": int(cpu.get("sockets") or 1) * int(cpu.get("cores") or 1) * int(cpu.get("threads") or 1),
        "memory": (domain.get("memory") or {}).get("guest")
        or ((domain.get("resources") or {}).get("requests") or {}).get("memory", ""),
        "accelerator": condition(running, "Accelerated").get("reason", ""),
        "node": running.get("nodeName", ""),
        "image": ",".join(images(made["spec"]["template"]["spec"])),
        "created": made["metadata"]["creationTimestamp"],
        "age": age(made),
    }


def standing_for(instance: Resource) -> Resource:
    """A VirtualMachine that says of itself what an instance without one says, for `row`."""
    status = instance.get("status") or {}
    ready = condition(status, "Ready").get("status") == "True"
    return {
        "metadata": instance["metadata"],
        "spec": {"template": {"spec": instance["spec"]}},
        "status": {"printableStatus": status.get("phase") or "Pending", "ready": ready},
    }


def rows(made: Sequence[Resource], running: Sequence[Resource]) -> list[dict[str, Any]]:
    """All machines: VirtualMachines, and instances that somebody made without one."""
    names = {_key(item) for item in made}
    by_name = {_key(item): item for item in running}
    alone = [row(standing_for(item), item) for item in running if _key(item) not in names]
    found = [*(row(item, by_name.get(_key(item))) for item in made), *alone]
    return sorted(found, key=lambda each: (each["namespace"], each["name"]))


def _key(item: Resource) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def condition(status: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """One condition of a status, empty when it is not there."""
    return next((found for found in status.get("conditions") or () if found["type"] == kind), {})


def images(spec: Mapping[str, Any]) -> list[str]:
    """The images that a machine's disks and kernel come from."""
    found = [volume["containerDisk"]["image"] for volume in spec.get("volumes") or () if volume.get("containerDisk")]
    boot = ((spec.get("domain") or {}).get("firmware") or {}).get("kernelBoot") or {}
    return [*found, *([boot["container"]["image"]] if boot.get("container") else [])]


def age(made: Mapping[str, Any]) -> str:
    """How old an object is, in one unit."""
    seconds = int((clock.now() - clock.parse_rfc3339(made["metadata"]["creationTimestamp"])).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def strategy_of(made: Resource) -> str:
    """The run strategy, `running` being its older form."""
    return str(made["spec"].get("runStrategy") or ("Always" if made["spec"].get("running") else "Halted"))


def trouble(made: Resource | None, instance: Resource | None) -> str:
    """Why this machine will not run without another command; empty while there is hope."""
    if made is None and instance is None:
        return "does not exist"
    status = (instance or {}).get("status") or {}
    if made is None:
        return f"has ended: {status['phase']}" if status.get("phase") in FINAL else ""
    if instance is None:
        asked = (made.get("status") or {}).get("stateChangeRequests")
        return "is stopped" if strategy_of(made) in ("Halted", "Manual") and not asked else ""
    ready = condition(status, "Ready")
    if ready.get("reason") in _HOPELESS:
        return f"cannot start: {ready.get('message') or ready['reason']}"
    placed = condition(status, "Unschedulable") or condition(status, "PodScheduled")
    if placed.get("reason") == "Unschedulable":
        return f"cannot start: {placed.get('message') or 'no node has room for it'}"
    return ""


def is_running(instance: Resource | None) -> bool:
    """Whether its guest runs (or is paused)."""
    return ((instance or {}).get("status") or {}).get("phase") == "Running"


def event_row(event: Mapping[str, Any]) -> dict[str, Any]:
    """One line about what happened."""
    when = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    return {
        "age": age({"metadata": {"creationTimestamp": when}}),
        "type": event.get("type", ""),
        "reason": event.get("reason", ""),
        "message": event.get("message", ""),
    }
