"""Role, ClusterRole and their bindings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import age, column, joined
from insula.model.resource import Resource

GROUP = "rbac.authorization.k8s.io"
_API = f"{GROUP}/v1"
_SUBJECTS = ("ServiceAccount", "User", "Group")


def _default_binding(obj: Resource) -> None:
    if isinstance(target := obj.get("roleRef"), dict):
        target.setdefault("apiGroup", GROUP)
    for subject in obj.get("subjects") or ():
        if not subject.get("apiGroup") and subject.get("kind") in ("User", "Group"):
            subject["apiGroup"] = GROUP


def _default_role(obj: Resource) -> None:
    if "rules" not in obj and "aggregationRule" not in obj:
        obj["rules"] = []


def _validate_role(new: Resource, _old: Resource | None) -> list[Cause]:
    found: list[Cause] = []
    namespaced = new["kind"] == "Role"
    for index, each in enumerate(new.get("rules") or ()):
        where, urls = f"rules[{index}]", each.get("nonResourceURLs")
        if not each.get("verbs"):
            found.append(rules.required(f"{where}.verbs", "verbs must contain at least one value"))
        if urls and namespaced:
            found.append(
                rules.invalid(f"{where}.nonResourceURLs", urls, "namespaced rules cannot apply to non-resource URLs")
            )
        elif urls:
            if each.get("apiGroups") or each.get("resources") or each.get("resourceNames"):
                why = "rules cannot apply to both regular resources and non-resource URLs"
                found.append(rules.invalid(f"{where}.nonResourceURLs", urls, why))
        else:
            if not each.get("apiGroups"):
                found.append(rules.required(f"{where}.apiGroups", "resource rules must supply at least one api group"))
            if not each.get("resources"):
                found.append(rules.required(f"{where}.resources", "resource rules must supply at least one resource"))
    return found


def _validate_binding(new: Resource, old: Resource | None) -> list[Cause]:
    target, cluster = new.get("roleRef") or {}, new["kind"] == "ClusterRoleBinding"
    found: list[Cause] = []
    if target.get("apiGroup") != GROUP:
        found.append(rules.unsupported("roleRef.apiGroup", target.get("apiGroup"), (GROUP,)))
    kinds = ("ClusterRole",) if cluster else ("ClusterRole", "Role")
    if target.get("kind") not in kinds:
        found.append(rules.unsupported("roleRef.kind", target.get("kind"), kinds))
    if not target.get("name"):
        found.append(rules.required("roleRef.name"))
    for index, subject in enumerate(new.get("subjects") or ()):
        where = f"subjects[{index}]"
        if not subject.get("name"):
            found.append(rules.required(f"{where}.name"))
        if subject.get("kind") not in _SUBJECTS:
            found.append(rules.unsupported(f"{where}.kind", subject.get("kind"), _SUBJECTS))
        elif subject["kind"] == "ServiceAccount" and cluster and not subject.get("namespace"):
            found.append(rules.required(f"{where}.namespace"))
    if old and target != old.get("roleRef"):
        found.append(rules.invalid("roleRef", target, "cannot change roleRef"))
    return found


def _role_row(obj: Resource) -> Sequence[Any]:
    return (obj["metadata"].get("creationTimestamp", ""),)


def _binding_row(obj: Resource) -> Sequence[Any]:
    target = obj.get("roleRef") or {}
    by_kind: dict[str, list[str]] = {kind: [] for kind in _SUBJECTS}
    for subject in obj.get("subjects") or ():
        name = subject.get("name", "")
        if subject.get("kind") == "ServiceAccount" and subject.get("namespace"):
            name = f"{subject['namespace']}/{name}"
        by_kind.get(subject.get("kind", ""), []).append(name)
    return (
        f"{target.get('kind')}/{target.get('name')}",
        age(obj),
        joined(by_kind["User"], "", ", "),
        joined(by_kind["Group"], "", ", "),
        joined(by_kind["ServiceAccount"], "", ", "),
    )


_ROLE_COLUMNS = (column("Created At"),)
_BINDING_COLUMNS = (
    column("Role"),
    column("Age"),
    column("Users", wide=True),
    column("Groups", wide=True),
    column("ServiceAccounts", wide=True),
)

KINDS = tuple(
    replace(
        row(_API, kind),
        default=_default_role,
        validate=_validate_role,
        columns=_ROLE_COLUMNS,
        row=_role_row,
    )
    for kind in ("Role", "ClusterRole")
) + tuple(
    replace(
        row(_API, kind),
        default=_default_binding,
        validate=_validate_binding,
        columns=_BINDING_COLUMNS,
        row=_binding_row,
    )
    for kind in ("RoleBinding", "ClusterRoleBinding")
)
