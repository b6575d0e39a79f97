"""Small fills for new pods: tolerations of short node trouble, the number behind a priority class, a runtime's overhead.

Source: kube-apiserver's plugins DefaultTolerationSeconds, Priority and RuntimeClass.
"""

from __future__ import annotations

from insula.errors import Cause
from insula.model.resource import Ref, Resource
from insula.verbs import faults
from insula.verbs.admission.namespacelifecycle import find
from insula.verbs.admission.serviceaccount import is_new_pod
from insula.verbs.codec import copy
from insula.verbs.request import Admission, Attempt

_CLASSES = Ref("scheduling.k8s.io", "v1", "priorityclasses")
_RUNTIMES = Ref("node.k8s.io", "v1", "runtimeclasses")
_GRACE_S = 300
_SYSTEM = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}


class DefaultTolerationSeconds(Admission):
    """A pod stays five minutes on a node that is not ready or not reachable."""

    name = "DefaultTolerationSeconds"

    async def mutate(self, attempt: Attempt) -> None:
        """New pods only."""
        if not is_new_pod(attempt):
            return
        spec = attempt.obj.setdefault("spec", {})
        have = list(spec.get("tolerations") or ())
        for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
            if not any(_covers(one, key) for one in have):
                have.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _GRACE_S})
        spec["tolerations"] = have


def _covers(toleration: Resource, key: str) -> bool:
    return toleration.get("key") in (key, None, "") and toleration.get("effect") in ("NoExecute", None, "")


class Priority(Admission):
    """Resolves `priorityClassName`."""

    name = "Priority"

    async def mutate(self, attempt: Attempt) -> None:
        """New pods only."""
        if not is_new_pod(attempt):
            return
        spec = attempt.obj.setdefault("spec", {})
        found = await self._class(attempt, spec.get("priorityClassName") or "")
        if found:
            spec["priorityClassName"] = found["metadata"]["name"]
        value = int(found.get("value", 0)) if found else 0
        if spec.get("priority") not in (None, value):
            why = f"the integer value of priority ({spec['priority']}) must not be provided in pod spec"
            raise faults.forbidden(attempt.kind, attempt.name, f"{why}; priority admission controller computed {value}")
        spec["priority"] = value
        spec.setdefault("preemptionPolicy", (found or {}).get("preemptionPolicy", "PreemptLowerPriority"))

    @staticmethod
    async def _class(attempt: Attempt, name: str) -> Resource | None:
        if name in _SYSTEM:
            return {"metadata": {"name": name}, "value": _SYSTEM[name]}
        if name:
            found = await find(attempt, _CLASSES, name)
            if found is None:
                raise faults.forbidden(attempt.kind, attempt.name, f"no PriorityClass with name {name} was found")
            return found
        defaults = [one for one in await attempt.verbs.look_all(_CLASSES) if one.get("globalDefault")]
        return min(defaults, key=lambda one: int(one.get("value", 0)), default=None)


class RuntimeClass(Admission):
    """A named runtime class must be there; it brings its overhead and its place."""

    name = "RuntimeClass"

    async def mutate(self, attempt: Attempt) -> None:
        """New pods only."""
        if not is_new_pod(attempt):
            return
        spec = attempt.obj.setdefault("spec", {})
        name = spec.get("runtimeClassName")
        if not name:
            return
        found = await find(attempt, _RUNTIMES, name)
        if found is None:
            raise faults.forbidden(attempt.kind, attempt.name, f'pod rejected: RuntimeClass "{name}" not found')
        overhead = (found.get("overhead") or {}).get("podFixed")
        if overhead and spec.get("overhead") not in (None, overhead):
            cause = Cause(
                "spec.overhead", "FieldValueInvalid", "Invalid value: does not match the RuntimeClass's overhead"
            )
            raise faults.invalid(attempt.kind, attempt.name, [cause])
        if overhead:
            spec["overhead"] = dict(overhead)
        self._place(attempt, spec, copy(found.get("scheduling") or {}))

    @staticmethod
    def _place(attempt: Attempt, spec: Resource, scheduling: Resource) -> None:
        chosen = dict(spec.get("nodeSelector") or {})
        for key, value in (scheduling.get("nodeSelector") or {}).items():
            if chosen.setdefault(key, value) != value:
                theirs = f"runtimeClass.scheduling.nodeSelector[{key}] = {value}"
                why = f"conflict: {theirs}; pod.spec.nodeSelector[{key}] = {chosen[key]}"
                raise faults.forbidden(attempt.kind, attempt.name, why)
        if chosen:
            spec["nodeSelector"] = chosen
        have = list(spec.get("tolerations") or ())
        have += [one for one in scheduling.get("tolerations") or () if one not in have]
        if have:
            spec["tolerations"] = have
