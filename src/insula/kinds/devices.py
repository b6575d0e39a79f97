"""Dynamic resource allocation: claims, classes, slices. v1 is stored; v1beta1 says the same with one level less.

Differences of v1beta1: a request's exact demand lies in the request itself (v1: under `exactly`), a slice's device under
`basic` (v1: in the device itself).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from insula.kinds.builtin import row
from insula.kinds.kind import Kind
from insula.kinds.printing import age, column, get
from insula.model.resource import Ref, Resource

_GROUP = "resource.k8s.io"
_KEPT = ("name", "firstAvailable")
_SPEC = ("spec",)
_NESTED = ("spec", "spec")


def _at(obj: Resource, path: Sequence[str], change: Callable[[Resource], Resource]) -> Resource:
    """A copy with the object at a path replaced; unchanged where the path does not exist."""
    if not path:
        return change(obj)
    inner = obj.get(path[0])
    return {**obj, path[0]: _at(inner, path[1:], change)} if isinstance(inner, dict) else obj


def _requests(each: Callable[[Resource], Resource]) -> Callable[[Resource], Resource]:
    def change(spec: Resource) -> Resource:
        listed = get(spec, "devices", "requests")
        if not isinstance(listed, list):
            return spec
        return {**spec, "devices": {**spec["devices"], "requests": [each(one) for one in listed]}}

    return change


def _exact(request: Resource) -> Resource:
    inner = {name: value for name, value in request.items() if name not in _KEPT}
    kept = {name: value for name, value in request.items() if name in _KEPT}
    return {**kept, "exactly": inner} if inner else kept


def _flat(request: Resource) -> Resource:
    return {**{name: value for name, value in request.items() if name != "exactly"}, **(request.get("exactly") or {})}


def _devices(each: Callable[[Resource], Resource]) -> Callable[[Resource], Resource]:
    def change(spec: Resource) -> Resource:
        listed = spec.get("devices")
        return {**spec, "devices": [each(one) for one in listed]} if isinstance(listed, list) else spec

    return change


def _merged(device: Resource) -> Resource:
    return {"name": device.get("name"), **(device.get("basic") or {})}


def _basic(device: Resource) -> Resource:
    return {"name": device.get("name"), "basic": {word: value for word, value in device.items() if word != "name"}}


def _older(
    kind: str, path: Sequence[str], up: Callable[[Resource], Resource], down: Callable[[Resource], Resource]
) -> Kind:
    known = row(f"{_GROUP}/v1beta1", kind)

    def to_stored(obj: Resource) -> Resource:
        return {**_at(obj, path, up), "apiVersion": f"{_GROUP}/v1"}

    def from_stored(obj: Resource) -> Resource:
        return {**_at(obj, path, down), "apiVersion": f"{_GROUP}/v1beta1"}

    stored = Ref(_GROUP, "v1", known.ref.plural)
    shown = _SHOWN[kind]
    return replace(
        known, stored_as=stored, to_stored=to_stored, from_stored=from_stored, columns=shown[0], row=shown[1]
    )


def _fill(path: Sequence[str]) -> Callable[[Resource], None]:
    def default(obj: Resource) -> None:
        for request in get(obj, *path, "devices", "requests", default=[]):
            if isinstance(exact := request.get("exactly"), dict):
                exact.setdefault("allocationMode", "ExactCount")
                if exact["allocationMode"] == "ExactCount":
                    exact.setdefault("count", 1)

    return default


def _claim_state(obj: Resource) -> str:
    status = obj.get("status") or {}
    words = ["allocated"] if status.get("allocation") else []
    words += ["reserved"] if status.get("reservedFor") else []
    if obj["metadata"].get("deletionTimestamp"):
        words.insert(0, "deleted")
    return ",".join(words) or "pending"


_SHOWN: dict[str, tuple[tuple[Any, ...], Callable[[Resource], Sequence[Any]] | None]] = {
    "ResourceClaim": ((column("State"), column("Age")), lambda obj: (_claim_state(obj), age(obj))),
    "ResourceClaimTemplate": ((), None),
    "DeviceClass": ((), None),
    "ResourceSlice": (
        (column("Node"), column("Driver"), column("Pool"), column("Age")),
        lambda obj: (
            get(obj, "spec", "nodeName", default="<unset>"),
            get(obj, "spec", "driver", default=""),
            get(obj, "spec", "pool", "name", default=""),
            age(obj),
        ),
    ),
}


def _newer(version: str, kind: str, default: Callable[[Resource], None] | None = None) -> Kind:
    shown = _SHOWN[kind]
    made = replace(row(f"{_GROUP}/{version}", kind), columns=shown[0], row=shown[1])
    return replace(made, default=default) if default else made


KINDS = (
    *(_newer(version, "ResourceClaim", _fill(_SPEC)) for version in ("v1", "v1beta2")),
    *(_newer(version, "ResourceClaimTemplate", _fill(_NESTED)) for version in ("v1", "v1beta2")),
    *(_newer(version, "ResourceSlice") for version in ("v1", "v1beta2")),
    _older("ResourceClaim", _SPEC, _requests(_exact), _requests(_flat)),
    _older("ResourceClaimTemplate", _NESTED, _requests(_exact), _requests(_flat)),
    _older("ResourceSlice", _SPEC, _devices(_merged), _devices(_basic)),
)
