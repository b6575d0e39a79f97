"""kill -9 of a whole Insula while pods start, stop and roll; `down`, and `down --all`, then `up`. Afterwards everything
converges, nothing is doubled or lost."""

from __future__ import annotations

import random
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from door.cluster_support import DOCKER, KUBECTL, NEXT_IMAGE, Insula, Space, container, deployment, pod, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
MOUNT = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
EMPTY = {"volumes": [{"name": "v", "emptyDir": {}}]}


@pytest.fixture(scope="module")
def insula() -> Iterator[Insula]:
    """An Insula of this file's own: others would not like it to be killed."""
    made = Insula.begun()
    yield made
    made.stop()


@pytest.fixture
def space(insula: Insula) -> Iterator[Space]:
    """A namespace."""
    name = f"f-{secrets.token_hex(4)}"
    insula.run("create", "namespace", name)
    made = Space(insula, name)
    until(lambda: made.run("get", "serviceaccount", "default", check=None).returncode == 0)
    yield made
    insula.run("delete", "pods", "-n", name, "--all", "--force", "--grace-period=0", "--wait=false", check=None)
    insula.run("delete", "namespace", name, "--timeout=60s", check=None, timeout_s=90)


def instances(space: Space) -> list[str]:
    """Names of this namespace's running containers, as the engine knows them."""
    if DOCKER is None:
        return []
    listed = space.insula.docker("ps", "--format", "{{.Names}}").splitlines()
    return sorted(name for name in listed if f"_{space.name}_" in name)


def crash(insula: Insula) -> None:
    """kill -9 and start again."""
    insula.kill()
    insula.up()


def staying(space: Space) -> list[Any]:
    """Pods that are not ending."""
    return [found for found in space.all("pods") if not found["metadata"].get("deletionTimestamp")]


def settled(space: Space, pods: int) -> bool:
    """Whether so many pods are ready, with one running container each, and nothing else of them is left."""
    found = space.all("pods")
    ready = [p for p in found if all(c["ready"] for c in p["status"].get("containerStatuses") or [{"ready": False}])]
    return len(found) == len(ready) == pods and (DOCKER is None or len(instances(space)) == pods)


def test_what_runs_goes_on_as_the_same_process(space: Space) -> None:
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1}
    space.apply(pod("p", container("c", "echo up; while :; do sleep 1; done", readinessProbe=probe)))
    space.ready("p")
    before = space.status("p", "c")
    since = next(c["lastTransitionTime"] for c in space.get("pod", "p")["status"]["conditions"] if c["type"] == "Ready")
    crash(space.insula)
    assert space.text("exec", "p", "--", "echo", "hi") == "hi"
    assert space.logs("p") == "up\n"
    time.sleep(1.5)
    after = space.status("p", "c")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    assert since == next(
        c["lastTransitionTime"] for c in space.get("pod", "p")["status"]["conditions"] if c["type"] == "Ready"
    )
    space.run("delete", "pod", "p")


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_killed_while_pods_start(space: Space, delay_s: float) -> None:
    space.apply(deployment("d", 4))
    time.sleep(delay_s)
    crash(space.insula)
    until(lambda: settled(space, 4), 60)
    assert [c["restartCount"] for p in space.all("pods") for c in p["status"]["containerStatuses"]] == [0] * 4
    assert len(space.all("replicasets")) == 1


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.3])
def test_killed_while_pods_stop(space: Space, delay_s: float) -> None:
    space.apply(deployment("d", 4))
    until(lambda: settled(space, 4), 60)
    space.run("delete", "deployment", "d", "--wait=false")
    time.sleep(delay_s)
    crash(space.insula)
    until(lambda: not space.all("pods") and not instances(space), 60)


@pytest.mark.parametrize("delay_s", [0.1, 0.5])
def test_killed_in_the_middle_of_a_rollout(space: Space, delay_s: float) -> None:
    space.apply(deployment("d", 4))
    until(lambda: settled(space, 4), 60)
    space.run("set", "image", "deployment/d", f"main={NEXT_IMAGE}")
    time.sleep(delay_s)
    crash(space.insula)
    space.run("rollout", "status", "deployment/d", "--timeout=60s", timeout_s=90)
    until(lambda: settled(space, 4), 60)
    assert {p["spec"]["containers"][0]["image"] for p in staying(space)} == {NEXT_IMAGE}
    assert len(space.all("replicasets")) == 2


