"""May they? Role-based access control over an in-memory picture of roles and bindings. Deciding is pure and fast.

Source: the RBAC API `rbac.authorization.k8s.io/v1`. Nothing is denied by a rule; what no rule allows is forbidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from insula.api.kube.users import MASTERS
from insula.errors import Forbidden
from insula.model.resource import Resource
from insula.model.selector import from_object
from insula.verbs.request import User

GROUP = "rbac.authorization.k8s.io"
_DECISIONS = 20_000


class Question(Struct, frozen=True, kw_only=True):
    """One access asked for. `path` alone for a non-resource URL."""

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    sub: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


class Rule(Struct, frozen=True):
    """One policy rule."""

    verbs: frozenset[str]
    groups: frozenset[str] = frozenset()
    resources: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    paths: tuple[str, ...] = ()

    def allows(self, asked: Question) -> bool:
        """Whether this rule grants the access."""
        if asked.verb not in self.verbs and "*" not in self.verbs:
            return False
        if asked.path:
            return any(_path_fits(pattern, asked.path) for pattern in self.paths)
        if asked.group not in self.groups and "*" not in self.groups:
            return False
        if self.names and asked.name not in self.names:
            return False
        return self._resource_fits(asked.resource, asked.sub)

    def _resource_fits(self, resource: str, sub: str) -> bool:
        if "*" in self.resources:
            return True
        if not sub:
            return resource in self.resources
        return f"{resource}/{sub}" in self.resources or f"*/{sub}" in self.resources


def _path_fits(pattern: str, path: str) -> bool:
    return pattern in ("*", path) or (pattern.endswith("*") and path.startswith(pattern[:-1]))


def rules_of(role: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules written in a Role or ClusterRole."""
    return tuple(
        Rule(
            verbs=frozenset(each.get("verbs") or ()),
            groups=frozenset(each.get("apiGroups") or ()),
            resources=frozenset(each.get("resources") or ()),
            names=frozenset(each.get("resourceNames") or ()),
            paths=tuple(each.get("nonResourceURLs") or ()),
        )
        for each in role.get("rules") or ()
    )


class _Binding(Struct, frozen=True):
    namespace: str  # empty for a ClusterRoleBinding
    role_namespace: str  # empty for a ClusterRole
    role: str


def _subjects(binding: Mapping[str, Any]) -> Iterator[str]:
    home = binding["metadata"].get("namespace", "")
    for each in binding.get("subjects") or ():
        name = each.get("name", "")
        match each.get("kind"):
            case "User":
                yield f"u:{name}"
            case "Group":
                yield f"g:{name}"
            case "ServiceAccount":
                yield f"u:system:serviceaccount:{each.get('namespace') or home}:{name}"


