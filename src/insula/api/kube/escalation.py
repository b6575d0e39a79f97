"""Nobody gives away rights that they do not have: an admission step for roles and bindings.

A user may write a role whose rules they hold all, or with the verb `escalate` on it; and bind a role whose rules they hold
all, or with the verb `bind` on it. Source: Kubernetes' documentation, "Privilege escalation prevention and bootstrapping".
"""

from __future__ import annotations

from typing import Any

from insula.api.kube.context import Authorizer
from insula.api.kube.rbac import GROUP, Question, Rule, rules_of, uncovered
from insula.api.kube.users import MASTERS
from insula.errors import NotFound
from insula.model.resource import Ref
from insula.verbs import faults
from insula.verbs.request import Admission, Attempt

_ROLES = ("Role", "ClusterRole")
_BINDINGS = ("RoleBinding", "ClusterRoleBinding")
_SHOWN = 5


class EscalationCheck(Admission):
    """The step. Controllers of the process itself act as system:masters and pass."""

    name = "EscalationCheck"

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def validate(self, attempt: Attempt) -> None:
        """Raise Forbidden for a grant that is too large."""
        if attempt.kind.ref.group != GROUP or attempt.verb == "delete" or MASTERS in attempt.request.user.groups:
            return
        if attempt.kind.kind in _ROLES:
            wanted = rules_of(attempt.obj)
            if attempt.old is not None and wanted == rules_of(attempt.old):
                return
            await self._judge(attempt, wanted, "escalate", attempt.kind.ref.plural, attempt.name)
        elif attempt.kind.kind in _BINDINGS:
            await self._binding(attempt)

    async def _binding(self, attempt: Attempt) -> None:
        obj, old = attempt.obj, attempt.old
        if old is not None and (obj.get("subjects"), obj.get("roleRef")) == (old.get("subjects"), old.get("roleRef")):
            return
        target: dict[str, Any] = obj.get("roleRef") or {}
        plural = "roles" if target.get("kind") == "Role" else "clusterroles"
        name = str(target.get("name", ""))
        where = attempt.namespace if plural == "roles" else ""
        try:
            role = await attempt.verbs.get(Ref(GROUP, "v1", plural), name, where)
        except NotFound:
            raise NotFound(f'{plural}.{GROUP} "{name}" not found', kind=f"{plural}.{GROUP}", name=name) from None
        rules = rules_of(role)
        if "aggregationRule" in role:
            rules = tuple(self._authorizer.role_rules("", name))
        await self._judge(attempt, rules, "bind", plural, name)

    async def _judge(self, attempt: Attempt, wanted: tuple[Rule, ...], verb: str, plural: str, name: str) -> None:
        user, namespace = attempt.request.user, attempt.namespace
        missing = uncovered(list(self._authorizer.rules(user, namespace)), wanted)
        if not missing:
            return
        asked = Question(verb=verb, group=GROUP, resource=plural, namespace=namespace, name=name)
        if self._authorizer.allows(user, asked):
            return
        more = f"\n... and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        listed = "\n".join(missing[:_SHOWN]) + more
        who = f'user "{user.name}" (groups={list(user.groups)})'
        raise faults.forbidden(
            attempt.kind, attempt.name, f"{who} is attempting to grant RBAC permissions not currently held:\n{listed}"
        )
