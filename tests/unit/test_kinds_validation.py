"""Objects held against their schemas, in the sentences of kube-apiserver."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.errors import Invalid
from insula.kinds.registry import Registry
from insula.kinds.validation import conform, problems

REGISTRY = Registry.builtin()
POD = REGISTRY.by_gvk("v1", "Pod")
POD_OBJ: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "x", "labels": {"a": "b"}},
    "spec": {
        "containers": [
            {
                "name": "a",
                "image": "b",
                "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
                "livenessProbe": {"httpGet": {"port": "http"}},
            }
        ]
    },
}


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    pod = copy.deepcopy(POD_OBJ)
    change(pod["spec"])
    return pod


def test_a_good_object_passes_untouched() -> None:
    pod = copy.deepcopy(POD_OBJ)
    assert conform(POD, pod, "Strict") == []
    assert problems(POD, pod) == []
    assert pod == POD_OBJ


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: s.update(containers="x"),
            "cannot unmarshal string into Go struct field PodSpec.spec.containers of type []struct",
        ),
        (lambda s: s["containers"][0].update(name=1), "cannot unmarshal number into Go struct field Container"),
        (lambda s: s["containers"][0]["ports"][0].update(containerPort="80"), "cannot unmarshal string"),
        (
            lambda s: s["containers"][0]["ports"][0].update(containerPort=1 << 40),
            "cannot unmarshal number 1099511627776",
        ),
        (lambda s: s["containers"][0]["ports"][0].update(containerPort=8.5), "cannot unmarshal number 8.5"),
        (lambda s: s["containers"][0].update(tty="yes"), "cannot unmarshal string into Go struct field"),
        (
            lambda s: s["containers"][0]["resources"]["limits"].update(cpu="abc"),
            "quantities must match the regular expression",
        ),
        (lambda s: s["containers"][0]["livenessProbe"]["httpGet"].update(port=True), "cannot unmarshal bool"),
        (lambda s: s.update(nodeSelector={"a": 1}), "cannot unmarshal number into Go struct field"),
        (lambda s: s.update(nodeSelector=["a"]), "of type map[string]string"),
    ],
)
def test_wrong_types(change: Callable[[dict[str, Any]], Any], sentence: str) -> None:
    with pytest.raises(Invalid) as told:
        conform(POD, changed(change))
    assert told.value.message.startswith('Pod in version "v1" cannot be handled as a Pod: ')
    assert sentence in told.value.message
    assert not told.value.causes  # a bad request, not an invalid object


def test_times_and_bytes() -> None:
    secret, lease = REGISTRY.by_gvk("v1", "Secret"), REGISTRY.by_gvk("coordination.k8s.io/v1", "Lease")
    with pytest.raises(Invalid, match="illegal base64 data at input byte 3"):
        conform(secret, {"metadata": {"name": "x"}, "data": {"a": "abc!"}})
    with pytest.raises(Invalid, match='parsing time "yesterday"'):
        conform(lease, {"metadata": {"name": "x"}, "spec": {"renewTime": "yesterday"}})
    assert conform(lease, {"metadata": {"name": "x"}, "spec": {"renewTime": "2026-01-02T03:04:05.678901Z"}}) == []


def test_unknown_fields_by_mode() -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["foo"] = 1
        spec["containers"][0]["bar"] = 2

    with pytest.raises(Invalid) as told:
        conform(POD, changed(change), "Strict")
    assert told.value.message.endswith(
        'strict decoding error: unknown field "spec.containers[0].bar", unknown field "spec.foo"'
    )
    pod = changed(change)
    assert conform(POD, pod, "Warn") == ['unknown field "spec.containers[0].bar"', 'unknown field "spec.foo"']
    assert pod == POD_OBJ
    pod = changed(change)
    assert conform(POD, pod, "Ignore") == []
    assert pod == POD_OBJ


def test_required_fields_are_causes() -> None:
    found = problems(POD, changed(lambda spec: spec.pop("containers")))
    assert [(each.field, each.reason, each.message) for each in found] == [
        ("spec.containers", "FieldValueRequired", "Required value")
    ]
    status = {**copy.deepcopy(POD_OBJ), "status": {"conditions": [{}]}}
    assert problems(POD, status) == []  # what controllers write is taken as it is


def test_null_is_absent_everywhere() -> None:
    pod = changed(lambda spec: spec.update(nodeSelector=None, tolerations=None, hostNetwork=None))
    pod["status"] = None
    pod["metadata"]["creationTimestamp"] = None
    assert conform(POD, pod, "Strict") == []


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(_JSON, st.sampled_from(["spec", "metadata", "status"]))
def test_anything_is_either_refused_or_conforms_afterwards(value: Any, field: str) -> None:
    pod: dict[str, Any] = {"metadata": {"name": "x"}, field: value}
    try:
        conform(POD, pod)
    except Invalid:
        return
    assert conform(POD, pod, "Strict") == []
