"""A namespaced object needs a namespace that is there and stays; some namespaces may never go."""

from __future__ import annotations

from insula.errors import Cause, NotFound
from insula.model.resource import Ref, Resource
from insula.verbs import faults
from insula.verbs.request import Admission, Attempt

NAMESPACES = Ref("", "v1", "namespaces")
IMMORTAL = frozenset({"default", "kube-system", "kube-public"})


class NamespaceLifecycle(Admission):
    """Source: kube-apiserver's plugin of that name."""

    name = "NamespaceLifecycle"

    async def mutate(self, attempt: Attempt) -> None:
        """Creations only, before any other step looks into the namespace."""
        if attempt.verb == "create" and attempt.kind.namespaced:
            await self._check(attempt)

    async def validate(self, attempt: Attempt) -> None:
        """Again right before the write, for the namespace may have begun to end; and deletions of namespaces."""
        if attempt.verb == "create" and attempt.kind.namespaced:
            await self._check(attempt)
        if attempt.verb == "delete" and attempt.kind.ref == NAMESPACES and attempt.name in IMMORTAL:
            raise faults.forbidden(attempt.kind, attempt.name, "this namespace may not be deleted")

    @staticmethod
    async def _check(attempt: Attempt) -> None:
        namespace: Resource = await attempt.verbs.look(NAMESPACES, attempt.namespace)
        if not namespace["metadata"].get("deletionTimestamp"):
            return
        why = f"unable to create new content in namespace {attempt.namespace} because it is being terminated"
        fault = faults.forbidden(attempt.kind, attempt.name, why)
        fault.causes = (
            Cause("metadata.namespace", "NamespaceTerminating", f"namespace {attempt.namespace} is being terminated"),
        )
        raise fault


async def find(attempt: Attempt, ref: Ref, name: str, namespace: str = "") -> Resource | None:
    """An object that a step looks at and does not change, None where there is none or its type is not served."""
    try:
        return await attempt.verbs.look(ref, name, namespace)
    except NotFound:
        return None
