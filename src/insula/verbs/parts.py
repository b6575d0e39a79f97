"""Which part of an object a subresource is, and how a write to it meets the rest: one writer per field.

`view` is what a client reads at the subresource, `merge` takes back what it wrote. The main resource is the subresource "":
it owns everything but the status fields. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from insula.errors import Invalid, NotFound
from insula.kinds.kind import Kind
from insula.model.resource import Resource
from insula.verbs import faults

_DEEDS = ("binding",)  # written by a POST only
Merge = Callable[[Kind, Resource, Resource], Resource]


def check(kind: Kind, sub: str, *, reading: bool = False) -> None:
    """Raise NotFound for a subresource that the kind does not have or that holds no part of it."""
    if sub and (sub not in kind.subresources or sub not in _MERGES or (reading and sub in _DEEDS)):
        raise NotFound("the server could not find the requested resource", kind=f"{faults.resource_of(kind)}/{sub}")


def view(kind: Kind, obj: Resource, sub: str) -> Resource:
    """What a GET of the subresource shows."""
    return scale_of(kind, obj) if sub == "scale" else obj


def merge(kind: Kind, sub: str, new: Resource, old: Resource) -> Resource:
    """The whole object after a write of `new` to the subresource."""
    return _MERGES[sub](kind, new, old)


def _main(kind: Kind, new: Resource, old: Resource) -> Resource:
    if "status" not in kind.subresources:
        return new
    for name in kind.status_fields:
        if name in old:
            new[name] = old[name]
        else:
            new.pop(name, None)
    return new


def _status(kind: Kind, new: Resource, old: Resource) -> Resource:
    merged = dict(old)
    for name in kind.status_fields:
        if new.get(name) is not None:
            merged[name] = new[name]
        else:
            merged.pop(name, None)
    if isinstance(kind.schema, str):
        merged["metadata"] = _with(old["metadata"], new["metadata"], ("labels", "annotations", "finalizers"))
    return merged


def _with(old: Resource, new: Resource, names: tuple[str, ...]) -> Resource:
    merged = dict(old)
    for name in names:
        if name in new:
            merged[name] = new[name]
        else:
            merged.pop(name, None)
    return merged


def _assigned(_kind: Kind, new: Resource, old: Resource) -> Resource:
    """A pod's node, with the condition and the annotations that come with it."""
    spec = _with(old["spec"], new["spec"], ("nodeName",))
    meta = _with(old["metadata"], new["metadata"], ("annotations",))
    return {**old, "metadata": meta, "spec": spec, "status": new["status"]}


def _conditions(_kind: Kind, new: Resource, old: Resource) -> Resource:
    """Approval of a certificate request: only its conditions."""
    status = _with(old.get("status") or {}, new.get("status") or {}, ("conditions",))
    return {**old, "status": status}


def _finalizers(_kind: Kind, new: Resource, old: Resource) -> Resource:
    """A namespace's own finalizers."""
    return {**old, "spec": _with(old.get("spec") or {}, new.get("spec") or {}, ("finalizers",))}


def _ephemeral(_kind: Kind, new: Resource, old: Resource) -> Resource:
    """A pod's containers for debugging: they may be added, never changed or removed."""
    had = (old.get("spec") or {}).get("ephemeralContainers") or []
    wanted = (new.get("spec") or {}).get("ephemeralContainers") or []
    for before in had:
        if before not in wanted:
            raise Invalid(
                f'spec.ephemeralContainers: Forbidden: existing ephemeral containers "{before.get("name")}" may not be '
                "changed or removed",
                field="spec.ephemeralContainers",
            )
    return {**old, "spec": {**old["spec"], "ephemeralContainers": wanted}}


def _resize(_kind: Kind, new: Resource, old: Resource) -> Resource:
    """A pod's container resources."""
    wanted = {one["name"]: one for one in (new.get("spec") or {}).get("containers") or []}
    containers = [
        _with(one, wanted.get(one["name"], one), ("resources", "resizePolicy")) for one in old["spec"]["containers"]
    ]
    return {**old, "spec": {**old["spec"], "containers": containers}}


# --- scale ------------------------------------------------------------------------------------------------------

_SCALE_PATHS = {"spec": ".spec.replicas", "status": ".status.replicas", "selector": ".status.selector"}


def _at(obj: Any, path: str) -> Any:
    for step in path.strip(".").split("."):
        obj = obj.get(step) if isinstance(obj, Mapping) else None
    return obj


def _selector_text(kind: Kind, obj: Resource) -> str:
    path = kind.scale.get("selector")
    found = _at(obj, path) if path else _at(obj, ".spec.selector")
    if isinstance(found, str):
        return found
    if not isinstance(found, Mapping):
        return ""
    if not (found.keys() & {"matchLabels", "matchExpressions"}):
        return ",".join(f"{key}={value}" for key, value in sorted(found.items()))
    parts = [f"{key}={value}" for key, value in sorted((found.get("matchLabels") or {}).items())]
    for one in found.get("matchExpressions") or ():
        parts.append(_expression(one))
    return ",".join(parts)


def _expression(one: Mapping[str, Any]) -> str:
    key, values = one["key"], ",".join(sorted(one.get("values") or ()))
    match one["operator"]:
        case "In":
            return f"{key} in ({values})"
        case "NotIn":
            return f"{key} notin ({values})"
        case "Exists":
            return str(key)
        case _:
            return f"!{key}"


def scale_of(kind: Kind, obj: Resource) -> Resource:
    """The autoscaling/v1 Scale of an object."""
    meta = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    paths = {**_SCALE_PATHS, **kind.scale}
    status: Resource = {"replicas": _at(obj, paths["status"]) or 0}
    if selector := _selector_text(kind, obj):
        status["selector"] = selector
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: meta[name] for name in kept if name in meta},
        "spec": {"replicas": _at(obj, paths["spec"]) or 0},
        "status": status,
    }


def _scale(kind: Kind, new: Resource, old: Resource) -> Resource:
    replicas = (new.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise Invalid(
            f"Scale cannot be handled: spec.replicas must be a whole number, not {replicas!r}", field="spec.replicas"
        )
    if replicas < 0:
        raise Invalid(
            f'Scale.autoscaling "{old["metadata"]["name"]}" is invalid: spec.replicas: Invalid value: {replicas}: must be '
            "greater than or equal to 0",
            field="spec.replicas",
        )
    *parents, last = {**_SCALE_PATHS, **kind.scale}["spec"].strip(".").split(".")
    merged = place = dict(old)
    for step in parents:
        place[step] = dict(place.get(step) or {})
        place = place[step]
    place[last] = replicas
    return merged


_MERGES: dict[str, Merge] = {
    "": _main,
    "status": _status,
    "approval": _conditions,
    "binding": _assigned,
    "finalize": _finalizers,
    "ephemeralcontainers": _ephemeral,
    "resize": _resize,
    "scale": _scale,
}
