"""Pod, and PodTemplate which holds one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import podrules, podspec, podstatus
from insula.kinds.builtin import row
from insula.kinds.printing import NONE, age, column, containers, get, labels
from insula.model.resource import Resource


def prepare(new: Resource, old: Resource | None) -> None:
    """A new pod is pending; a changed one keeps its QoS class."""
    if old is None:
        new["status"] = {"phase": "Pending", "qosClass": podspec.qos_class(new.get("spec") or {})}
        return
    if new.get("spec") != old.get("spec") and isinstance(new.get("status"), dict):
        new["status"].setdefault("qosClass", podspec.qos_class(new["spec"]))


def validate(new: Resource, old: Resource | None) -> list[Cause]:
    """A new pod's spec, or what a change touches."""
    if old is None:
        return podrules.spec(new["spec"], "spec")
    if new["spec"] == old["spec"]:
        return []
    return podrules.update(new, old) or podrules.spec(new["spec"], "spec")


def fields(pod: Resource) -> dict[str, str]:
    """Selectable fields."""
    return {
        "spec.nodeName": get(pod, "spec", "nodeName", default=""),
        "spec.restartPolicy": get(pod, "spec", "restartPolicy", default=""),
        "spec.schedulerName": get(pod, "spec", "schedulerName", default=""),
        "spec.serviceAccountName": get(pod, "spec", "serviceAccountName", default=""),
        "spec.hostNetwork": "true" if get(pod, "spec", "hostNetwork") else "false",
        "status.phase": get(pod, "status", "phase", default=""),
        "status.podIP": get(pod, "status", "podIP", default=""),
        "status.nominatedNodeName": get(pod, "status", "nominatedNodeName", default=""),
    }


def _row(pod: Resource) -> Sequence[Any]:
    said = podstatus.summary(pod)
    addresses = [each.get("ip", "") for each in get(pod, "status", "podIPs", default=[])]
    conditions = {each.get("type"): each.get("status") for each in get(pod, "status", "conditions", default=[])}
    gates = [each.get("conditionType") for each in get(pod, "spec", "readinessGates", default=[])]
    passed = sum(conditions.get(gate) == "True" for gate in gates)
    return (
        said.ready,
        said.status,
        said.restarts,
        age(pod),
        addresses[0] if addresses else get(pod, "status", "podIP", default=NONE),
        get(pod, "spec", "nodeName", default=NONE),
        get(pod, "status", "nominatedNodeName", default=NONE),
        f"{passed}/{len(gates)}" if gates else NONE,
    )


def _template_default(obj: Resource) -> None:
    if isinstance(obj.get("template"), dict):
        podspec.template(obj["template"])


def _template_row(obj: Resource) -> Sequence[Any]:
    names, images = containers(get(obj, "template", "spec"))
    return names, images, labels(get(obj, "template", "metadata", "labels"))


KINDS = (
    replace(
        row("v1", "Pod"),
        default=podspec.pod,
        prepare=prepare,
        validate=validate,
        fields=fields,
        columns=(
            column("Ready", description="The aggregate readiness state of this pod for accepting traffic."),
            column("Status", description="The aggregate status of the containers in this pod."),
            column("Restarts", description="The number of times the containers in this pod have been restarted."),
            column("Age"),
            column("IP", wide=True),
            column("Node", wide=True),
            column("Nominated Node", wide=True),
            column("Readiness Gates", wide=True),
        ),
        row=_row,
    ),
    replace(
        row("v1", "PodTemplate"),
        default=_template_default,
        columns=(column("Containers"), column("Images"), column("Pod Labels")),
        row=_template_row,
    ),
)
