"""How the agent labels the instances of VirtualMachineInstances, so that it finds them again."""

from __future__ import annotations

from insula.model.resource import Resource

LABEL_MACHINE, LABEL_MACHINE_NAMESPACE, LABEL_MACHINE_UID = (
    "kubevirt.io/vmi",
    "kubevirt.io/vmi-namespace",
    "kubevirt.io/vmi-uid",
)


def labels_of(machine: Resource) -> dict[str, str]:
    """The labels of a machine's instance."""
    meta = machine["metadata"]
    return {LABEL_MACHINE: meta["name"], LABEL_MACHINE_NAMESPACE: meta["namespace"], LABEL_MACHINE_UID: meta["uid"]}


def instance_name(machine: Resource) -> str:
    """The engine's name for a machine."""
    meta = machine["metadata"]
    return f"vmi_{meta['name'][:100]}_{meta['namespace'][:63]}_{meta['uid']}"
