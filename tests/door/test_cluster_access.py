"""Who may what, who owns what, where things go: service accounts, mirror pods, deletion, placing, on a whole running Insula."""

from __future__ import annotations

import gc
import json
import secrets
import sys
import warnings
from collections.abc import Iterator

import pytest
from kubernetes import client as api
from kubernetes import config as api_config
from kubernetes import watch as api_watch
from kubernetes.stream import portforward, stream

from door.cluster_support import DOCKER, Insula, Space, container, deployment, insula, pod, space, until

__all__ = ["insula", "space"]
pytestmark = pytest.mark.root
FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
PROGRAM = """
import os, ssl, sys, urllib.error, urllib.request
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
request = urllib.request.Request(f"https://{host}:{port}{sys.argv[1]}")
request.add_header("Authorization", "Bearer " + os.environ["TOKEN"])
try:
    answer = urllib.request.urlopen(request, context=ssl.create_default_context(cadata=os.environ["CA"]), timeout=10)
except urllib.error.HTTPError as fault:
    answer = fault
print(answer.status, answer.read().decode())
"""


def client_pod() -> dict[str, object]:
    """A pod that has this machine's Python below /host, to speak TLS with."""
    wish = pod("p", container("c", volumeMounts=[{"name": "host", "mountPath": "/host"}]))
    wish["spec"]["volumes"] = [{"name": "host", "hostPath": {"path": "/"}}]
    return wish


def ask(space: Space, what: str) -> str:
    """What the API answers to the service account of pod `p`, asked from inside of it, its certificate checked."""
    path = f"/api/v1/namespaces/{space.name}/{what}"
    given = f'export TOKEN=$(cat {FOLDER}/token) CA="$(cat {FOLDER}/ca.crt)"'
    script = f"{given}; exec chroot /host {sys.executable} -c '{PROGRAM}' {path}"
    return space.text("exec", "p", "--", "sh", "-c", script)


def test_a_service_account_asks_the_api_from_inside_of_its_pod(space: Space) -> None:
    space.apply(client_pod())
    space.ready("p")
    assert ask(space, "pods").startswith("403 ")
    space.run("create", "role", "reader", "--verb=get,list", "--resource=pods")
    space.run("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={space.name}:default")
    said = until(lambda: answer if (answer := ask(space, "pods")).startswith("200 ") else "")
    assert '"PodList"' in said and '"name":"p"' in said.replace(": ", ":")
    assert ask(space, "secrets").startswith("403 ")


def test_a_token_is_its_account_and_dies_with_its_pod(space: Space) -> None:
    space.apply(pod("p", container("c")))
    space.ready("p")
    token = space.text("exec", "p", "--", "cat", f"{FOLDER}/token")
    server = space.insula.run("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}").stdout.decode()
    ca = space.insula.root / "data/pki/ca.crt"
    words = ("--kubeconfig=/dev/null", f"--server={server}", f"--certificate-authority={ca}", f"--token={token}")
    said = json.loads(space.run("auth", "whoami", "-o", "json", *words).stdout)["status"]["userInfo"]
    assert said["username"] == f"system:serviceaccount:{space.name}:default"
    assert said["extra"]["authentication.kubernetes.io/pod-name"] == ["p"]
    space.run("delete", "pod", "p")
    until(lambda: space.run("auth", "whoami", *words, check=None).returncode == 1)


def test_kubectl_as_an_account_without_rights_is_forbidden(space: Space) -> None:
    who = f"--as=system:serviceaccount:{space.name}:default"
    said = space.fails("get", "pods", who)
    assert f'User "system:serviceaccount:{space.name}:default" cannot list resource "pods"' in said
    assert space.run("auth", "can-i", "list", "pods", who, check=1).stdout == b"no\n"
    space.apply(pod("p", container("c")))
    space.ready("p")
    assert "forbidden" in space.fails("exec", "p", who, "--", "true").lower()
    assert "forbidden" in space.fails("logs", "p", who).lower()


@pytest.fixture
def python(insula: Insula) -> Iterator[api.CoreV1Api]:
    """The official Python client."""
    made = api_config.new_client_from_config(str(insula.kubeconfig))
    yield api.CoreV1Api(made)
    made.rest_client.pool_manager.clear()
    made.close()
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # its connections are closed by their finalizers


