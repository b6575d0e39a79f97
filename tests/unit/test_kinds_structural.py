"""Structural schemas: pruning, defaulting, validation."""

from __future__ import annotations

from typing import Any

import pytest

from insula.kinds.crd import look
from insula.kinds.structural import default, prune, validate


def spec(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}


def test_pruning_keeps_what_is_declared() -> None:
    schema = spec(
        a={"type": "integer"},
        free={"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"n": {"type": "object"}}},
        map={"type": "object", "additionalProperties": {"type": "object", "properties": {"k": {"type": "string"}}}},
        list={"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
        pod={"type": "object", "x-kubernetes-embedded-resource": True, "properties": {}},
    )
    obj = {
        "metadata": {"name": "x", "anything": 1},
        "spec": {
            "a": 1,
            "b": 2,
            "free": {"other": {"deep": 1}, "n": {"gone": 1}},
            "map": {"one": {"k": "v", "z": 1}},
            "list": [{"x": "y", "z": 1}],
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {}},
        },
        "extra": 1,
    }
    removed = prune(schema, obj)
    assert sorted(removed) == [
        "extra",
        "spec.b",
        "spec.free.n.gone",
        "spec.list[0].z",
        "spec.map.one.z",
        "spec.pod.spec",
    ]
    assert obj["spec"]["free"] == {"other": {"deep": 1}, "n": {}}
    assert obj["metadata"] == {"name": "x", "anything": 1}


def test_defaults_go_deep() -> None:
    schema = spec(
        a={"type": "object", "default": {}, "properties": {"b": {"type": "integer", "default": 5}}},
        n={"type": "string", "default": "x"},
        null={"type": "string", "nullable": True, "default": "x"},
        list={"type": "array", "items": {"type": "object", "properties": {"d": {"type": "boolean", "default": True}}}},
    )
    obj: dict[str, Any] = {"spec": {"n": None, "null": None, "list": [{}, {"d": False}]}}
    default(schema, obj)
    assert obj["spec"] == {"a": {"b": 5}, "n": "x", "null": None, "list": [{"d": True}, {"d": False}]}


@pytest.mark.parametrize(
    ("schema", "value", "sentence"),
    [
        ({"type": "integer"}, "x", 'spec.f in body must be of type integer: "string"'),
        ({"type": "integer"}, 1.5, 'must be of type integer: "number"'),
        ({"type": "object"}, None, 'must be of type object: "null"'),
        ({"type": "integer", "minimum": 3}, 2, "should be greater than or equal to 3"),
        ({"type": "integer", "maximum": 3, "exclusiveMaximum": True}, 3, "should be less than 3"),
        ({"type": "integer", "multipleOf": 5}, 7, "should be a multiple of 5"),
        ({"type": "string", "pattern": "^a+$"}, "b", "should match '^a+$'"),
        ({"type": "string", "maxLength": 2}, "abc", "Too long: may not be more than 2 bytes"),
        ({"type": "string", "minLength": 2}, "a", "should be at least 2 chars long"),
        ({"type": "string", "format": "ipv4"}, "1.2.3", "must be of type ipv4"),
        ({"type": "string", "enum": ["a", "b"]}, "c", 'Unsupported value: "c": supported values: "a", "b"'),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 1}, ["a", "b"], "must have at most 1 items"),
        (
            {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            ["a", "a"],
            'Duplicate value: "a"',
        ),
        ({"x-kubernetes-int-or-string": True}, True, "must be of type integer,string"),
        (
            {"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 1}]},
            3,
            "must validate at least one schema (anyOf)",
        ),
        (
            {"type": "integer", "oneOf": [{"minimum": 1}, {"minimum": 2}]},
            3,
            "must validate one and only one schema (oneOf)",
        ),
        ({"type": "integer", "not": {"enum": [3]}}, 3, "must not validate the schema (not)"),
    ],
)
def test_what_is_wrong_is_told(schema: dict[str, Any], value: Any, sentence: str) -> None:
    found = validate(spec(f=schema), {"spec": {"f": value}})
    assert len(found) == 1 and sentence in found[0].message
    assert found[0].field.startswith("spec.f")


def test_required_and_nullable() -> None:
    schema = {"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object", "nullable": True}}}
    assert validate(schema, {"spec": None}) == []
    assert validate(schema, {})[0].message == "Required value"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.a", [1]),
        ("spec.a", [1]),
        (".spec.list[1]", ["y"]),
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        (".metadata.annotations['a.b/c']", ["d"]),
        (".spec.none.deeper", []),
        (".spec[", []),
    ],
)
def test_json_paths(path: str, found: list[Any]) -> None:
    obj = {
        "metadata": {"annotations": {"a.b/c": "d"}},
        "spec": {"a": 1, "list": ["x", "y"]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
    }
    assert look(obj, path) == found
