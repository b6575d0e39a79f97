"""The Kubernetes tutorial by kubectl against a whole running Insula: deploy, explore, scale, update, roll back, apply."""

from __future__ import annotations

import json
import subprocess

import pytest

from door.cluster_support import (
    IMAGE,
    KUBECTL,
    NEXT_IMAGE,
    Insula,
    Space,
    container,
    deployment,
    insula,
    pod,
    space,
    until,
)

__all__ = ["insula", "space"]
pytestmark = pytest.mark.root


def images_of(space: Space) -> set[str]:
    """The images of the pods that are not ending."""
    staying = [found for found in space.all("pods") if not found["metadata"].get("deletionTimestamp")]
    return {found["spec"]["containers"][0]["image"] for found in staying}


def test_the_tutorial_from_the_first_deployment_to_a_rollback(space: Space) -> None:
    space.run(
        "create",
        "deployment",
        "web",
        f"--image={IMAGE}",
        "--",
        "sh",
        "-c",
        "trap exit TERM; echo up; sleep 1000 & wait",
    )
    space.run("wait", "--for=condition=Available", "deployment/web", "--timeout=30s")
    name = space.text("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}")
    assert "Started container busybox" in space.text("describe", "pod", name)
    until(lambda: space.logs("deploy/web") == "up\n")
    assert space.text("exec", name, "--", "hostname") == name

    space.run("scale", "deployment/web", "--replicas=3")
    space.run("rollout", "status", "deployment/web", "--timeout=30s")
    assert space.text("get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}") == "3"

    space.run("set", "image", "deployment/web", f"busybox={NEXT_IMAGE}")
    space.run("annotate", "deployment/web", "kubernetes.io/change-cause=second image")
    space.run("rollout", "status", "deployment/web", "--timeout=40s")
    assert images_of(space) == {NEXT_IMAGE}
    until(lambda: "second image" in space.text("rollout", "history", "deployment/web"))

    space.run("rollout", "undo", "deployment/web")
    space.run("rollout", "status", "deployment/web", "--timeout=40s")
    assert images_of(space) == {IMAGE}
    assert space.get("deployment", "web")["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"

    space.run("delete", "deployment", "web")
    until(lambda: not space.all("pods"))
    assert not space.all("replicasets")


def test_apply_merges_three_ways(space: Space) -> None:
    first = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"kept": "1", "dropped": "1"}}
    assert "created" in space.apply(first)
    assert "unchanged" in space.apply(first)
    space.run("patch", "configmap", "c", "--type=merge", "-p", '{"data":{"foreign":"x"}}')
    assert "configured" in space.apply({**first, "data": {"kept": "2", "added": "1"}})
    assert space.get("configmap", "c")["data"] == {"kept": "2", "added": "1", "foreign": "x"}