def test_the_python_client_creates_watches_reads_logs_and_deletes(space: Space, python: api.CoreV1Api) -> None:
    python.create_namespaced_pod(space.name, pod("p", container("c", "echo up; trap exit TERM; sleep 1000 & wait")))
    watching, phases = api_watch.Watch(), []
    for event in watching.stream(python.list_namespaced_pod, space.name, timeout_seconds=30):
        phases.append(event["object"].status.phase)
        if phases[-1] == "Running":
            watching.stop()
    assert phases[0] == "Pending" and phases[-1] == "Running"
    until(lambda: python.read_namespaced_pod_log("p", space.name) == "up\n")
    assert python.delete_namespaced_pod("p", space.name, grace_period_seconds=0).metadata.name == "p"


def test_the_python_client_execs_and_reads_an_exit_code(space: Space, python: api.CoreV1Api) -> None:
    space.apply(pod("p", container("c")))
    space.ready("p")
    talk = stream(
        python.connect_get_namespaced_pod_exec,
        "p",
        space.name,
        command=["sh", "-c", "read line; echo got $line; echo err >&2; exit 3"],
        stdin=True,
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
    )
    talk.write_stdin("in\n")
    talk.run_forever(timeout=20)
    assert (talk.read_stdout(), talk.read_stderr(), talk.returncode) == ("got in\n", "err\n", 3)
    talk.close()


def test_the_python_client_forwards_ports(space: Space, python: api.CoreV1Api) -> None:
    script = "mkdir /www; echo hello > /www/index.html; trap exit TERM; httpd -f -p 8080 -h /www & wait"
    space.apply(pod("p", container("c", script)))
    space.ready("p")

    def page() -> bytes:
        forward = portforward(python.connect_get_namespaced_pod_portforward, "p", space.name, ports="8080,9")
        line = forward.socket(8080)
        line.setblocking(True)
        line.settimeout(20)
        line.sendall(b"GET / HTTP/1.0\r\n\r\n")
        said = b""
        while data := line.recv(65536):
            said += data
        assert "failed to connect to localhost:9" in until(lambda: forward.error(9))
        line.close()
        forward.socket(9).close()
        until(lambda: not forward.connected)
        return said

    assert until(page).endswith(b"hello\n")
    bad = [("0", "a number from 1 to 65535"), ("http", "a number from 1 to 65535")]
    for ports, why in bad:
        with pytest.raises(api.ApiException, match=why):
            stream(python.connect_get_namespaced_pod_portforward, "p", space.name, ports=ports)


# --- the bridge -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")
def test_what_docker_runs_shows_as_a_mirror_pod(insula: Insula) -> None:
    name = f"m{secrets.token_hex(4)}"
    insula.docker("run", "-d", "--name", name, "--memory=64m", "busybox:1", "sh", "-c", "echo from docker; sleep 1000")
    docker = Space(insula, "docker")
    try:
        node = insula.run("get", "nodes", "-o", "name").stdout.decode().strip().removeprefix("node/")
        mirror = f"{name}-{node}"
        until(lambda: docker.run("get", "pod", mirror, check=None).returncode == 0)
        docker.ready(mirror)
        assert docker.logs(mirror) == "from docker\n"
        assert docker.text("exec", mirror, "--", "echo", "hi") == "hi"
        address = docker.get("pod", mirror)["status"]["podIP"]
        assert address == insula.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)
        docker.run("delete", "pod", mirror, "--wait=false")
        assert insula.docker("inspect", "-f", "{{.State.Running}}", name) == "true"
        insula.docker("stop", "-t", "0", name)

        def ended() -> bool:  # it is away for a moment, between its deletion and its coming back
            found = docker.run("get", "pod", mirror, "-o", "json", check=None)
            return found.returncode == 0 and json.loads(found.stdout)["status"]["phase"] in ("Failed", "Succeeded")

        until(ended)
    finally:
        insula.docker("rm", "-f", name)
    until(lambda: docker.run("get", "pod", mirror, check=None).returncode == 1)


@pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")
def test_a_mirror_that_is_deleted_comes_back(insula: Insula) -> None:
    name = f"m{secrets.token_hex(4)}"
    insula.docker("run", "-d", "--name", name, "busybox:1", "sleep", "1000")
    docker = Space(insula, "docker")
    try:
        node = insula.run("get", "nodes", "-o", "name").stdout.decode().strip().removeprefix("node/")
        mirror = f"{name}-{node}"
        until(lambda: docker.run("get", "pod", mirror, check=None).returncode == 0)
        uid = docker.get("pod", mirror)["metadata"]["uid"]
        docker.run("delete", "pod", mirror, "--wait=false")

        def back() -> bool:
            found = docker.run("get", "pod", mirror, "-o", "json", check=None)
            return found.returncode == 0 and json.loads(found.stdout)["metadata"]["uid"] != uid

        until(back)
        assert insula.docker("inspect", "-f", "{{.State.Running}}", name) == "true"
    finally:
        insula.docker("rm", "-f", name)


@pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")
def test_a_false_mirror_opens_no_container(insula: Insula, space: Space) -> None:
    """Anybody who may create pods may write the annotation; it must not lead into somebody else's container."""
    name = f"m{secrets.token_hex(4)}"
    insula.docker("run", "-d", "--name", name, "busybox:1", "sleep", "1000")
    try:
        id_ = insula.docker("inspect", "-f", "{{.Id}}", name)
        node = insula.run("get", "nodes", "-o", "name").stdout.decode().strip().removeprefix("node/")
        false = pod("p", container("container"), nodeName=node)
        false["metadata"]["annotations"] = {"kubernetes.io/config.mirror": id_}
        space.apply(false)
        assert "mirrors no container" in space.fails("exec", "p", "--", "id")
        assert "mirrors no container" in space.fails("logs", "p")
    finally:
        insula.docker("rm", "-f", name)


@pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")
def test_pods_show_in_docker_ps(insula: Insula, space: Space) -> None:
    space.apply(pod("p", container("c")))
    space.ready("p")
    assert f"k8s_c_p_{space.name}_" in insula.docker("ps", "--format", "{{.Names}}")


# --- ownership --------------------------------------------------------------------------------------------------


def test_deleting_in_the_foreground_waits_for_the_pods(space: Space) -> None:
    space.apply(deployment("d", 2))
    space.run("rollout", "status", "deployment/d", "--timeout=30s")
    space.run("delete", "deployment", "d", "--cascade=foreground")
    assert not space.all("replicasets") and not space.all("pods")


def test_deleting_as_an_orphan_leaves_the_pods_to_be_adopted(space: Space) -> None:
    space.apply(deployment("d", 2))
    space.run("rollout", "status", "deployment/d", "--timeout=30s")
    uids = {found["metadata"]["uid"] for found in space.all("pods")}
    space.run("delete", "deployment", "d", "--cascade=orphan")
    sets = space.all("replicasets")
    assert len(sets) == 1 and not sets[0]["metadata"].get("ownerReferences")
    space.apply(deployment("d", 2))
    space.run("rollout", "status", "deployment/d", "--timeout=30s")
    assert {found["metadata"]["uid"] for found in space.all("pods")} == uids
    assert space.all("replicasets")[0]["metadata"]["ownerReferences"][0]["name"] == "d"


def test_a_namespace_is_emptied_and_goes(insula: Insula) -> None:
    name = f"t-{secrets.token_hex(4)}"
    insula.run("create", "namespace", name)
    gone = Space(insula, name)
    until(lambda: gone.run("get", "serviceaccount", "default", check=None).returncode == 0)
    gone.apply(deployment("d", 2), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}})
    gone.run("rollout", "status", "deployment/d", "--timeout=30s")
    insula.run("delete", "namespace", name, "--timeout=40s")
    assert insula.run("get", "namespace", name, check=1)
    if DOCKER:
        assert f"_{name}_" not in insula.docker("ps", "-a", "--format", "{{.Names}}")


# --- placing ----------------------------------------------------------------------------------------------------


def test_a_pod_that_fits_nowhere_says_why_and_is_placed_later(space: Space) -> None:
    label = f"insula.test/{space.name}"
    node = space.insula.run("get", "nodes", "-o", "name").stdout.decode().strip()
    space.apply(pod("p", container("c"), nodeSelector={label: "yes"}))
    until(lambda: any(reason == "FailedScheduling" for reason, _ in space.events("p")))
    said = next(message for reason, message in space.events("p") if reason == "FailedScheduling")
    assert said == "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    assert "Pending" in space.text("get", "pod", "p")
    condition = space.get("pod", "p")["status"]["conditions"][0]
    assert (condition["type"], condition["reason"]) == ("PodScheduled", "Unschedulable")
    space.insula.run("label", node, f"{label}=yes")
    space.ready("p")
    space.insula.run("label", node, f"{label}-")


def test_a_pod_that_asks_for_too_much(space: Space) -> None:
    space.apply(pod("p", container("c", resources={"requests": {"cpu": "4000", "memory": "1Pi"}})))
    until(lambda: any("Insufficient cpu, 1 Insufficient memory" in message for _, message in space.events("p")))
