"""LimitRange: default requests and limits for containers, and bounds for containers, pods and claims.

Source: kube-apiserver's plugin LimitRanger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

from insula.model.quantity import parse_quantity
from insula.model.resource import Ref, Resource
from insula.verbs import faults
from insula.verbs.admission.serviceaccount import PODS, is_new_pod
from insula.verbs.request import Admission, Attempt

_RANGES = Ref("", "v1", "limitranges")
_CLAIMS = Ref("", "v1", "persistentvolumeclaims")
_ANNOTATION = "kubernetes.io/limit-ranger"


def _containers(obj: Resource) -> Iterator[tuple[str, Resource]]:
    spec = obj.get("spec") or {}
    for field, word in (("initContainers", "init container"), ("containers", "container")):
        for one in spec.get(field) or ():
            yield word, one


async def _limits(attempt: Attempt) -> list[Resource]:
    ranges = await attempt.verbs.look_all(_RANGES, attempt.namespace)
    return [limit for one in ranges for limit in (one.get("spec") or {}).get("limits") or ()]


class LimitRanger(Admission):
    """Fills and bounds."""

    name = "LimitRanger"

    async def mutate(self, attempt: Attempt) -> None:
        """Default requests and limits of new pods' containers."""
        if not is_new_pod(attempt):
            return
        told = []
        for limit in await _limits(attempt):
            if limit.get("type") == "Container":
                for word, container in _containers(attempt.obj):
                    told += _fill(container, word, "request", "requests", limit.get("defaultRequest") or {})
                    told += _fill(container, word, "limit", "limits", limit.get("default") or {})
        if told:
            annotations = attempt.obj["metadata"].setdefault("annotations", {})
            annotations[_ANNOTATION] = f"LimitRanger plugin set: {'; '.join(told)}"

    async def validate(self, attempt: Attempt) -> None:
        """Bounds of new pods and claims."""
        if not (is_new_pod(attempt) or (attempt.verb == "create" and attempt.kind.ref == _CLAIMS)):
            return
        faults_found = [why for limit in await _limits(attempt) for why in _breaches(attempt, limit)]
        if faults_found:
            told = faults_found[0] if len(faults_found) == 1 else f"[{', '.join(faults_found)}]"
            raise faults.forbidden(attempt.kind, attempt.name, told)


def _fill(container: Resource, word: str, one: str, many: str, defaults: Resource) -> list[str]:
    have = (container.get("resources") or {}).get(many) or {}
    missing = {name: value for name, value in defaults.items() if name not in have}
    if not missing:
        return []
    container.setdefault("resources", {})[many] = {**have, **missing}
    return [f"{', '.join(sorted(missing))} {one} for {word} {container.get('name')}"]


def _breaches(attempt: Attempt, limit: Resource) -> Iterable[str]:
    kind = limit.get("type")
    if kind == "Container" and attempt.kind.ref == PODS:
        for _, container in _containers(attempt.obj):
            resources = container.get("resources") or {}
            yield from _bounds("Container", limit, resources.get("requests") or {}, resources.get("limits") or {})
    elif kind == "Pod" and attempt.kind.ref == PODS:
        yield from _bounds("Pod", limit, _sum(attempt.obj, "requests"), _sum(attempt.obj, "limits"))
    elif kind == "PersistentVolumeClaim" and attempt.kind.ref == _CLAIMS:
        requests = ((attempt.obj.get("spec") or {}).get("resources") or {}).get("requests") or {}
        yield from _bounds("PersistentVolumeClaim", limit, requests, {})


def _sum(pod: Resource, many: str) -> dict[str, Fraction]:
    """A pod's whole: all containers together, or the largest init container where that is more."""
    total: dict[str, Fraction] = {}
    first: dict[str, Fraction] = {}
    for word, container in _containers(pod):
        for name, value in ((container.get("resources") or {}).get(many) or {}).items():
            if word == "container":
                total[name] = total.get(name, Fraction(0)) + parse_quantity(value)
            else:
                first[name] = max(first.get(name, Fraction(0)), parse_quantity(value))
    return {name: max(total.get(name, Fraction(0)), first.get(name, Fraction(0))) for name in total | first}


def _bounds(word: str, limit: Resource, requests: Resource, limits: Resource) -> Iterator[str]:
    for name, least in (limit.get("min") or {}).items():
        have = requests.get(name)
        if have is None:
            yield f"minimum {name} usage per {word} is {least}.  No request is specified"
        elif parse_quantity(have) < parse_quantity(least):
            yield f"minimum {name} usage per {word} is {least}, but request is {_shown(have)}"
    for name, most in (limit.get("max") or {}).items():
        have = requests.get(name) if word == "PersistentVolumeClaim" else limits.get(name)
        if have is None:
            yield f"maximum {name} usage per {word} is {most}.  No limit is specified"
        elif parse_quantity(have) > parse_quantity(most):
            yield f"maximum {name} usage per {word} is {most}, but limit is {_shown(have)}"
    for name, ratio in (limit.get("maxLimitRequestRatio") or {}).items():
        low, high = requests.get(name), limits.get(name)
        if low is not None and high is not None and parse_quantity(high) > parse_quantity(ratio) * parse_quantity(low):
            yield f"{name} max limit to request ratio per {word} is {ratio}, but provided ratio is larger"


def _shown(value: object) -> str:
    if isinstance(value, Fraction):
        return str(value.numerator) if value.denominator == 1 else f"{-(-value.numerator * 1000 // value.denominator)}m"
    return str(value)
