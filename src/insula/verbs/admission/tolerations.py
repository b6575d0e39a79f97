"""DefaultTolerationSeconds: a pod stays for 300 s on a node that is not ready or unreachable, unless it says otherwise."""

from __future__ import annotations

from insula.model.resource import Ref
from insula.verbs.request import Admission, Attempt

SECONDS = 300
_KEYS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


class DefaultTolerations(Admission):
    """Adds the two tolerations."""

    name = "DefaultTolerationSeconds"

    async def mutate(self, attempt: Attempt) -> None:
        """Add what the pod does not say itself."""
        if attempt.kind.ref != Ref("", "v1", "pods") or attempt.verb != "create" or attempt.sub:
            return
        tolerations = attempt.obj["spec"].get("tolerations") or []
        for key in _KEYS:
            if not any(t.get("key", "") in ("", key) and t.get("effect", "") in ("", "NoExecute") for t in tolerations):
                new = {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}
                tolerations = [*tolerations, new]
        attempt.obj["spec"]["tolerations"] = tolerations


ADMISSION = DefaultTolerations()
