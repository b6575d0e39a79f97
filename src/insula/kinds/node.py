"""Node, Lease, RuntimeClass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import NONE, UNKNOWN, age, column, get, joined
from insula.model.resource import Resource

_ROLE_PREFIX = "node-role.kubernetes.io/"
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def _roles(obj: Resource) -> str:
    found = []
    for key, value in (obj["metadata"].get("labels") or {}).items():
        if key.startswith(_ROLE_PREFIX) and key != _ROLE_PREFIX:
            found.append(key.removeprefix(_ROLE_PREFIX))
        elif key == "kubernetes.io/role" and value:
            found.append(value)
    return joined(sorted(found))


def _status(obj: Resource) -> str:
    conditions = {each.get("type"): each.get("status") for each in get(obj, "status", "conditions", default=[])}
    words = ["Ready" if conditions["Ready"] == "True" else "NotReady"] if "Ready" in conditions else ["Unknown"]
    if get(obj, "spec", "unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _address(obj: Resource, type: str) -> str:
    found = get(obj, "status", "addresses", default=[])
    return next((each.get("address", NONE) for each in found if each.get("type") == type), NONE)


def _row(obj: Resource) -> Sequence[Any]:
    def info(name: str) -> str:
        return get(obj, "status", "nodeInfo", name, default=UNKNOWN) or UNKNOWN

    return (
        _status(obj),
        _roles(obj),
        age(obj),
        get(obj, "status", "nodeInfo", "kubeletVersion", default=""),
        _address(obj, "InternalIP"),
        _address(obj, "ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    )


def _prepare(new: Resource, old: Resource | None) -> None:
    """A node announces itself with its status, as kubelets do."""
    if old is None:
        new.setdefault("status", {})
        new.setdefault("spec", {})


def _validate(new: Resource, old: Resource | None) -> list[Cause]:
    found: list[Cause] = []
    seen: set[tuple[Any, Any]] = set()
    for index, taint in enumerate(get(new, "spec", "taints", default=[])):
        where, key = f"spec.taints[{index}]", (taint.get("key"), taint.get("effect"))
        if not taint.get("key"):
            found.append(rules.required(f"{where}.key"))
        found += rules.one_of(f"{where}.effect", taint.get("effect"), _EFFECTS)
        if key in seen:
            found.append(rules.duplicate(where, f"{key[0]}:{key[1]}"))
        seen.add(key)
    if old and get(old, "spec", "providerID") and get(new, "spec", "providerID") != old["spec"]["providerID"]:
        found.append(
            rules.forbidden("spec.providerID", 'node updates may not change providerID except from "" to valid')
        )
    return found


KINDS = (
    replace(
        row("v1", "Node"),
        prepare=_prepare,
        validate=_validate,
        fields=lambda obj: {"spec.unschedulable": "true" if get(obj, "spec", "unschedulable") else "false"},
        columns=(
            column("Status"),
            column("Roles"),
            column("Age"),
            column("Version"),
            column("Internal-IP", wide=True),
            column("External-IP", wide=True),
            column("OS-Image", wide=True),
            column("Kernel-Version", wide=True),
            column("Container-Runtime", wide=True),
        ),
        row=_row,
    ),
    replace(
        row("coordination.k8s.io/v1", "Lease"),
        columns=(column("Holder"), column("Age")),
        row=lambda obj: (get(obj, "spec", "holderIdentity", default=""), age(obj)),
    ),
    replace(
        row("node.k8s.io/v1", "RuntimeClass"),
        columns=(column("Handler"), column("Age")),
        row=lambda obj: (obj.get("handler", ""), age(obj)),
        validate=lambda new, old: rules.immutable("handler", new.get("handler"), old.get("handler")) if old else [],
    ),
)
