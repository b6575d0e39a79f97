"""PersistentVolume, PersistentVolumeClaim, StorageClass and what else belongs to storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import UNSET, age, column, get, joined, truth
from insula.model.quantity import parse_quantity
from insula.model.resource import Resource

_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
_VOLUME_FACTS = (
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
)
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def default_claim(obj: dict[str, Any]) -> None:
    """A claim, also inside a StatefulSet."""
    if isinstance(spec := obj.get("spec"), dict):
        spec.setdefault("volumeMode", "Filesystem")


def _default_volume(obj: Resource) -> None:
    if isinstance(spec := obj.get("spec"), dict):
        spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
        spec.setdefault("volumeMode", "Filesystem")
        if isinstance(path := spec.get("hostPath"), dict):
            path.setdefault("type", "")


def _pending(new: Resource, old: Resource | None) -> None:
    if old is None:
        new["status"] = {"phase": "Pending"}


def _access_modes(spec: Mapping[str, Any]) -> list[Cause]:
    modes = spec.get("accessModes")
    if not modes:
        return [rules.required("spec.accessModes", "at least 1 access mode is required")]
    return [rules.unsupported("spec.accessModes", mode, _MODES) for mode in modes if mode not in _MODES]


def _validate_claim(new: Resource, old: Resource | None) -> list[Cause]:
    spec = new.get("spec") or {}
    found = _access_modes(spec)
    size = get(spec, "resources", "requests", "storage")
    if size is None:
        found.append(rules.required("spec.resources[storage]"))
    elif parse_quantity(size) <= 0:
        found.append(rules.invalid("spec.resources[storage]", size, "must be greater than zero"))
    if old and not found:
        found += _claim_change(spec, old["spec"])
    return found


_CLAIM_SAYS = (
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
)


def _claim_change(spec: Mapping[str, Any], old: Mapping[str, Any]) -> list[Cause]:
    beside = ("resources", "volumeName", "volumeAttributesClassName")
    if {k: v for k, v in spec.items() if k not in beside} != {k: v for k, v in old.items() if k not in beside}:
        return [rules.forbidden("spec", _CLAIM_SAYS)]
    if old.get("volumeName") and spec.get("volumeName") != old["volumeName"]:
        return [rules.forbidden("spec", _CLAIM_SAYS)]
    size, before = get(spec, "resources", "requests", "storage"), get(old, "resources", "requests", "storage")
    if size is not None and before is not None and parse_quantity(size) < parse_quantity(before):
        return [rules.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity")]
    return []


def _validate_volume(new: Resource, old: Resource | None) -> list[Cause]:
    spec = new.get("spec") or {}
    found = _access_modes(spec)
    if get(spec, "capacity", "storage") is None:
        found.append(rules.required("spec.capacity"))
    policies = ("Delete", "Recycle", "Retain")
    found += rules.one_of("spec.persistentVolumeReclaimPolicy", spec.get("persistentVolumeReclaimPolicy"), policies)
    sources = [name for name, value in spec.items() if name not in _VOLUME_FACTS and value is not None]
    if not sources:
        found.append(rules.required("spec", "must specify a volume type"))
    found += [rules.forbidden(f"spec.{name}", "may not specify more than 1 volume type") for name in sources[1:]]
    if old:
        for name in sources:
            if spec.get(name) != old["spec"].get(name):
                found.append(
                    rules.forbidden(
                        "spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation"
                    )
                )
    return found


def _modes(modes: Sequence[str]) -> str:
    return joined((_MODES.get(each, each) for each in modes), "")


def _volume_row(obj: Resource) -> Sequence[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    claim = spec.get("claimRef")
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    return (
        get(spec, "capacity", "storage", default=""),
        _modes(spec.get("accessModes") or ()),
        spec.get("persistentVolumeReclaimPolicy", ""),
        phase,
        f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else "",
        spec.get("storageClassName", ""),
        spec.get("volumeAttributesClassName") or UNSET,
        status.get("reason", ""),
        age(obj),
        spec.get("volumeMode") or UNSET,
    )


def _claim_row(obj: Resource) -> Sequence[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    bound = bool(spec.get("volumeName"))
    return (
        "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", ""),
        spec.get("volumeName", ""),
        get(status, "capacity", "storage", default="") if bound else "",
        _modes(status.get("accessModes") or ()) if bound else "",
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or UNSET,
        age(obj),
        spec.get("volumeMode") or UNSET,
    )


# --- StorageClass and CSI -----------------------------------------------------------------------------------------------


def _default_class(obj: Resource) -> None:
    obj.setdefault("reclaimPolicy", "Delete")
    obj.setdefault("volumeBindingMode", "Immediate")


def _validate_class(new: Resource, old: Resource | None) -> list[Cause]:
    found = [] if new.get("provisioner") else [rules.required("provisioner")]
    found += rules.one_of("volumeBindingMode", new.get("volumeBindingMode"), ("Immediate", "WaitForFirstConsumer"))
    if old:
        for name in ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"):
            if new.get(name) != old.get(name):
                found.append(rules.forbidden(name, f"updates to {name} are forbidden."))
    return found


def _class_row(obj: Resource) -> Sequence[Any]:
    main = (obj["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true"
    return (
        obj["metadata"].get("name", "") + (" (default)" if main else ""),
        obj.get("provisioner", ""),
        obj.get("reclaimPolicy", ""),
        obj.get("volumeBindingMode", ""),
        truth(obj.get("allowVolumeExpansion")),
        age(obj),
    )


def _default_driver(obj: Resource) -> None:
    if isinstance(spec := obj.get("spec"), dict):
        for name, value in (
            ("attachRequired", True),
            ("podInfoOnMount", False),
            ("storageCapacity", False),
            ("fsGroupPolicy", "ReadWriteOnceWithFSType"),
            ("volumeLifecycleModes", ["Persistent"]),
            ("requiresRepublish", False),
            ("seLinuxMount", False),
        ):
            spec.setdefault(name, value)


def _driver_row(obj: Resource) -> Sequence[Any]:
    spec = obj.get("spec") or {}
    tokens = [each.get("audience", "") for each in spec.get("tokenRequests") or ()]
    return (
        truth(spec.get("attachRequired")),
        truth(spec.get("podInfoOnMount")),
        truth(spec.get("storageCapacity")),
        joined(tokens, UNSET),
        truth(spec.get("requiresRepublish")),
        joined(spec.get("volumeLifecycleModes") or ()),
        age(obj),
    )


def _attachment_row(obj: Resource) -> Sequence[Any]:
    spec = obj.get("spec") or {}
    return (
        spec.get("attacher", ""),
        get(spec, "source", "persistentVolumeName", default=""),
        spec.get("nodeName", ""),
        truth(get(obj, "status", "attached")),
        age(obj),
    )


def _capacity_row(obj: Resource) -> Sequence[Any]:
    return obj.get("storageClassName", ""), obj.get("capacity") or UNSET, age(obj)


KINDS = (
    replace(
        row("v1", "PersistentVolume"),
        default=_default_volume,
        prepare=_pending,
        validate=_validate_volume,
        columns=(
            column("Capacity"),
            column("Access Modes"),
            column("Reclaim Policy"),
            column("Status"),
            column("Claim"),
            column("StorageClass"),
            column("VolumeAttributesClass"),
            column("Reason"),
            column("Age"),
            column("VolumeMode", wide=True),
        ),
        row=_volume_row,
    ),
    replace(
        row("v1", "PersistentVolumeClaim"),
        default=default_claim,
        prepare=_pending,
        validate=_validate_claim,
        columns=(
            column("Status"),
            column("Volume"),
            column("Capacity"),
            column("Access Modes"),
            column("StorageClass"),
            column("VolumeAttributesClass"),
            column("Age"),
            column("VolumeMode", wide=True),
        ),
        row=_claim_row,
    ),
    replace(
        row("storage.k8s.io/v1", "StorageClass"),
        default=_default_class,
        validate=_validate_class,
        columns=(
            replace(column("Name"), format="name"),
            column("Provisioner"),
            column("ReclaimPolicy"),
            column("VolumeBindingMode"),
            column("AllowVolumeExpansion"),
            column("Age"),
        ),
        row=_class_row,
    ),
    replace(
        row("storage.k8s.io/v1", "CSIDriver"),
        default=_default_driver,
        columns=(
            column("AttachRequired", "boolean"),
            column("PodInfoOnMount", "boolean"),
            column("StorageCapacity", "boolean"),
            column("TokenRequests"),
            column("RequiresRepublish", "boolean"),
            column("Modes"),
            column("Age"),
        ),
        row=_driver_row,
    ),
    replace(
        row("storage.k8s.io/v1", "CSINode"),
        columns=(column("Drivers", "integer"), column("Age")),
        row=lambda obj: (len(get(obj, "spec", "drivers", default=[])), age(obj)),
    ),
    replace(
        row("storage.k8s.io/v1", "CSIStorageCapacity"),
        columns=(column("StorageClassName"), column("Capacity"), column("Age")),
        row=_capacity_row,
    ),
    replace(
        row("storage.k8s.io/v1", "VolumeAttachment"),
        columns=(column("Attacher"), column("PV"), column("Node"), column("Attached", "boolean"), column("Age")),
        row=_attachment_row,
    ),
    replace(
        row("storage.k8s.io/v1", "VolumeAttributesClass"),
        columns=(column("DriverName"), column("Age")),
        row=lambda obj: (obj.get("driverName", ""), age(obj)),
    ),
)
