"""Pods: defaults, rules, QoS, and the words that kubectl shows."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from insula.kinds import podspec, podstatus
from insula.kinds.printing import Since
from insula.kinds.registry import Registry

POD = Registry.builtin().by_gvk("v1", "Pod")


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    listed = list(containers) or [{"name": "a", "image": "nginx"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": listed, **spec}}


def test_defaults_are_those_of_kubernetes() -> None:
    obj = pod(
        {
            "name": "a",
            "image": "nginx",
            "ports": [{"containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": 80}, "timeoutSeconds": 3},
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "resources": {"limits": {"cpu": "1"}},
        },
        volumes=[{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}],
        serviceAccountName="bob",
    )
    POD.default(obj)
    spec = obj["spec"]
    container = spec.pop("containers")[0]
    assert container == {
        "name": "a",
        "image": "nginx",
        "imagePullPolicy": "Always",
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "ports": [{"containerPort": 80, "protocol": "TCP"}],
        "livenessProbe": {
            "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
            "timeoutSeconds": 3,
            "periodSeconds": 10,
            "successThreshold": 1,
            "failureThreshold": 3,
        },
        "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
        "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
    }
    assert spec == {
        "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
        "serviceAccountName": "bob",
        "serviceAccount": "bob",
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "enableServiceLinks": True,
    }


def test_defaulting_twice_changes_nothing() -> None:
    obj = pod(hostNetwork=True)
    POD.default(obj)
    again = copy.deepcopy(obj)
    POD.default(again)
    assert again == obj


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.2", "IfNotPresent"),
        ("host:5000/a/b", "Always"),
        ("host:5000/a/b:v1", "IfNotPresent"),
        ("nginx@sha256:" + "0" * 64, "IfNotPresent"),
    ],
)
def test_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    assert podspec.pull_policy(image) == policy


@pytest.mark.parametrize(
    ("resources", "qos"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "2Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}, "Burstable"),
    ],
)
def test_quality_of_service(resources: dict[str, Any], qos: str) -> None:
    assert podspec.qos_class(pod({"name": "a", "image": "b", "resources": resources})["spec"]) == qos


def wrong(obj: dict[str, Any]) -> list[tuple[str, str]]:
    POD.default(obj)
    return [(each.field, each.message) for each in POD.validate(obj, None)]


def test_a_good_pod_has_no_faults() -> None:
    assert wrong(pod()) == []


@pytest.mark.parametrize(
    ("obj", "field", "start"),
    [
        (pod({"name": "A_b", "image": "x"}), "spec.containers[0].name", "Invalid value"),
        (pod({"name": "a", "image": "x"}, {"name": "a", "image": "x"}), "spec.containers[1].name", "Duplicate value"),
        (pod({"name": "a"}), "spec.containers[0].image", "Required value"),
        (
            pod({"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/"}]}),
            "spec.containers[0].volumeMounts[0].name",
            'Not found: "v"',
        ),
        (
            pod({"name": "a", "image": "x", "ports": [{"containerPort": 70000}]}),
            "spec.containers[0].ports[0].containerPort",
            "Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            pod(restartPolicy="Sometimes"),
            "spec.restartPolicy",
            'Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"',
        ),
        (
            pod(volumes=[{"name": "v", "hostPath": {"path": "/a/../b"}}]),
            "spec.volumes[0].hostPath.path",
            "Invalid value",
        ),
        (
            pod(volumes=[{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]),
            "spec.volumes[0].hostPath",
            "Forbidden",
        ),
        (pod({"name": "a", "image": "x", "env": [{"name": "a=b"}]}), "spec.containers[0].env[0].name", "Invalid value"),
        (
            pod({"name": "a", "image": "x", "livenessProbe": {}}),
            "spec.containers[0].livenessProbe",
            "Required value: must specify a handler type",
        ),
        (
            pod({"name": "a", "image": "x", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}),
            "spec.containers[0].resources.requests",
            'Invalid value: "2": must be less than or equal to cpu limit of 1',
        ),
        (
            pod(initContainers=[{"name": "i", "image": "x", "livenessProbe": {"exec": {"command": ["a"]}}}]),
            "spec.initContainers[0].livenessProbe",
            "Forbidden",
        ),
        (
            pod(terminationGracePeriodSeconds=-1),
            "spec.terminationGracePeriodSeconds",
            "Invalid value: -1: must be greater than or equal to 0",
        ),
    ],
)
def test_rules(obj: dict[str, Any], field: str, start: str) -> None:
    found = wrong(copy.deepcopy(obj))
    assert [each[0] for each in found] == [field]
    assert found[0][1].startswith(start)


def test_what_an_update_may_change() -> None:
    old = pod()
    POD.default(old)
    for change, fine in (
        ({"containers": [{**old["spec"]["containers"][0], "image": "nginx:2"}]}, True),
        ({"activeDeadlineSeconds": 5}, True),
        ({"tolerations": [{"key": "a", "operator": "Exists"}]}, True),
        ({"hostNetwork": True}, False),
        ({"restartPolicy": "Never"}, False),
        ({"containers": [{**old["spec"]["containers"][0], "command": ["x"]}]}, False),
    ):
        new = {**old, "spec": {**copy.deepcopy(old["spec"]), **change}}
        assert (POD.validate(new, old) == []) is fine, change


def _status(*containers: dict[str, Any], phase: str = "Running", **more: Any) -> dict[str, Any]:
    return {
        **pod(*({"name": each["name"], "image": "x"} for each in containers)),
        "status": {"phase": phase, "containerStatuses": list(containers), **more},
    }


def _c(name: str = "a", ready: bool = False, restarts: int = 0, **state: Any) -> dict[str, Any]:
    return {"name": name, "ready": ready, "restartCount": restarts, "state": state}


@pytest.mark.parametrize(
    ("obj", "ready", "status"),
    [
        ({**pod(), "status": {"phase": "Pending"}}, "0/1", "Pending"),
        (_status(_c(ready=True, running={})), "1/1", "Running"),
        (_status(_c(waiting={"reason": "CrashLoopBackOff"})), "0/1", "CrashLoopBackOff"),
        (_status(_c(waiting={"reason": "ImagePullBackOff"}), phase="Pending"), "0/1", "ImagePullBackOff"),
        (_status(_c(terminated={"reason": "Completed", "exitCode": 0}), phase="Succeeded"), "0/1", "Completed"),
        (_status(_c(terminated={"reason": "Error", "exitCode": 1}), phase="Failed"), "0/1", "Error"),
        (_status(_c(terminated={"exitCode": 3}), phase="Failed"), "0/1", "ExitCode:3"),
        (_status(_c(terminated={"signal": 9, "exitCode": 137}), phase="Failed"), "0/1", "Signal:9"),
        (
            _status(_c("a", True, running={}), _c("b", terminated={"reason": "Completed", "exitCode": 0})),
            "1/2",
            "NotReady",
        ),
        (_status(_c(running={}), phase="Running"), "0/1", "Running"),
        (
            {**_status(_c(ready=True, running={})), "metadata": {"name": "x", "deletionTimestamp": "t"}},
            "1/1",
            "Terminating",
        ),
        (_status(phase="Failed", reason="Evicted"), "0/1", "Evicted"),
    ],
)
def test_status_words(obj: dict[str, Any], ready: str, status: str) -> None:
    said = podstatus.summary(obj)
    assert (said.ready, said.status) == (ready, status)


def test_init_containers_come_first() -> None:
    obj = pod(initContainers=[{"name": "i1", "image": "x"}, {"name": "i2", "image": "x"}])
    obj["status"] = {
        "phase": "Pending",
        "initContainerStatuses": [_c("i1", terminated={"exitCode": 0}), _c("i2", running={})],
    }
    assert podstatus.summary(obj).status == "Init:1/2"
    obj["status"]["initContainerStatuses"][1] = _c("i2", restarts=2, waiting={"reason": "CrashLoopBackOff"})
    assert podstatus.summary(obj).status == "Init:CrashLoopBackOff"
    assert podstatus.summary(obj).restarts == 2


def test_restarts_say_when() -> None:
    one = {
        **_c(ready=True, restarts=3, running={}),
        "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:00Z"}},
    }
    assert podstatus.summary(_status(one)).restarts == Since("2026-01-01T00:00:00Z", "3 ({} ago)")
