"""VirtualMachineInstance: one run of a machine, as a Pod is one run of containers. Its spec does not change once it is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from insula.errors import Cause
from insula.kinds.kind import Kind
from insula.kinds.kubevirt.checks import check_instance
from insula.kinds.kubevirt.defaults import default_instance
from insula.kinds.kubevirt.instance import SPEC, STATUS
from insula.kinds.kubevirt.refusals import refuse_instance
from insula.kinds.kubevirt.shape import root
from insula.kinds.printing import age, column, get
from insula.model.resource import Ref, Resource

FINALIZER = "foregroundDeleteVirtualMachine"  # KubeVirt's name: the node takes it off when the machine is really gone


def condition(obj: Resource, kind: str) -> str:
    """The status of one condition, empty when there is none."""
    found = [each for each in get(obj, "status", "conditions", default=[]) if each.get("type") == kind]
    return str(found[0].get("status", "")) if found else ""


def _default(obj: Resource) -> None:
    if isinstance(obj.get("spec"), dict):
        default_instance(obj["spec"])


def _prepare(new: Resource, old: Resource | None) -> None:
    """On creation: nothing is known of it yet, and the node will have to let go of it."""
    if old is not None:
        return
    new["status"] = {"phase": "Pending"}
    finalizers = new["metadata"].setdefault("finalizers", [])
    if FINALIZER not in finalizers:
        finalizers.append(FINALIZER)


def _validate(new: Resource, old: Resource | None) -> list[Cause]:
    if old is not None:
        if new["spec"] != old["spec"]:
            return [
                Cause(
                    "spec", "FieldValueNotSupported", "update of VMI object is restricted: its spec cannot be changed"
                )
            ]
        return []
    return [*check_instance(new["spec"], "spec"), *refuse_instance(new["spec"], "spec")]


def _row(obj: Resource) -> Sequence[Any]:
    interfaces = get(obj, "status", "interfaces", default=[])
    return [
        age(obj),
        get(obj, "status", "phase", default=""),
        interfaces[0].get("ipAddress", "") if interfaces else "",
        get(obj, "status", "nodeName", default=""),
        condition(obj, "Ready"),
        condition(obj, "LiveMigratable"),
        condition(obj, "Paused"),
    ]


def _fields(obj: Resource) -> dict[str, str]:
    return {
        "status.nodeName": str(get(obj, "status", "nodeName", default="")),
        "status.phase": str(get(obj, "status", "phase", default="")),
    }


KIND = Kind(
    ref=Ref("kubevirt.io", "v1", "virtualmachineinstances"),
    kind="VirtualMachineInstance",
    singular="virtualmachineinstance",
    namespaced=True,
    short_names=("vmi", "vmis"),
    categories=("all",),
    schema=root("VirtualMachineInstance is one run of a virtual machine.", SPEC, STATUS),
    subresources=("status",),
    default=_default,
    prepare=_prepare,
    validate=_validate,
    fields=_fields,
    columns=(
        column("Age", description="How old it is."),
        column("Phase", description="Where it is in its life."),
        column("IP", description="Address of its first network card."),
        column("NodeName", description="The node that it runs on."),
        column("Ready", description="Whether its guest runs and is ready."),
        column("Live-Migratable", wide=True, description="Whether it can move to another node while it runs."),
        column("Paused", wide=True, description="Whether its guest is paused."),
    ),
    row=_row,
)
