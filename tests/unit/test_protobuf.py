"""Protobuf bodies: what Go clients write, and what no client should."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.api.kube import protobuf
from insula.api.kube.errors import UnsupportedMediaType
from insula.errors import Invalid
from insula.kinds import builtin


def varint(number: int) -> bytes:
    number &= 0xFFFF_FFFF_FFFF_FFFF
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def body(api_version: str, kind: str, message: bytes) -> bytes:
    return (
        b"k8s\x00" + field(1, field(1, api_version) + field(2, kind)) + field(2, message) + field(3, "") + field(4, "")
    )


def meta(name: str, *more: bytes) -> bytes:
    # Go writes all that is not a pointer, also when empty
    zeros = field(2, "") + field(3, "") + field(4, "") + field(5, "") + field(6, "") + field(7, 0) + field(8, b"")
    return field(1, name) + zeros + b"".join(more)


def test_a_config_map() -> None:
    entry = field(1, "a") + field(2, "b")
    binary = field(1, "raw") + field(2, b"\x00\xff")
    data = body("v1", "ConfigMap", field(1, meta("x")) + field(2, entry) + field(3, binary))
    assert protobuf.decode_object(data) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "x"},
        "data": {"a": "b"},
        "binaryData": {"raw": base64.b64encode(b"\x00\xff").decode()},
    }


def test_pointers_keep_their_zeros() -> None:
    container = field(1, "c") + field(2, "img") + field(16, 0) + field(18, 0)
    pod_spec = field(2, container) + field(21, 0) + field(11, 0) + field(4, 0)
    template = field(1, meta("")) + field(2, pod_spec)
    spec = field(1, 0) + field(3, template) + field(5, 0)
    found = protobuf.decode_object(body("apps/v1", "Deployment", field(1, meta("d")) + field(2, spec)))
    assert found["spec"] == {
        "replicas": 0,
        "template": {
            "metadata": {},
            "spec": {
                "containers": [{"name": "c", "image": "img"}],
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 0,
            },
        },
    }


def test_what_go_embeds_stands_in_its_owner() -> None:
    secret = field(6, field(1, "s") + field(3, 0o600))
    volume = field(1, "v") + field(2, secret)
    probe = field(1, field(2, field(1, "/z") + field(2, field(1, 0) + field(2, 8080) + field(3, "")))) + field(3, 5)
    container = field(1, "c") + field(10, probe)
    found = protobuf.decode_object(body("v1", "Pod", field(2, field(1, volume) + field(2, container))))
    assert found["spec"]["volumes"] == [{"name": "v", "secret": {"secretName": "s", "defaultMode": 0o600}}]
    assert found["spec"]["containers"][0]["livenessProbe"] == {
        "httpGet": {"path": "/z", "port": 8080},
        "timeoutSeconds": 5,
    }


def test_types_with_a_json_form_of_their_own() -> None:
    moment = field(1, 1_767_323_045) + field(2, 678_901_000)
    lease = field(1, "me") + field(3, moment)
    found = protobuf.decode_object(body("coordination.k8s.io/v1", "Lease", field(1, meta("l")) + field(2, lease)))
    assert found["spec"] == {"holderIdentity": "me", "acquireTime": "2026-01-02T03:04:05.678901Z"}
    limits = field(1, "cpu") + field(2, field(1, "500m"))
    container = field(1, "c") + field(8, field(1, limits))
    found = protobuf.decode_object(body("v1", "Pod", field(2, field(2, container))))
    assert found["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "500m"}}
    named = field(1, 1) + field(2, 0) + field(3, "50%")
    budget = field(1, named)
    found = protobuf.decode_object(body("policy/v1", "PodDisruptionBudget", field(2, budget)))
    assert found["spec"] == {"minAvailable": "50%"}


def test_json_inside_protobuf() -> None:
    raw = field(1, b'{"any":["thing",1]}')
    found = protobuf.decode_object(
        body("apps/v1", "ControllerRevision", field(1, meta("r")) + field(2, raw) + field(3, 7))
    )
    assert (found["data"], found["revision"]) == ({"any": ["thing", 1]}, 7)


def test_options_and_reviews() -> None:
    found = protobuf.decode_object(body("meta.k8s.io/v1", "DeleteOptions", field(1, 0) + field(4, "Foreground")))
    assert found == {
        "apiVersion": "meta.k8s.io/v1",
        "kind": "DeleteOptions",
        "gracePeriodSeconds": 0,
        "propagationPolicy": "Foreground",
    }
    attributes = field(1, "default") + field(2, "list") + field(5, "pods")
    review = body("authorization.k8s.io/v1", "SelfSubjectAccessReview", field(2, field(1, attributes)))
    assert protobuf.decode_object(review)["spec"]["resourceAttributes"] == {
        "namespace": "default",
        "verb": "list",
        "resource": "pods",
    }


def test_negative_numbers_and_unknown_fields() -> None:
    spec = field(4, -5) + field(999, b"skipped") + varint(998 << 3 | 5) + b"1234"
    assert protobuf.decode_object(body("v1", "Pod", field(2, spec)))["spec"] == {"terminationGracePeriodSeconds": -5}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"json",
        b"k8s\x00\x0a\xff",
        body("v1", "Pod", b"\x0a\x05abc"),
        body("v1", "Pod", b"\xff" * 20),
        body("v1", "Pod", field(1, field(1, b"\xff\xfe"))),
        body("v1", "Pod", varint(2 << 3 | 3)),
        body("v1", "Pod", field(2, 5)),
        body("v1", "Pod", field(2, field(4, "text"))),
    ],
)
def test_malformed_bodies_are_refused(data: bytes) -> None:
    with pytest.raises((Invalid, UnsupportedMediaType)):
        protobuf.decode_object(data)


def test_a_kind_without_a_table_is_refused_clearly() -> None:
    with pytest.raises(UnsupportedMediaType, match="send it as application/json"):
        protobuf.decode_object(body("example.com/v1", "Widget", b""))


def test_kinds_that_are_new_in_this_version() -> None:
    template = field(1, "t") + field(2, field(2, field(1, 3))) + field(5, field(1, b"")) + field(7, 0)
    spec = field(1, field(1, "batch") + field(2, "Job") + field(3, "j")) + field(2, template)
    workload = protobuf.decode_object(
        body("scheduling.k8s.io/v1beta1", "Workload", field(1, meta("w")) + field(2, spec))
    )
    assert workload["spec"] == {
        "controllerRef": {"apiGroup": "batch", "kind": "Job", "name": "j"},
        "podGroupTemplates": [
            {
                "name": "t",
                "schedulingPolicy": {"gang": {"minCount": 3}},
                "disruptionMode": {"single": {}},
                "priority": 0,
            }
        ],
    }
    spec = field(1, "a/b") + field(8, 3600) + field(12, b"\x01") + field(11, field(1, "k") + field(2, "v"))
    request = protobuf.decode_object(
        body("certificates.k8s.io/v1", "PodCertificateRequest", field(1, meta("p")) + field(2, spec))
    )
    assert request["spec"] == {
        "signerName": "a/b",
        "maxExpirationSeconds": 3600,
        "stubPKCS10Request": "AQ==",
        "unverifiedUserAnnotations": {"k": "v"},
    }


def test_nesting_is_bounded() -> None:
    schema = b""
    for _ in range(100):
        schema = field(28, schema)
    version = field(1, "v1") + field(4, field(1, schema))
    with pytest.raises(Invalid, match="nested too deeply"):
        protobuf.decode_object(body("apiextensions.k8s.io/v1", "CustomResourceDefinition", field(2, field(7, version))))


def test_the_table_knows_nearly_every_kind() -> None:
    unknown = {
        kind.gvk for kind in builtin.rows().values() if protobuf._fields(protobuf.message_name(*kind.gvk)) is None
    }
    assert unknown == {
        ("lifecycle.k8s.io/v1alpha1", "Eviction"),
        ("lifecycle.k8s.io/v1alpha1", "EvictionRequest"),
        ("scheduling.k8s.io/v1alpha3", "CompositePodGroup"),
    }


@given(st.binary(max_size=200), st.sampled_from(["Pod", "Service", "Secret", "Node"]))
def test_any_bytes_end_in_an_object_or_a_refusal(message: bytes, kind: str) -> None:
    try:
        found: Any = protobuf.decode_object(body("v1", kind, message))
    except (Invalid, UnsupportedMediaType):
        return
    assert found["kind"] == kind