def test_apply_merges_lists_by_their_keys(space: Space) -> None:
    wish = deployment("d", env=[{"name": "A", "value": "1"}, {"name": "B", "value": "1"}])
    space.apply(wish)
    space.run("set", "env", "deployment/d", "C=3")
    wish["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "A", "value": "2"}]
    space.apply(wish)
    env = space.get("deployment", "d")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {item["name"]: item["value"] for item in env} == {"A": "2", "C": "3"}


def test_server_side_apply_reports_and_forces_conflicts(space: Space) -> None:
    wish = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    space.apply(wish, words=("--server-side", "--field-manager=one"))
    changed = json.dumps({**wish, "data": {"a": "2"}})
    said = space.fails("apply", "--server-side", "--field-manager=two", "-f", "-", stdin=changed)
    assert "conflict" in said and ".data.a" in said
    space.run("apply", "--server-side", "--field-manager=two", "--force-conflicts", "-f", "-", stdin=changed)
    assert space.get("configmap", "c")["data"] == {"a": "2"}


def test_explains_fields(space: Space) -> None:
    said = space.text("explain", "pod.spec.containers.livenessProbe")
    assert "periodSeconds" in said and "<Probe>" in said


def test_diff_shows_what_would_change(space: Space) -> None:
    wish = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    space.apply(wish)
    said = space.fails("diff", "-f", "-", stdin=json.dumps({**wish, "data": {"a": "2"}}))
    assert '-  a: "1"' in said and '+  a: "2"' in said


def observed(space: Space, name: str) -> bool:
    """Whether the controller has seen the newest wish."""
    found = space.get("deployment", name)
    return bool(found["status"].get("observedGeneration") == found["metadata"]["generation"])


def test_a_paused_rollout_waits_and_goes_on(space: Space) -> None:
    space.apply(deployment("d", 2))
    space.run("rollout", "status", "deployment/d", "--timeout=30s")
    space.run("rollout", "pause", "deployment/d")
    space.run("set", "image", "deployment/d", f"main={NEXT_IMAGE}")
    until(lambda: observed(space, "d"))
    assert len(space.all("replicasets")) == 1
    space.run("scale", "deployment/d", "--replicas=3")
    until(lambda: space.get("deployment", "d")["status"].get("readyReplicas") == 3)
    space.run("rollout", "resume", "deployment/d")
    space.run("rollout", "status", "deployment/d", "--timeout=40s")
    assert images_of(space) == {NEXT_IMAGE}


def test_recreate_never_runs_old_and_new_side_by_side(space: Space) -> None:
    wish = deployment("d", 2)
    wish["spec"]["strategy"] = {"type": "Recreate"}
    space.apply(wish)
    space.run("rollout", "status", "deployment/d", "--timeout=30s")
    with subprocess.Popen([*space_watch(space)], env=space.insula.env, stdout=subprocess.PIPE, text=True) as watching:
        space.run("set", "image", "deployment/d", f"main={NEXT_IMAGE}")
        space.run("rollout", "status", "deployment/d", "--timeout=40s")
        watching.terminate()
        assert watching.stdout is not None
        lines = [json.loads(line) for line in watching.stdout.read().splitlines() if line.startswith("{")]
    alive: dict[str, str] = {}
    for event in lines:
        found = event["object"]
        if event["type"] == "DELETED":
            alive.pop(found["metadata"]["name"], None)
        else:
            alive[found["metadata"]["name"]] = found["spec"]["containers"][0]["image"]
        assert len(set(alive.values())) <= 1, alive


def space_watch(space: Space) -> list[str]:
    """The words that print a namespace's pods as watch events, one a line."""
    query = f"/api/v1/namespaces/{space.name}/pods?watch=true"
    return [KUBECTL, "get", "--raw", query]


def test_a_rollout_that_cannot_succeed_exceeds_its_deadline_and_keeps_the_old_pods(space: Space) -> None:
    wish = deployment("d", 2)
    space.apply(wish)
    space.run("rollout", "status", "deployment/d", "--timeout=30s")
    wish["spec"]["progressDeadlineSeconds"] = 2
    wish["spec"]["template"]["spec"]["containers"][0] |= {"image": "nosuch:1", "imagePullPolicy": "Never"}
    space.apply(wish)
    said = space.fails("rollout", "status", "deployment/d", "--timeout=30s")
    assert "exceeded its progress deadline" in said
    found = space.get("deployment", "d")["status"]
    assert found["availableReplicas"] == 2
    assert {(c["type"], c["reason"]) for c in found["conditions"]} >= {("Progressing", "ProgressDeadlineExceeded")}
    space.run("rollout", "undo", "deployment/d")
    space.run("rollout", "status", "deployment/d", "--timeout=40s")


def test_old_revisions_are_kept_up_to_the_limit(space: Space) -> None:
    wish = deployment("d", 1)
    wish["spec"]["revisionHistoryLimit"] = 1
    for round_ in range(4):
        wish["spec"]["template"]["metadata"]["annotations"] = {"round": str(round_)}
        space.apply(wish)
        space.run("rollout", "status", "deployment/d", "--timeout=30s")
    until(lambda: len(space.all("replicasets")) == 2)
    revisions = {rs["metadata"]["annotations"]["deployment.kubernetes.io/revision"] for rs in space.all("replicasets")}
    assert revisions == {"3", "4"}


def test_a_pod_whose_labels_are_changed_leaves_its_set_and_is_replaced(space: Space) -> None:
    space.apply(deployment("d", 1))
    space.run("rollout", "status", "deployment/d", "--timeout=30s")
    name = space.all("pods")[0]["metadata"]["name"]
    space.run("label", "pod", name, "app=quarantine", "--overwrite")
    until(lambda: len(space.all("pods")) == 2)
    until(lambda: not space.get("pod", name)["metadata"].get("ownerReferences"))
    space.run("label", "pod", name, "app=d", "--overwrite")
    until(lambda: len([p for p in space.all("pods") if not p["metadata"].get("deletionTimestamp")]) == 1)


def test_waits_for_a_field_and_for_deletion(space: Space) -> None:
    space.apply(pod("p", container("c")))
    space.run("wait", "--for=jsonpath={.status.phase}=Running", "pod/p", "--timeout=20s")
    space.run("delete", "pod", "p", "--wait=false")
    space.run("wait", "--for=delete", "pod/p", "--timeout=20s")


def test_the_node_is_ready_and_described(insula: Insula) -> None:
    said = insula.run("describe", "nodes").stdout.decode()
    assert "Ready" in said and "insula://" in said and "Allocated resources" in said
