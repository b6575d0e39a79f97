"""Server-side apply: the algebra of field sets, ownership and conflicts in kubectl's words."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.errors import Conflict
from insula.kinds import schemas
from insula.model.patch import apply as typed
from insula.model.patch import fieldset, managed
from insula.model.patch.managed import Apply, Manager, Owned, Owners
from insula.model.schema import Schema

DEPLOYMENT = Schema(schemas.get("io.k8s.api.apps.v1.Deployment"), schemas.get)
POD = Schema(schemas.get("io.k8s.api.core.v1.Pod"), schemas.get)
KUBECTL = Manager("kubectl-client-side-apply", "Update", "apps/v1")
A = Manager("a", "Apply", "apps/v1")
B = Manager("b", "Apply", "apps/v1")
NOW = "2026-01-01T00:00:00Z"


def deployment(replicas: int | None = None, image: str | None = None, **labels: str) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    if replicas is not None:
        spec["replicas"] = replicas
    if image is not None:
        spec["template"] = {"spec": {"containers": [{"name": "web", "image": image}]}}
    meta: dict[str, Any] = {"name": "d", "namespace": "default"}
    if labels:
        meta["labels"] = labels
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta} | ({"spec": spec} if spec else {})


def lay(
    owners: Owners, live: dict[str, Any], config: dict[str, Any], manager: Manager = A, force: bool = False
) -> tuple[dict[str, Any], Owners]:
    return managed.applied(owners, live, Apply(manager, config, {}, force, NOW), DEPLOYMENT)


def test_an_applied_configuration_owns_what_it_names() -> None:
    found = fieldset.without(fieldset.of_object(deployment(2, "nginx", app="x"), DEPLOYMENT), managed.UNOWNED)
    assert found == {
        "f:metadata": {"f:labels": {"f:app": {}}},
        "f:spec": {
            "f:replicas": {},
            "f:template": {
                "f:spec": {"f:containers": {'k:{"name":"web"}': {".": {}, "f:name": {}, "f:image": {}}}},
            },
        },
    }


def test_ports_are_known_by_number_and_protocol() -> None:
    pod = {"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}]}]}}
    found = fieldset.of_object(pod, POD)["f:spec"]["f:containers"]['k:{"name":"a"}']["f:ports"]
    assert found == {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}}


def test_atomic_things_are_owned_whole_and_sets_by_value() -> None:
    pod = {"metadata": {"finalizers": ["x/y"]}, "spec": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "a"}]}}
    assert fieldset.of_object(pod, POD) == {
        "f:metadata": {"f:finalizers": {'v:"x/y"': {}}},
        "f:spec": {"f:nodeSelector": {}, "f:tolerations": {}},
    }


def test_one_conflict_in_kubectls_words() -> None:
    live = deployment(3, "nginx")
    owners = managed.updated({}, KUBECTL, {"metadata": {}, "spec": {}}, live, DEPLOYMENT, NOW)
    with pytest.raises(Conflict) as caught:
        lay(owners, live, deployment(5))
    assert caught.value.message == (
        'Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using apps/v1: .spec.replicas'
    )
    (cause,) = caught.value.causes
    assert (cause.field, cause.reason) == (".spec.replicas", "FieldManagerConflict")
    assert cause.message == 'conflict with "kubectl-client-side-apply" using apps/v1'


def test_several_conflicts_are_told_by_manager() -> None:
    live, owners = lay({}, deployment(), deployment(1, "one"))
    live, owners = lay(owners, live, deployment(None, None, team="x"), B)
    with pytest.raises(Conflict) as caught:
        lay(owners, live, deployment(2, "two", team="y"), Manager("c", "Apply", "apps/v1"))
    assert caught.value.message == (
        'Apply failed with 3 conflicts: conflicts with "a":\n'
        "- .spec.replicas\n"
        '- .spec.template.spec.containers[name="web"].image\n'
        'conflicts with "b":\n'
        "- .metadata.labels.team"
    )


def test_the_same_value_is_shared_without_conflict() -> None:
    live, owners = lay({}, deployment(), deployment(3))
    live, owners = lay(owners, live, deployment(3), B)
    assert owners[A].fields == owners[B].fields == {"f:spec": {"f:replicas": {}}}
    live, owners = lay(owners, live, deployment(), A)
    assert live["spec"]["replicas"] == 3
    live, owners = lay(owners, live, deployment(), B)
    assert "spec" not in live or "replicas" not in live["spec"]
    assert owners == {}


def test_force_takes_the_field_from_its_owner() -> None:
    live, owners = lay({}, deployment(), deployment(3, "nginx"))
    live, owners = lay(owners, live, deployment(5), B, force=True)
    assert live["spec"]["replicas"] == 5
    assert "f:replicas" not in owners[A].fields["f:spec"]
    assert "f:template" in owners[A].fields["f:spec"]


def test_what_is_no_longer_applied_is_removed() -> None:
    live, owners = lay({}, deployment(), deployment(3, "nginx", app="x", tier="y"))
    live["spec"]["paused"] = True
    live, owners = lay(owners, live, deployment(None, "nginx", app="x"))
    assert live["metadata"]["labels"] == {"app": "x"}
    assert live["spec"] == {"paused": True, "template": {"spec": {"containers": [{"name": "web", "image": "nginx"}]}}}


def test_a_list_item_goes_when_nobody_owns_it() -> None:
    two = deployment(None, "one")
    two["spec"]["template"]["spec"]["containers"].append({"name": "side", "image": "s"})
    live, owners = lay({}, deployment(), two)
    live, owners = lay(owners, live, deployment(None, "one"))
    assert [one["name"] for one in live["spec"]["template"]["spec"]["containers"]] == ["web"]


def test_an_update_takes_what_it_changed() -> None:
    live, owners = lay({}, deployment(), deployment(3, "nginx"))
    changed = copy.deepcopy(live)
    changed["spec"]["replicas"] = 9
    scaler = Manager("scaler", "Update", "apps/v1", "scale")
    owners = managed.updated(owners, scaler, live, changed, DEPLOYMENT, NOW)
    assert owners[scaler].fields == {"f:spec": {"f:replicas": {}}}
    assert "f:replicas" not in owners[A].fields["f:spec"]
    with pytest.raises(
        Conflict, match=r'conflict with "scaler" with subresource "scale" using apps/v1: .spec.replicas'
    ):
        lay(owners, changed, deployment(3, "nginx"))


def test_kubectl_takes_over_from_its_client_side_self() -> None:
    live = deployment(3, "nginx")
    live["metadata"]["annotations"] = {managed.LAST_APPLIED: '{"spec":{"replicas":3}}'}
    owners = managed.updated({}, KUBECTL, {"metadata": {}, "spec": {}}, live, DEPLOYMENT, NOW)
    with pytest.raises(Conflict):
        lay(owners, live, deployment(4))
    merged, after = lay(owners, live, deployment(4), Manager("kubectl", "Apply", "apps/v1"))
    assert merged["spec"]["replicas"] == 4
    assert "f:replicas" not in after[KUBECTL].fields["f:spec"]


def test_managed_fields_survive_a_round_trip() -> None:
    _, owners = lay({}, deployment(), deployment(3, "nginx", app="x"))
    owners[Manager("n", "Update", "apps/v1", "status")] = Owned({"f:status": {"f:replicas": {}}}, NOW)
    assert managed.read(managed.write(owners)) == owners
    assert managed.read([{}, None, {"fieldsV1": 3}, "x"]) == {}
    assert managed.read(None) == {}


def test_the_oldest_updaters_are_thrown_together() -> None:
    owners: Owners = {}
    live: dict[str, Any] = {"metadata": {"labels": {}}}
    for number in range(13):
        new = copy.deepcopy(live)
        new["metadata"]["labels"][f"l{number}"] = "x"
        time = f"2026-01-01T00:00:{number:02}Z"
        owners = managed.updated(owners, Manager(f"m{number}", "Update", "v1"), live, new, POD, time)
        live = new
    assert len(owners) == 10
    ancient = owners[Manager("ancient-changes", "Update", "v1")].fields
    assert ancient == {"f:metadata": {"f:labels": {f"f:l{n}": {} for n in range(4)}}}


def test_the_configurations_order_of_items_wins() -> None:
    assert typed.interleave(["a", "b", "c"], ["c", "a"]) == ["b", "c", "a"]
    assert typed.interleave(["a", "L", "b"], ["R", "a", "b"]) == ["R", "a", "L", "b"]
    assert typed.interleave([], ["x"]) == ["x"]
    assert typed.interleave(["x"], []) == ["x"]


NAMES = st.sampled_from(["f:a", "f:b", 'k:{"name":"x"}'])
SETS = st.recursive(
    st.just({}),
    lambda inner: st.tuples(st.booleans(), st.dictionaries(NAMES, inner, min_size=1, max_size=3)).map(
        lambda made: {**({".": {}} if made[0] else {}), **made[1]}
    ),
    max_leaves=8,
)
ROOTS = st.dictionaries(NAMES, SETS, max_size=3)


def members(node: dict[str, Any]) -> set[str]:
    return set(fieldset.paths(node))


@settings(max_examples=200, deadline=None)
@given(ROOTS, ROOTS)
def test_the_algebra_is_that_of_sets(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert members(fieldset.union(left, right)) == members(left) | members(right)
    assert members(fieldset.minus(left, right)) == members(left) - members(right)
    assert members(fieldset.both(left, right)) == members(left) & members(right)


CONFIGS = st.builds(
    lambda replicas, image, labels, env: _config(replicas, image, labels, env),
    st.none() | st.integers(0, 3),
    st.none() | st.sampled_from(["i1", "i2"]),
    st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12"), max_size=3),
    st.dictionaries(st.sampled_from(["E1", "E2", "E3"]), st.sampled_from("12"), max_size=3),
)


def _config(replicas: int | None, image: str | None, labels: dict[str, str], env: dict[str, str]) -> dict[str, Any]:
    made = deployment(replicas, image, **labels)
    if image is not None and env:
        container = made["spec"]["template"]["spec"]["containers"][0]
        container["env"] = [{"name": name, "value": value} for name, value in env.items()]
    return made


@settings(max_examples=100, deadline=None)
@given(CONFIGS, CONFIGS)
def test_the_last_apply_is_what_is_there(first: dict[str, Any], second: dict[str, Any]) -> None:
    live, owners = lay({}, deployment(), first)
    live, owners = lay(owners, live, second)
    fresh, fresh_owners = lay({}, deployment(), second)
    ours = fieldset.without(fieldset.of_object(live, DEPLOYMENT), managed.UNOWNED)
    assert members(ours) == members(fieldset.without(fieldset.of_object(fresh, DEPLOYMENT), managed.UNOWNED))
    assert {m: o.fields for m, o in owners.items()} == {m: o.fields for m, o in fresh_owners.items()}
    again, _ = lay(owners, live, second)
    assert again == live


@settings(max_examples=100, deadline=None)
@given(CONFIGS, CONFIGS)
def test_another_managers_fields_are_never_lost(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    live, owners = lay({}, deployment(), mine, A)
    live, owners = lay(owners, live, theirs, B, force=True)
    live, owners = lay(owners, live, deployment(), A)
    kept = members(fieldset.without(fieldset.of_object(live, DEPLOYMENT), managed.UNOWNED))
    assert members(fieldset.without(fieldset.of_object(theirs, DEPLOYMENT), managed.UNOWNED)) <= kept


ANY_POD = st.fixed_dictionaries(
    {"apiVersion": st.just("v1"), "kind": st.just("Pod")},
    optional={
        "metadata": st.dictionaries(
            st.sampled_from(["name", "labels", "finalizers", "uid", "ownerReferences", "annotations", "generateName"]),
            st.sampled_from(
                [None, "x", {}, {"a": "b", "c": None}, [], ["f/a", "f/b"], [{"uid": "1", "name": "o"}, {"uid": "2"}]]
            ),
        ),
        "spec": st.dictionaries(
            st.sampled_from(["nodeName", "containers", "nodeSelector", "tolerations", "hostAliases", "unknown"]),
            st.sampled_from(
                [
                    None,
                    "n",
                    {},
                    {"k": {"deep": [1]}},
                    [],
                    [{"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]}],
                    [{"name": "a"}, {"name": "a"}],
                    [{"name": "a", "env": [{"name": "E", "value": None}], "resources": {"limits": {"cpu": "1"}}}],
                    [{"key": "k", "operator": "Exists"}],
                    [{"ip": "1.2.3.4", "hostnames": ["h"]}],
                ]
            ),
        ),
        "status": st.sampled_from([None, {}, {"phase": "Pending"}]),
        "extra": st.sampled_from([None, 1, {}, {"a": {"b": []}}]),
    },
)


@given(ANY_POD)
@settings(max_examples=300)
def test_what_is_made_is_owned_as_if_it_came_from_nothing(pod: dict[str, Any]) -> None:
    for hidden in ({}, {"f:status": {}}):
        for schema in (POD, None):
            empty: dict[str, Any] = {"metadata": {}, "spec": {}, "status": {}}
            want = managed.updated({}, KUBECTL, {**empty}, pod, schema, NOW)
            if KUBECTL in want and hidden:
                want = {KUBECTL: Owned(fieldset.without(want[KUBECTL].fields, hidden), NOW)}
            want = {manager: owned for manager, owned in want.items() if owned.fields}
            assert managed.of_new(KUBECTL, pod, schema, hidden, NOW) == want
