"""Access control: rules, bindings, aggregation, what nobody may give away."""

from __future__ import annotations

from typing import Any

import pytest

from insula.api.kube import bootstrap
from insula.api.kube.rbac import Picture, Question, Rule, refuse, rules_of, uncovered
from insula.api.kube.users import service_account, user_of
from insula.verbs.request import User

ANN = User(name="ann", groups=("devs", "system:authenticated"))


def rule(verbs: str = "get", groups: str = "", resources: str = "pods", **more: Any) -> dict[str, Any]:
    return {"verbs": verbs.split(), "apiGroups": [groups], "resources": resources.split(), **more}


def role(name: str, *rules: dict[str, Any], namespace: str = "", **more: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": name, "labels": more.pop("labels", {})}
    if namespace:
        meta["namespace"] = namespace
    return {"kind": "Role" if namespace else "ClusterRole", "metadata": meta, "rules": list(rules), **more}


def binding(target: str, *subjects: dict[str, Any], namespace: str = "", kind: str = "ClusterRole") -> dict[str, Any]:
    meta = {"name": f"b-{target}", **({"namespace": namespace} if namespace else {})}
    return {
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": meta,
        "roleRef": {"kind": kind, "name": target},
        "subjects": list(subjects),
    }


def ask(verb: str = "get", resource: str = "pods", **more: str) -> Question:
    return Question(verb=verb, resource=resource, **more)


def picture(*objects: dict[str, Any]) -> Picture:
    made = Picture()
    for obj in objects:
        made.put(obj)
    return made


_USER, _GROUP = {"kind": "User", "name": "ann"}, {"kind": "Group", "name": "devs"}


@pytest.mark.parametrize(
    ("given", "asked", "allowed"),
    [
        (rule(), ask(), True),
        (rule(), ask("list"), False),
        (rule("*"), ask("list"), True),
        (rule(), ask(sub="log"), False),
        (rule(resources="pods/log"), ask(sub="log"), True),
        (rule(resources="*/log"), ask(sub="log"), True),
        (rule(resources="*"), ask(sub="log"), True),
        (rule(groups="apps"), ask(), False),
        (rule(groups="*"), ask(group="apps"), True),
        (rule(resourceNames=["a"]), ask(name="a"), True),
        (rule(resourceNames=["a"]), ask(name="b"), False),
        (rule(resourceNames=["a"]), ask("get"), False),
        ({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/logs/*"]}, Question(verb="get", path="/logs/x"), True),
        ({"verbs": ["get"], "nonResourceURLs": ["/healthz"]}, Question(verb="get", path="/healthz/x"), False),
    ],
)
def test_rules(given: dict[str, Any], asked: Question, allowed: bool) -> None:
    assert picture(role("r", given), binding("r", _USER)).allows(ANN, asked) is allowed


def test_bindings_reach_users_groups_and_accounts() -> None:
    made = picture(
        role("r", rule()), binding("r", _GROUP, {"kind": "ServiceAccount", "name": "bob", "namespace": "ns"})
    )
    assert made.allows(ANN, ask())
    assert made.allows(service_account("ns", "bob"), ask())
    assert not made.allows(service_account("other", "bob"), ask())


def test_a_role_binding_counts_in_its_namespace_only() -> None:
    made = picture(role("r", rule()), binding("r", _USER, namespace="a"))
    assert made.allows(ANN, ask(namespace="a"))
    assert not made.allows(ANN, ask(namespace="b"))
    assert not made.allows(ANN, ask())
    local = picture(role("r", rule(), namespace="a"), binding("r", _USER, namespace="a", kind="Role"))
    assert local.allows(ANN, ask(namespace="a"))


def test_masters_may_do_anything() -> None:
    assert Picture().allows(User(name="root", groups=("system:masters",)), ask("escalate", "everything"))


def test_changes_take_effect_at_once() -> None:
    made = picture(role("r", rule()), binding("r", _USER))
    assert made.allows(ANN, ask())
    made.put(role("r", rule("list")))
    assert not made.allows(ANN, ask())
    made.put(role("r", rule()))
    made.drop(binding("r"))
    assert not made.allows(ANN, ask())
    made.replace("ClusterRoleBinding", [binding("r", _USER)])
    assert made.allows(ANN, ask())
    made.replace("ClusterRole", [])
    assert not made.allows(ANN, ask())


def test_aggregation_follows_labels_also_in_circles() -> None:
    selector = {"clusterRoleSelectors": [{"matchLabels": {"to": "big"}}]}
    big = role("big", aggregationRule=selector, labels={"to": "big"})
    other = role("other", aggregationRule=selector, labels={"to": "big"})
    made = picture(big, other, role("small", rule("list"), labels={"to": "big"}), binding("big", _USER))
    assert made.allows(ANN, ask("list"))


def test_the_default_roles_do_what_their_names_say() -> None:
    made = picture(*bootstrap.cluster_roles(), *bootstrap.cluster_role_bindings())
    for name, words in (("view", "get list watch"), ("edit", "get create delete"), ("admin", "get create delete")):
        made.put(
            {
                **binding(name, {"kind": "User", "name": name}, namespace="a"),
                "metadata": {"name": name, "namespace": "a"},
            }
        )
        for word in words.split():
            assert made.allows(user_of(name, ()), ask(word, "deployments", group="apps", namespace="a")), (name, word)
    view, edit, admin = (user_of(name, ()) for name in ("view", "edit", "admin"))
    assert not made.allows(view, ask("get", "secrets", namespace="a"))
    assert made.allows(edit, ask("get", "secrets", namespace="a"))
    roles = ask("create", "roles", group="rbac.authorization.k8s.io", namespace="a")
    assert made.allows(admin, roles) and not made.allows(edit, roles)
    nobody = User(name="system:anonymous", groups=("system:unauthenticated",))
    assert made.allows(nobody, Question(verb="get", path="/version"))
    assert not made.allows(nobody, Question(verb="get", path="/api"))


def test_sentences() -> None:
    asked = ask("list", "deployments", group="apps", namespace="default")
    assert refuse(ANN, asked).message == (
        'deployments.apps is forbidden: User "ann" cannot list resource "deployments" in API group "apps" '
        'in the namespace "default"'
    )
    assert refuse(ANN, ask("create", name="x", sub="exec", namespace="n")).message == (
        'pods "x" is forbidden: User "ann" cannot create resource "pods/exec" in API group "" in the namespace "n"'
    )
    assert (
        refuse(ANN, Question(verb="get", path="/metrics")).message == 'forbidden: User "ann" cannot get path "/metrics"'
    )


def test_what_is_not_covered_is_told() -> None:
    held = rules_of(role("r", rule("get list", resources="pods pods/log"), rule("*", groups="apps", resources="*")))
    assert (
        uncovered(held, rules_of(role("x", rule("get"), rule("delete", groups="apps", resources="deployments")))) == []
    )
    assert uncovered(held, rules_of(role("x", rule("watch", resources="pods/log")))) == [
        '{APIGroups:[""], Resources:["pods/log"], Verbs:["watch"]}'
    ]
    assert uncovered(held, [Rule(frozenset("*"), frozenset([""]), frozenset(["pods"]))]) == [
        '{APIGroups:[""], Resources:["pods"], Verbs:["*"]}'
    ]
    assert uncovered([], rules_of({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]})) == [
        '{NonResourceURLs:["/x"], Verbs:["get"]}'
    ]