def test_killed_again_and_again_at_any_moment(space: Space) -> None:
    chance = random.Random(20260101)
    for size in (3, 1, 5, 2):
        space.apply(deployment("d", size))
        time.sleep(chance.uniform(0, 0.6))
        crash(space.insula)
    until(lambda: settled(space, 2), 90)


def test_a_container_that_ended_meanwhile_is_restarted_once_and_its_log_is_kept(space: Space) -> None:
    again = "test -e /v/f && while :; do sleep 1; done"
    script = f"echo run $(cat /proc/sys/kernel/random/uuid); {again}; touch /v/f; sleep 2; exit 3"
    space.apply(pod("p", container("c", script, **MOUNT), **EMPTY))
    until(lambda: "running" in space.status("p", "c").get("state", {}) and space.logs("p"))
    first = space.logs("p")
    space.insula.kill()
    time.sleep(3)
    space.insula.up()
    until(lambda: space.status("p", "c")["restartCount"] == 1 and "running" in space.status("p", "c")["state"])
    assert space.status("p", "c")["lastState"]["terminated"]["exitCode"] == 3
    assert space.logs("p", "--previous") == first
    until(lambda: space.logs("p") and space.logs("p") != first)


def test_a_pod_that_ended_meanwhile_shows_how(space: Space) -> None:
    space.apply(pod("p", container("c", "sleep 1; echo bye; exit 4"), restartPolicy="Never"))
    until(lambda: "running" in space.status("p", "c").get("state", {}))
    space.insula.kill()
    time.sleep(2)
    space.insula.up()
    ended = space.phase("p", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], space.logs("p")) == (4, "bye\n")


def test_a_pod_that_was_deleted_while_a_client_followed_its_log(space: Space) -> None:
    space.apply(pod("p", container("c", "while :; do echo x; sleep 0.1; done")))
    space.ready("p")
    following = subprocess.Popen(
        [KUBECTL, "-n", space.name, "logs", "-f", "p"],
        env=space.insula.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert following.stdout is not None and following.stdout.readline() == b"x\n"
    crash(space.insula)
    following.stdout.read()
    following.wait(20)
    following.stdout.close()
    space.run("delete", "pod", "p", "--grace-period=1")


def test_volumes_follow_their_config_map_after_a_crash(space: Space) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "1"}}
    volume = {"volumes": [{"name": "v", "configMap": {"name": "m"}}]}
    space.apply(config, pod("p", container("c", **MOUNT), **volume))
    space.ready("p")
    crash(space.insula)
    space.apply({**config, "data": {"a": "2"}})
    until(lambda: space.text("exec", "p", "--", "cat", "/v/a") == "2")


def test_down_leaves_pods_running_and_up_takes_them_back(space: Space) -> None:
    space.apply(pod("p", container("c", "echo up; while :; do sleep 1; done")))
    space.ready("p")
    before = space.status("p", "c")["containerID"]
    space.insula.command("down")
    space.insula.up()
    assert space.status("p", "c")["containerID"] == before
    assert space.text("exec", "p", "--", "echo", "hi") == "hi"


def test_down_all_then_up_is_like_a_reboot(space: Space) -> None:
    memory = {"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}]}
    init = container("i", "echo made > /v/f", **MOUNT)
    space.apply(
        pod("always", container("c", "cat /v/f; while :; do sleep 1; done", **MOUNT), initContainers=[init], **memory),
        pod("willing", container("c"), restartPolicy="Never"),
        pod("stubborn", container("c", "trap '' TERM; while :; do sleep 1; done"), restartPolicy="Never"),
        pod("done", container("c", "echo once"), restartPolicy="Never"),
    )
    space.ready("always", "willing", "stubborn")
    assert space.phase("done", "Succeeded")
    space.insula.command("down", "--all")
    assert str(space.insula.root) not in Path("/proc/self/mountinfo").read_text()
    space.insula.up()
    until(
        lambda: (
            space.status("always", "c").get("restartCount") == 1 and "running" in space.status("always", "c")["state"]
        ),
        60,
    )
    until(lambda: space.logs("always", "-c", "c") == "made\n")
    assert space.phase("willing", "Succeeded", "Failed")["status"]["phase"] == "Succeeded"
    assert space.phase("stubborn", "Succeeded", "Failed")["status"]["phase"] == "Failed"
    assert [space.status(name, "c")["restartCount"] for name in ("willing", "stubborn")] == [0, 0]
    assert space.get("pod", "done")["status"]["phase"] == "Succeeded"
    assert space.status("done", "c")["restartCount"] == 0