class Picture:
    """Roles and bindings as they are now. `put` and `drop` keep it; each forgets earlier decisions."""

    def __init__(self) -> None:
        self._roles: dict[tuple[str, str], Resource] = {}
        self._bindings: dict[tuple[str, str, str], tuple[_Binding, frozenset[str]]] = {}
        self._by_subject: dict[str, set[_Binding]] | None = None
        self._rules: dict[tuple[str, str], tuple[Rule, ...]] = {}
        self._decided: dict[tuple[str, tuple[str, ...], Question], bool] = {}

    def put(self, obj: Resource) -> None:
        """Take in a role or binding."""
        meta = obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        if obj["kind"] in ("Role", "ClusterRole"):
            self._roles[namespace, name] = obj
        else:
            target = obj.get("roleRef") or {}
            role_namespace = namespace if target.get("kind") == "Role" else ""
            binding = _Binding(namespace, role_namespace, target.get("name", ""))
            self._bindings[obj["kind"], namespace, name] = (binding, frozenset(_subjects(obj)))
        self._forget()

    def drop(self, obj: Resource) -> None:
        """Forget a role or binding."""
        meta = obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        if obj["kind"] in ("Role", "ClusterRole"):
            self._roles.pop((namespace, name), None)
        else:
            self._bindings.pop((obj["kind"], namespace, name), None)
        self._forget()

    def replace(self, kind: str, objects: Iterable[Resource]) -> None:
        """All objects of one kind, after a list: what is not among them is forgotten."""
        if kind in ("Role", "ClusterRole"):
            cluster = kind == "ClusterRole"
            self._roles = {key: role for key, role in self._roles.items() if bool(key[0]) == cluster}
        else:
            self._bindings = {key: value for key, value in self._bindings.items() if key[0] != kind}
        for obj in objects:
            self.put({**obj, "kind": kind})
        self._forget()

    def _forget(self) -> None:
        self._by_subject = None
        self._rules.clear()
        self._decided.clear()

    def allows(self, user: User, asked: Question) -> bool:
        """Whether a user has the access."""
        if MASTERS in user.groups:
            return True
        key = (user.name, tuple(user.groups), asked)
        known = self._decided.get(key)
        if known is None:
            if len(self._decided) >= _DECISIONS:
                self._decided.clear()
            known = self._decided[key] = any(rule.allows(asked) for rule in self.rules(user, asked.namespace))
        return known

    def rules(self, user: User, namespace: str) -> Iterator[Rule]:
        """Every rule that counts for a user in a namespace ("" for cluster-wide requests)."""
        if MASTERS in user.groups:
            yield Rule(frozenset("*"), frozenset("*"), frozenset("*"), frozenset(), ("*",))
        index = self._index()
        for subject in (f"u:{user.name}", *(f"g:{group}" for group in user.groups)):
            for binding in index.get(subject, ()):
                if not binding.namespace or binding.namespace == namespace:
                    yield from self.role_rules(binding.role_namespace, binding.role)

    def role_rules(self, namespace: str, name: str) -> tuple[Rule, ...]:
        """The rules of a role, aggregated ones included; none for one that does not exist."""
        known = self._rules.get((namespace, name))
        if known is None:
            role = self._roles.get((namespace, name))
            self._rules[namespace, name] = ()  # roles that aggregate each other in a circle end here
            known = self._rules[namespace, name] = () if role is None else tuple(self._gather(role))
        return known

    def _gather(self, role: Resource) -> Iterator[Rule]:
        yield from rules_of(role)
        for selector in (role.get("aggregationRule") or {}).get("clusterRoleSelectors") or ():
            chosen = from_object(selector)
            for (namespace, _), other in self._roles.items():
                if namespace or other is role or chosen is None:
                    continue
                if chosen.matches(other["metadata"].get("labels") or {}):
                    yield from self.role_rules("", other["metadata"]["name"])

    def _index(self) -> dict[str, set[_Binding]]:
        if self._by_subject is None:
            self._by_subject = {}
            for binding, subjects in self._bindings.values():
                for subject in subjects:
                    self._by_subject.setdefault(subject, set()).add(binding)
        return self._by_subject


def refuse(user: User, asked: Question) -> Forbidden:
    """The sentence of kube-apiserver for an access that nothing allows."""
    if asked.path:
        return Forbidden(f'forbidden: User "{user.name}" cannot {asked.verb} path "{asked.path}"')
    resource = f"{asked.resource}/{asked.sub}" if asked.sub else asked.resource
    qualified = f"{asked.resource}.{asked.group}" if asked.group else asked.resource
    where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    named = f' "{asked.name}"' if asked.name else ""
    return Forbidden(
        f'{qualified}{named} is forbidden: User "{user.name}" cannot {asked.verb} resource "{resource}" '
        f'in API group "{asked.group}" {where}',
        kind=asked.resource,
        name=asked.name or None,
    )


# --- escalation: nobody gives away what they do not have -------------------------------------------------------------


def uncovered(held: Sequence[Rule], wanted: Iterable[Rule]) -> list[str]:
    """The accesses of `wanted` that no rule of `held` covers, as sentences; wildcards are covered by wildcards only."""
    missing: list[str] = []
    for rule in wanted:
        for asked in _atoms(rule):
            if not any(_covers(each, asked) for each in held):
                missing.append(_spoken(asked))
    return missing


def _atoms(rule: Rule) -> Iterator[Question]:
    for verb in sorted(rule.verbs):
        for path in rule.paths:
            yield Question(verb=verb, path=path)
        for group in sorted(rule.groups):
            for resource in sorted(rule.resources):
                base, _, sub = resource.partition("/")
                for name in sorted(rule.names) or [""]:
                    yield Question(verb=verb, group=group, resource=base, sub=sub, name=name)


def _covers(rule: Rule, asked: Question) -> bool:
    if asked.path:
        return rule.allows(asked)
    if asked.verb not in rule.verbs and "*" not in rule.verbs:
        return False
    if asked.group not in rule.groups and "*" not in rule.groups:
        return False
    if rule.names and asked.name not in rule.names:
        return False
    whole = f"{asked.resource}/{asked.sub}" if asked.sub else asked.resource
    return "*" in rule.resources or whole in rule.resources or bool(asked.sub and f"*/{asked.sub}" in rule.resources)


def _spoken(asked: Question) -> str:
    if asked.path:
        return f'{{NonResourceURLs:["{asked.path}"], Verbs:["{asked.verb}"]}}'
    resource = f"{asked.resource}/{asked.sub}" if asked.sub else asked.resource
    names = f', ResourceNames:["{asked.name}"]' if asked.name else ""
    return f'{{APIGroups:["{asked.group}"], Resources:["{resource}"]{names}, Verbs:["{asked.verb}"]}}'
