"""Default classes: the one StorageClass or IngressClass that is annotated as default, where an object names none."""

from __future__ import annotations

from insula.model.resource import Ref, Resource
from insula.verbs.request import Admission, Attempt

_CLAIMS = Ref("", "v1", "persistentvolumeclaims")
_STORAGE_CLASSES = Ref("storage.k8s.io", "v1", "storageclasses")
_INGRESSES = Ref("networking.k8s.io", "v1", "ingresses")
_INGRESS_CLASSES = Ref("networking.k8s.io", "v1", "ingressclasses")


async def _default(attempt: Attempt, ref: Ref, annotation: str) -> str | None:
    """The name of the default class; of several the newest, then the first by name."""

    def age(one: Resource) -> tuple[str, str]:
        return one["metadata"].get("creationTimestamp", ""), one["metadata"]["name"]

    found = [
        one
        for one in (await attempt.verbs.list(ref)).items
        if (one["metadata"].get("annotations") or {}).get(annotation) == "true"
    ]
    newest = max((age(one)[0] for one in found), default="")
    return min((one["metadata"]["name"] for one in found if age(one)[0] == newest), default=None)


class DefaultStorageClass(Admission):
    """For claims without `storageClassName`; an empty one asks for no class and keeps that."""

    name = "DefaultStorageClass"

    async def mutate(self, attempt: Attempt) -> None:
        """New claims only."""
        if attempt.verb != "create" or attempt.kind.ref != _CLAIMS:
            return
        spec = attempt.obj.setdefault("spec", {})
        if spec.get("storageClassName") is None:
            name = await _default(attempt, _STORAGE_CLASSES, "storageclass.kubernetes.io/is-default-class")
            if name:
                spec["storageClassName"] = name


class DefaultIngressClass(Admission):
    """For ingresses without `ingressClassName`."""

    name = "DefaultIngressClass"

    async def mutate(self, attempt: Attempt) -> None:
        """New ingresses only."""
        if attempt.verb != "create" or attempt.kind.ref != _INGRESSES:
            return
        old_style = "kubernetes.io/ingress.class" in (attempt.obj["metadata"].get("annotations") or {})
        spec = attempt.obj.setdefault("spec", {})
        if not old_style and spec.get("ingressClassName") is None:
            name = await _default(attempt, _INGRESS_CLASSES, "ingressclass.kubernetes.io/is-default-class")
            if name:
                spec["ingressClassName"] = name
