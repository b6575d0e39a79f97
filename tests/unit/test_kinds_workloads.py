"""The kinds that keep pods, and their neighbours: defaults, rules, conversions, rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from insula.errors import Cause
from insula.kinds.autoscaler import from_v2, to_v2
from insula.kinds.event import from_core, to_core
from insula.kinds.registry import Registry

REGISTRY = Registry.builtin()
LABELS = {"app": "web"}
TEMPLATE: dict[str, Any] = {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "a", "image": "b:1"}]}}


def made(api_version: str, kind: str, **spec: Any) -> dict[str, Any]:
    obj = {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "uid": "u1"}, "spec": copy.deepcopy(spec)}
    REGISTRY.by_gvk(api_version, kind).default(obj)
    return obj


def faults(obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[Cause]:
    return REGISTRY.by_gvk(obj["apiVersion"], obj["kind"]).validate(obj, old)


def workload(kind: str, **more: Any) -> dict[str, Any]:
    return made("apps/v1", kind, selector={"matchLabels": LABELS}, template=TEMPLATE, **more)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (
            "Deployment",
            {
                "replicas": 1,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600,
            },
        ),
        ("ReplicaSet", {"replicas": 1}),
        (
            "StatefulSet",
            {
                "replicas": 1,
                "podManagementPolicy": "OrderedReady",
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "revisionHistoryLimit": 10,
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            },
        ),
        (
            "DaemonSet",
            {
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
                "revisionHistoryLimit": 10,
            },
        ),
    ],
)
def test_defaults(kind: str, wanted: dict[str, Any]) -> None:
    obj = workload(kind)
    assert {name: value for name, value in obj["spec"].items() if name not in ("selector", "template")} == wanted
    assert obj["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    assert faults(obj) == []


def test_selectors_fit_and_stay() -> None:
    other = workload("Deployment")
    other["spec"]["selector"] = {"matchLabels": {"app": "other"}}
    assert [each.field for each in faults(other)] == ["spec.template.metadata.labels"]
    old = workload("Deployment")
    new = copy.deepcopy(old)
    new["spec"]["selector"] = {"matchExpressions": [{"key": "app", "operator": "Exists"}]}
    found = faults(new, old)
    assert [(each.field, each.message.rpartition(": ")[2]) for each in found] == [
        ("spec.selector", "field is immutable")
    ]


def test_pods_that_are_kept_must_restart() -> None:
    obj = workload("ReplicaSet")
    obj["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    assert faults(obj)[0].field == "spec.template.spec.restartPolicy"


def test_a_job_selects_its_own_pods() -> None:
    job = made("batch/v1", "Job", template={"spec": {**TEMPLATE["spec"], "restartPolicy": "Never"}})
    assert {
        name: job["spec"][name] for name in ("completions", "parallelism", "backoffLimit", "completionMode", "suspend")
    } == {
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": 6,
        "completionMode": "NonIndexed",
        "suspend": False,
    }
    REGISTRY.by_gvk("batch/v1", "Job").prepare(job, None)
    assert job["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": "u1"}}
    assert job["spec"]["template"]["metadata"]["labels"]["job-name"] == "x"
    assert faults(job) == []
    always = made("batch/v1", "Job", template=TEMPLATE)
    assert 'valid values: "OnFailure", "Never"' in faults(always)[0].message


def test_cron_schedules() -> None:
    inner = {"spec": {"template": {"spec": {**TEMPLATE["spec"], "restartPolicy": "Never"}}}}
    for schedule, fine in (
        ("*/5 * * * *", True),
        ("@daily", True),
        ("* * * *", False),
        ("every day", False),
        ("", False),
    ):
        obj = made("batch/v1", "CronJob", schedule=schedule, jobTemplate=inner)
        assert (faults(obj) == []) is fine, schedule


def test_services() -> None:
    service = made("v1", "Service", ports=[{"port": 80}])
    assert service["spec"] == {
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        "type": "ClusterIP",
        "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster",
    }
    assert faults(service) == []
    assert faults(made("v1", "Service"))[0].field == "spec.ports"
    twice = made("v1", "Service", ports=[{"port": 80}, {"port": 80}])
    assert {each.field for each in faults(twice)} == {"spec.ports[0].name", "spec.ports[1].name", "spec.ports[1]"}
    kind, old = REGISTRY.by_gvk("v1", "Service"), made("v1", "Service", ports=[{"port": 80}], clusterIP="10.0.0.1")
    kind.prepare(old, None)
    kind.prepare(service, old)
    assert service["spec"]["clusterIPs"] == ["10.0.0.1"]


def test_secrets_take_plain_text_in() -> None:
    kind = REGISTRY.by_gvk("v1", "Secret")
    obj: dict[str, Any] = {"metadata": {"name": "x"}, "stringData": {"a": "hé"}, "data": {"b": "Yg=="}}
    kind.default(obj)
    assert obj == {"metadata": {"name": "x"}, "type": "Opaque", "data": {"a": "aMOp", "b": "Yg=="}}
    frozen = {**obj, "immutable": True}
    assert (
        kind.validate({**frozen, "data": {}}, frozen)[0].message
        == "Forbidden: field is immutable when `immutable` is set"
    )


def test_events_have_two_names() -> None:
    core = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "x", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "p"},
        "message": "hi",
        "reason": "Started",
        "reportingComponent": "agent",
        "source": {"component": "kubelet"},
    }
    newer = from_core(core)
    assert (newer["apiVersion"], newer["note"], newer["regarding"]["name"]) == ("events.k8s.io/v1", "hi", "p")
    assert to_core(newer) == core


def test_autoscalers_have_two_versions() -> None:
    one = {
        "apiVersion": "autoscaling/v1",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "x"},
        "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 60, "scaleTargetRef": {"kind": "D", "name": "d"}},
    }
    two = to_v2(one)
    assert two["spec"]["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 60}
    assert from_v2(two) == one
    two["spec"]["metrics"].append(
        {"type": "Resource", "resource": {"name": "memory", "target": {"averageValue": "1Gi"}}}
    )
    two["spec"]["behavior"] = {"scaleDown": {"policies": []}}
    assert to_v2(from_v2(two)) == two


def test_namespaces_begin_active() -> None:
    kind = REGISTRY.by_gvk("v1", "Namespace")
    obj: dict[str, Any] = {"metadata": {"name": "x"}}
    kind.default(obj)
    kind.prepare(obj, None)
    assert obj["spec"] == {"finalizers": ["kubernetes"]}
    assert obj["status"] == {"phase": "Active"}
    assert obj["metadata"]["labels"] == {"kubernetes.io/metadata.name": "x"}


def test_every_row_has_a_cell_for_each_column() -> None:
    for kind in REGISTRY.all():
        if kind.row is None:
            assert not kind.columns
            continue
        obj = {
            "apiVersion": kind.ref.api_version,
            "kind": kind.kind,
            "metadata": {"name": "x"},
            "spec": {},
            "status": {},
        }
        assert len(list(kind.row(obj))) == len(kind.columns), kind.kind
        assert len(list(kind.row({**obj, "spec": None, "status": None}))) == len(kind.columns), kind.kind


def test_device_claims_have_two_shapes() -> None:
    older = REGISTRY.by_gvk("resource.k8s.io/v1beta1", "ResourceClaim")
    request = {"name": "gpu", "deviceClassName": "gpus", "count": 2}
    claim = {
        "apiVersion": "resource.k8s.io/v1beta1",
        "kind": "ResourceClaim",
        "metadata": {"name": "x"},
        "spec": {"devices": {"requests": [request, {"name": "any", "firstAvailable": [{"name": "a"}]}]}},
    }
    stored = older.to_stored(claim)
    assert stored["spec"]["devices"]["requests"] == [
        {"name": "gpu", "exactly": {"deviceClassName": "gpus", "count": 2}},
        {"name": "any", "firstAvailable": [{"name": "a"}]},
    ]
    assert older.from_stored(stored) == claim
    slices = REGISTRY.by_gvk("resource.k8s.io/v1beta1", "ResourceSlice")
    one = {"apiVersion": "resource.k8s.io/v1beta1", "spec": {"devices": [{"name": "d", "basic": {"attributes": {}}}]}}
    assert slices.to_stored(one)["spec"]["devices"] == [{"name": "d", "attributes": {}}]
    assert slices.from_stored(slices.to_stored(one)) == one


def test_versions_of_a_kind_share_their_values() -> None:
    assert REGISTRY.by_gvk("certificates.k8s.io/v1beta1", "ClusterTrustBundle").storage_version == "v1"
    assert REGISTRY.by_gvk("certificates.k8s.io/v1", "ClusterTrustBundle").storage_version == ""
