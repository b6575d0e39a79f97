"""The three patch dialects that change a present object: known cases of their standards, and properties."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.errors import Invalid
from insula.kinds import schemas
from insula.model.patch import json as json_patch
from insula.model.patch import merge, strategic
from insula.model.schema import Schema

POD = Schema(schemas.get("io.k8s.api.core.v1.Pod"), schemas.get)
SERVICE = Schema(schemas.get("io.k8s.api.core.v1.Service"), schemas.get)
DEPLOYMENT = Schema(schemas.get("io.k8s.api.apps.v1.Deployment"), schemas.get)

# --- RFC 6902 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("doc", "operations", "expected"),
    [
        ({"a": 1}, [{"op": "add", "path": "/b", "value": 2}], {"a": 1, "b": 2}),
        ({"a": [1, 3]}, [{"op": "add", "path": "/a/1", "value": 2}], {"a": [1, 2, 3]}),
        ({"a": [1]}, [{"op": "add", "path": "/a/-", "value": 2}], {"a": [1, 2]}),
        ({"a": 1}, [{"op": "add", "path": "/a", "value": 2}], {"a": 2}),
        ({"a": 1, "b": 2}, [{"op": "remove", "path": "/b"}], {"a": 1}),
        ({"a": [1, 2]}, [{"op": "remove", "path": "/a/0"}], {"a": [2]}),
        ({"a": 1}, [{"op": "replace", "path": "/a", "value": None}], {"a": None}),
        ({"a": {"x": 1}}, [{"op": "move", "from": "/a/x", "path": "/b"}], {"a": {}, "b": 1}),
        ({"a": {"x": [1]}}, [{"op": "copy", "from": "/a/x", "path": "/b"}], {"a": {"x": [1]}, "b": [1]}),
        ({"a/b": {"m~n": 1}}, [{"op": "replace", "path": "/a~1b/m~0n", "value": 2}], {"a/b": {"m~n": 2}}),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": 1}, {"op": "remove", "path": "/a"}], {}),
        ({"a": 1}, [{"op": "test", "path": "/b", "value": None}], {"a": 1}),
        ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 1}}], {"b": 1}),
        ({"a": ["x", "y"]}, [{"op": "move", "from": "/a/0", "path": "/a/1"}], {"a": ["y", "x"]}),
    ],
)
def test_json_patch(doc: Any, operations: Any, expected: Any) -> None:
    assert json_patch.apply(doc, operations) == expected


@pytest.mark.parametrize(
    ("doc", "operations"),
    [
        ({}, [{"op": "add", "path": "/a/b", "value": 1}]),
        ({}, [{"op": "remove", "path": "/a"}]),
        ({}, [{"op": "replace", "path": "/a", "value": 1}]),
        ({"a": [1]}, [{"op": "add", "path": "/a/2", "value": 1}]),
        ({"a": [1]}, [{"op": "add", "path": "/a/01", "value": 1}]),
        ({"a": [1]}, [{"op": "remove", "path": "/a/-1"}]),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": True}]),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": "1"}]),
        ({"a": {"b": 1}}, [{"op": "move", "from": "/a", "path": "/a/b"}]),
        ({}, [{"op": "add", "path": "a", "value": 1}]),
        ({}, [{"op": "add", "path": 3, "value": 1}]),
        ({}, [{"op": "add", "path": "/a"}]),
        ({}, [{"op": "sing", "path": "/a"}]),
        ({}, [{"op": "copy", "path": "/a"}]),
        ({}, [{"op": "remove", "path": ""}]),
        ({}, [{"op": "add", "path": "/a", "value": 1}] * 10_001),
        ({}, {"op": "add"}),
        ({}, ["x"]),
    ],
)
def test_json_patch_refusals(doc: Any, operations: Any) -> None:
    with pytest.raises(Invalid):
        json_patch.apply(doc, operations)


def test_copies_cannot_grow_without_bound() -> None:
    doubling = [{"op": "add", "path": "/a", "value": ["x" * 1000]}]
    doubling += [{"op": "copy", "from": "/a", "path": "/a/-"} for _ in range(64)]
    with pytest.raises(Invalid, match="copy operations"):
        json_patch.apply({}, doubling)


# --- RFC 7386: the table of its appendix --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, expected: Any) -> None:
    assert merge.apply(target, patch) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(JSON, JSON)
def test_a_merge_patch_is_idempotent(target: Any, patch: Any) -> None:
    once = merge.apply(copy.deepcopy(target), copy.deepcopy(patch))
    assert merge.apply(copy.deepcopy(once), copy.deepcopy(patch)) == once


# --- strategic ----------------------------------------------------------------------------------------------------


def patched(original: Any, patch: Any, schema: Schema = POD) -> Any:
    return strategic.apply(copy.deepcopy(original), copy.deepcopy(patch), schema)


def spec(**fields: Any) -> dict[str, Any]:
    return {"spec": fields}


def test_lists_of_containers_merge_by_name() -> None:
    have = spec(containers=[{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])
    got = patched(have, spec(containers=[{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]))
    assert got == spec(
        containers=[{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]
    )


def test_an_item_is_deleted_by_its_key() -> None:
    have = spec(containers=[{"name": "a"}, {"name": "b"}])
    assert patched(have, spec(containers=[{"name": "a", "$patch": "delete"}])) == spec(containers=[{"name": "b"}])


def test_a_list_is_replaced_on_demand() -> None:
    have = spec(containers=[{"name": "a"}, {"name": "b"}])
    got = patched(have, spec(containers=[{"$patch": "replace"}, {"name": "c"}]))
    assert got == spec(containers=[{"name": "c"}])


def test_nested_keys_and_null() -> None:
    have = spec(
        containers=[{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}], "tty": True}]
    )
    patch = spec(
        containers=[{"name": "a", "tty": None, "env": [{"name": "X", "$patch": "delete"}, {"name": "Z", "value": "3"}]}]
    )
    assert patched(have, patch) == spec(
        containers=[{"name": "a", "env": [{"name": "Y", "value": "1"}, {"name": "Z", "value": "3"}]}]
    )


def test_atomic_lists_are_replaced() -> None:
    have = spec(tolerations=[{"key": "a"}], containers=[{"name": "a", "args": ["1"]}])
    got = patched(have, spec(tolerations=[{"key": "b"}], containers=[{"name": "a", "args": ["2"]}]))
    assert got == spec(tolerations=[{"key": "b"}], containers=[{"name": "a", "args": ["2"]}])


def test_primitive_lists_are_united_and_emptied() -> None:
    have = {"metadata": {"finalizers": ["a/1", "b/1"]}}
    assert patched(have, {"metadata": {"finalizers": ["b/1", "c/1"]}})["metadata"]["finalizers"] == [
        "a/1",
        "b/1",
        "c/1",
    ]
    got = patched(have, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/1"]}})
    assert got == {"metadata": {"finalizers": ["b/1"]}}


def test_the_clients_order_wins() -> None:
    have = spec(containers=[{"name": "a"}, {"name": "server"}, {"name": "b"}])
    patch = {
        "spec": {
            "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
            "containers": [{"name": "a", "image": "2"}],
        }
    }
    got = [one["name"] for one in patched(have, patch)["spec"]["containers"]]
    assert got.index("b") < got.index("a")
    assert sorted(got) == ["a", "b", "server"]


def test_order_alone_sorts() -> None:
    have = spec(containers=[{"name": "a"}, {"name": "b"}])
    patch = {"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}
    assert patched(have, patch) == spec(containers=[{"name": "b"}, {"name": "a"}])


def test_retain_keys_drops_the_other_member_of_a_union() -> None:
    have = spec(strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}})
    got = patched(have, spec(strategy={"type": "Recreate", "$retainKeys": ["type"]}), DEPLOYMENT)
    assert got == spec(strategy={"type": "Recreate"})


def test_a_map_is_replaced_or_deleted_on_demand() -> None:
    have = {"metadata": {"labels": {"a": "1", "b": "2"}}}
    assert patched(have, {"metadata": {"labels": {"$patch": "replace", "c": "3"}}}) == {
        "metadata": {"labels": {"c": "3"}}
    }
    assert patched(have, {"metadata": {"labels": {"$patch": "delete"}}}) == {"metadata": {"labels": {}}}


def test_service_ports_merge_by_port() -> None:
    have = spec(ports=[{"port": 80, "name": "http"}, {"port": 443, "name": "tls"}])
    got = patched(have, spec(ports=[{"port": 80, "name": "web"}]), SERVICE)
    assert got == spec(ports=[{"port": 80, "name": "web"}, {"port": 443, "name": "tls"}])


@pytest.mark.parametrize(
    "patch",
    [
        spec(containers=[{"image": "x"}]),
        spec(containers=["x"]),
        {"spec": {"$patch": "eat"}},
        {"spec": {"$retainKeys": "x"}},
        [],
        {"spec": {"strategy": {}, "$retainKeys": []}},
    ],
)
def test_strategic_refusals(patch: Any) -> None:
    with pytest.raises(Invalid):
        patched(spec(containers=[{"name": "a"}]), patch)


CONTAINERS = st.dictionaries(
    st.sampled_from("abcd"),
    st.fixed_dictionaries({"image": st.sampled_from("12")}, optional={"tty": st.booleans()}),
    max_size=4,
)


def _items(by_name: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": name, **fields} for name, fields in by_name.items()]


@settings(max_examples=100, deadline=None)
@given(CONTAINERS, CONTAINERS)
def test_a_keyed_list_merges_as_a_map_would(have: dict[str, Any], change: dict[str, Any]) -> None:
    got = patched(spec(containers=_items(have)), spec(containers=_items(change)))
    wanted = {name: {**have.get(name, {}), **change.get(name, {})} for name in have | change}
    assert {one.pop("name"): one for one in got["spec"]["containers"]} == wanted
    again = patched(spec(containers=_items(wanted)), spec(containers=_items(change)))
    assert {one.pop("name"): one for one in again["spec"]["containers"]} == wanted
