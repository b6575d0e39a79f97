"""kill -9 of the whole daemon: at named steps and at random moments of work at both doors. Afterwards what was acknowledged is
there, what runs goes on, nothing is doubled and nothing is left over."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from fault.fault_support import DOCKER, IMAGE, Island, processes, running, until

pytestmark = [pytest.mark.root, pytest.mark.may_block]

LOOP = "trap 'exit 6' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    yield from running()


def again(island: Island) -> None:
    """Killed and started again."""
    island.kill()
    island.up()


def held(island: Island) -> dict[str, set[str]]:
    """What this Insula keeps for containers and pods, by the name of whom it is kept for."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    roots = {Path(mount).parent.name for mount in mounts if re.match(f"{island.paths.data}/rootfs/.*/merged$", mount)}
    conmons = {found.split(" -c ")[1][:64] for found in processes(str(island.folder)) if "conmon" in found}
    return {
        "roots": roots,
        "monitors": conmons,
        "namespaces": {path.name for path in (island.paths.run / "netns").iterdir()},
        "instances": {path.name for path in (island.paths.data / "engine" / "instances").glob("*")},
        "bundles": {path.name for path in (island.paths.run / "instances").iterdir()},
        "sandboxes": {path.name for path in (island.paths.run / "sandboxes").iterdir()},
        "runtime": {path.name for path in (island.paths.run / "runc").iterdir()},
    }


def containers(island: Island) -> dict[str, Any]:
    return {each["Id"]: each for each in island.docker_api("GET", "/containers/json?all=1").json}


def agrees(island: Island) -> None:
    """What is kept is kept for something that is known, and what runs has all that it needs once."""
    known = containers(island)
    up = {id for id, each in known.items() if each["State"] in ("running", "paused")}
    pods = {pod["metadata"]["uid"] for pod in island.kube_api("GET", "/api/v1/pods").json["items"]}
    kept = held(island)
    assert kept["monitors"] == up, (kept["monitors"] ^ up, {known[id]["Names"][0] for id in up - kept["monitors"]})
    assert kept["runtime"] == up
    assert up <= kept["roots"] <= set(known)
    for what in ("instances", "bundles"):
        assert kept[what] <= set(known), (what, kept[what] - set(known))
    strangers = {name for name in kept["namespaces"] | kept["sandboxes"] if name not in known} - {
        name for name in kept["namespaces"] | kept["sandboxes"] for pod in pods if pod in name
    }
    assert not strangers, strangers
    assert island.temporary() == []


def settled(island: Island, test: Callable[[Island], None], timeout_s: float = 30) -> None:
    """Until a check no longer fails."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return test(island)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


# --- named moments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["create.volumes", "start.network", "start.run", "end.driver", "remove.root"])
def test_docker_run_cut_short(island: Island, step: str) -> None:
    """`docker run -d --rm`, its end and its removal, with the daemon killed in it."""
    island.kill()
    island.up(crash_at=step)
    once = [] if step.startswith("end.") else ["--rm"]
    run = [
        "run",
        "-d",
        *once,
        "--name",
        "cut",
        "-v",
        "/data",
        "-p",
        "127.0.0.1::80",
        IMAGE,
        "sh",
        "-c",
        "sleep 0.3; exit 3",
    ]
    told = island.docker(*run, check=None)
    until(lambda: not island.alive, what=f"the crash point is reached: {told}")
    island.up()
    found = [each for each in containers(island).values() if each["Names"] == ["/cut"]]
    if step.startswith("end."):
        assert island.inspect("cut")["State"]["ExitCode"] == 3
    elif told.returncode == 0:  # acknowledged: it has run, or runs; then it goes by itself
        until(lambda: not containers(island), what="--rm is kept")
    assert len(found) <= 1
    island.docker("rm", "-fv", "cut", check=None)
    settled(island, agrees)
    assert island.docker_api("GET", "/volumes").json["Volumes"] == []
    island.docker("run", "--rm", "--name", "cut", "-p", "127.0.0.1::80", IMAGE, "true")  # the name is free again
    island.docker("network", "inspect", "bridge")


# --- random moments -----------------------------------------------------------------------------------------------


class Client(threading.Thread):
    """Works at one door until the daemon dies, and remembers what was acknowledged and what was only asked for."""

    def __init__(self, island: Island, seed: int, work: Callable[[Client], None]) -> None:
        super().__init__(daemon=True)
        self.island, self.dice, self._work = island, random.Random(seed), work
        self.there: dict[str, Any] = {}
        self.gone: set[str] = set()
        self.maybe: set[str] = set()
        self.wrong: list[Any] = []

    def run(self) -> None:
        while True:
            try:
                self._work(self)
            except (OSError, ValueError, HTTPException, AssertionError) as fault:
                if isinstance(fault, AssertionError):
                    self.wrong.append(fault)
                return

    def asked(self, key: str, method: str, path: str, body: Any = None, kube: bool = False) -> Any:
        """A request that changes `key`; until it is acknowledged nobody knows."""
        self.maybe.add(key)
        send = self.island.kube_api if kube else self.island.docker_api
        answer = send(method, path, body)
        assert answer.status < 300, (method, path, answer)
        self.maybe.discard(key)
        return answer


def run_containers(client: Client) -> None:
    """As `docker run -d` and `docker rm -f` do it."""
    name = client.island.name()
    policy = {"RestartPolicy": {"Name": client.dice.choice(["no", "always"])}, "Binds": [f"{name}v:/v"]}
    body = {
        "Image": IMAGE,
        "Cmd": ["sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.05; done"],
        "HostConfig": policy,
    }
    id = client.asked(name, "POST", f"/containers/create?name={name}", body).json["Id"]
    client.there[name] = None  # created
    client.asked(name, "POST", f"/containers/{id}/start")
    client.there[name] = client.island.inspect(name)["State"]["Pid"]
    if client.dice.random() < 0.4:
        victim = client.dice.choice(sorted(client.there))
        client.there.pop(victim)
        client.asked(victim, "DELETE", f"/containers/{victim}?force=1")
        client.gone.add(victim)


def make_things(client: Client) -> None:
    """Volumes and networks."""
    name = client.island.name()
    kind = client.dice.choice(["volumes", "networks"])
    key = f"{kind}/{name}"
    client.asked(key, "POST", f"/{kind}/create", {"Name": name})
    client.there[key] = True
    if client.dice.random() < 0.4:
        client.there.pop(key)
        client.asked(key, "DELETE", f"/{kind}/{name}")
        client.gone.add(key)


def make_pods(client: Client) -> None:
    """Pods, of which some are deleted again."""
    name = client.island.name()
    spec = {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "600"]}],
    }
    pods = "/api/v1/namespaces/default/pods"
    client.asked(name, "POST", pods, {"metadata": {"name": name}, "spec": spec}, kube=True)
    client.there[name] = True
    time.sleep(0.1)
    if client.dice.random() < 0.4:
        victim = client.dice.choice(sorted(client.there))
        client.there.pop(victim)
        client.asked(victim, "DELETE", f"{pods}/{victim}", kube=True)
        client.gone.add(victim)


def load_images(client: Client) -> None:
    """`docker load` of an image, and its removal."""
    name = f"loaded:{client.island.name()}"
    client.asked(name, "POST", f"/images/{IMAGE}/tag?repo=loaded&tag={name.partition(':')[2]}")
    client.there[name] = True
    archive = client.island.docker_api("GET", f"/images/{name}/get").body
    answer = client.island.docker_api("POST", "/images/load", archive, Content_Type="application/x-tar")
    assert answer.status == 200 and b'"error"' not in answer.body, answer


def commit_images(client: Client) -> None:
    """`docker commit` of a container that runs."""
    tag = client.island.name()
    client.asked(f"committed:{tag}", "POST", f"/commit?container=base&repo=committed&tag={tag}", {})
    client.there[f"committed:{tag}"] = True


def join_networks(client: Client) -> None:
    """A container that runs joins networks and leaves them."""
    name = client.island.name()
    client.asked(f"made/{name}", "POST", "/networks/create", {"Name": name})
    client.asked(name, "POST", f"/networks/{name}/connect", {"Container": "base"})
    client.there[name] = True
    if client.dice.random() < 0.5:
        client.there.pop(name)
        client.asked(name, "POST", f"/networks/{name}/disconnect", {"Container": "base"})
        client.gone.add(name)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random(island: Island, seed: int) -> None:
    dice = random.Random(seed)
    replicas = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": f"d{seed}"}, "spec": {
        "replicas": 3, "selector": {"matchLabels": {"app": f"d{seed}"}},
        "template": {"metadata": {"labels": {"app": f"d{seed}"}}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "600"]}],
        }}}}  # fmt: skip
    base = "echo kept > /mark; trap 'exit 6' TERM; while :; do sleep 0.05; done"
    island.docker("run", "-d", "--name", "base", IMAGE, "sh", "-c", base)
    works = [run_containers, run_containers, make_things, make_pods, load_images, commit_images, join_networks]
    clients = [Client(island, seed * 10 + number, work) for number, work in enumerate(works)]
    for client in clients:
        client.start()
    time.sleep(dice.uniform(0.1, 0.6))
    made = island.kube_api("POST", "/apis/apps/v1/namespaces/default/deployments", replicas)
    assert made.status == 201, made
    time.sleep(dice.uniform(0.0, 1.2))
    island.kill()
    for client in clients:
        client.join(30)
    island.up()
    assert [client.wrong for client in clients if client.wrong] == []
    for client in clients[:2]:
        check_containers(island, client)
    check_things(island, clients[2])
    check_images(island, clients[4])
    check_commits(island, clients[5])
    check_joined(island, clients[6])
    check_pods(island, clients[3], f"d{seed}")
    settled(island, agrees)
    clear(island)


def check_containers(island: Island, client: Client) -> None:
    known = {each["Names"][0].lstrip("/"): each for each in containers(island).values()}
    for name, pid in client.there.items():
        assert name in known, name
        if pid is not None and name not in client.maybe:
            state = island.inspect(name)["State"]
            assert (state["Status"], state["Pid"]) == ("running", pid), (name, state)
            Path(f"/proc/{pid}").stat()
    assert not (client.gone & set(known))
    names = [each["Names"][0] for each in containers(island).values()]
    assert len(names) == len(set(names))


def check_things(island: Island, client: Client) -> None:
    volumes = {each["Name"] for each in island.docker_api("GET", "/volumes").json["Volumes"]}
    networks = [each["Name"] for each in island.docker_api("GET", "/networks").json]
    there = {f"volumes/{name}" for name in volumes} | {f"networks/{name}" for name in networks}
    assert set(client.there) - client.maybe <= there, set(client.there) - there
    assert not (client.gone & there), client.gone & there
    assert len(networks) == len(set(networks))


def check_images(island: Island, client: Client) -> None:
    tags = {tag for each in island.docker_api("GET", "/images/json").json for tag in each["RepoTags"]}
    assert set(client.there) - client.maybe <= tags
    island.docker("run", "--rm", "--network", "none", IMAGE, "true")


def check_commits(island: Island, client: Client) -> None:
    found = island.text("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "committed").splitlines()
    assert set(client.there) - client.maybe <= set(found) <= set(client.there) | client.maybe
    for name in found[:3]:
        assert island.text("run", "--rm", "--network", "none", name, "cat", "/mark") == "kept"
    if found:
        island.docker("rmi", *found)


def check_joined(island: Island, client: Client) -> None:
    joined = set(island.inspect("base")["NetworkSettings"]["Networks"]) - {"bridge"}
    assert set(client.there) - client.maybe <= joined
    assert not (client.gone & joined)
    addresses = {each["IPAddress"] for each in island.inspect("base")["NetworkSettings"]["Networks"].values()}
    shown = island.text("exec", "base", "ip", "-4", "-o", "addr", "show", "scope", "global").splitlines()
    assert {line.split()[3].partition("/")[0] for line in shown} == addresses


def check_pods(island: Island, client: Client, deployment: str) -> None:
    def check(_: Island) -> None:
        pods = {
            pod["metadata"]["name"]: pod
            for pod in island.kube_api("GET", "/api/v1/namespaces/default/pods").json["items"]
        }
        for name in client.there:
            assert name in pods, (name, "lost")
            assert pods[name]["status"].get("phase") == "Running" or name in client.maybe, pods[name]["status"]
        assert not (client.gone & set(pods)), client.gone & set(pods)
        own = [pod for name, pod in pods.items() if name.startswith(f"{deployment}-")]
        assert len(own) == 3 and all(pod["status"].get("phase") == "Running" for pod in own), [
            pod["status"] for pod in own
        ]
        sets = island.kube_api(
            "GET", f"/apis/apps/v1/namespaces/default/replicasets?labelSelector=app={deployment}"
        ).json
        assert len(sets["items"]) == 1
        labels = [each["Labels"].get("io.kubernetes.pod.uid") for each in containers(island).values()]
        uids = [uid for uid in labels if uid]
        wanted = [pod["metadata"]["uid"] for pod in pods.values() if not mirrored(pod)]
        assert sorted(uids) == sorted(wanted), (len(uids), len(wanted))  # each pod's container once, and no other

    settled(island, check, 40)


def mirrored(pod: Any) -> bool:
    return "kubernetes.io/config.mirror" in (pod["metadata"].get("annotations") or {})


def clear(island: Island) -> None:
    """Remove all, through the doors; nothing is left."""
    island.kubectl("delete", "deploy,rs,pod", "--all", "--grace-period=1", "--timeout=30s")
    for each in containers(island).values():
        assert island.docker_api("DELETE", f"/containers/{each['Id']}?force=1&v=1").status in (204, 404, 409)
    until(lambda: not containers(island))
    for name in island.text("network", "ls", "-q", "-f", "type=custom").split():
        island.docker("network", "rm", name)
    island.docker("volume", "prune", "-af")

    def empty(_: Island) -> None:
        assert {what: things for what, things in held(island).items() if things} == {}

    settled(island, empty)


# --- what was running ---------------------------------------------------------------------------------------------


def test_what_runs_is_taken_back_whole(island: Island) -> None:
    """Logs without a gap, exec, attach, stop with its exit code, restart policies, ends that nobody saw."""
    start = ("run", "-d", "--network", "none", "--name")
    island.docker(*start, "talks", IMAGE, "sh", "-c", LOOP)
    island.docker(*start, "ends", IMAGE, "sh", "-c", "sleep 1; echo last words; exit 9")
    island.docker("run", "--rm", *start[1:], "goes", IMAGE, "sleep", "1")
    island.docker(*start, "again", "--restart", "on-failure:5", IMAGE, "sh", "-c", "sleep 1.5; exit 9")
    island.docker(*start, "stopped", "--restart", "unless-stopped", IMAGE, "sleep", "600")
    island.docker("stop", "-t", "0", "stopped")
    island.docker(*start, "paused", IMAGE, "sleep", "600")
    island.docker("pause", "paused")
    before = {name: island.inspect(name)["State"]["Pid"] for name in ("talks", "paused")}
    published = island.text("run", "-d", "--name", "serves", "-p", "127.0.0.1::80", IMAGE, "httpd", "-f", "-h", "/etc")
    assert published
    island.kill()
    time.sleep(1.6)
    island.up()
    try:
        for name, pid in before.items():
            assert island.inspect(name)["State"]["Pid"] == pid
        ended = island.inspect("ends")["State"]
        assert (ended["Status"], ended["ExitCode"]) == ("exited", 9)
        assert island.text("logs", "ends") == "last words"
        assert island.docker("inspect", "goes", check=None).returncode == 1
        until(lambda: island.inspect("again")["RestartCount"] >= 1)
        assert island.inspect("stopped")["State"]["Status"] == "exited"
        assert island.inspect("paused")["State"]["Paused"]
        assert island.docker("exec", "-i", "talks", "cat", input=b"in and out").stdout == b"in and out"
        port = island.text("port", "serves", "80").rpartition(":")[2]
        fetched = subprocess.run(
            ["busybox", "wget", "-qO-", f"http://127.0.0.1:{port}/hostname"], capture_output=True, check=True
        )
        assert fetched.stdout.decode().strip() == island.inspect("serves")["Config"]["Hostname"]
        again(island)  # twice does no harm
        numbers = [int(line) for line in island.text("logs", "talks").split()]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 20
        attached = island.popen(DOCKER, "attach", "--sig-proxy=false", "talks", stdout=subprocess.PIPE)
        assert attached.stdout is not None
        first = int(attached.stdout.readline())
        assert first >= len(numbers)
        began = time.monotonic()
        island.docker("stop", "-t", "20", "talks")
        assert time.monotonic() - began < 10
        assert attached.wait(10) == 6
        attached.stdout.close()
        assert island.inspect("talks")["State"]["ExitCode"] == 6
        assert island.text("wait", "talks") == "6"
    finally:
        clear(island)


def test_helpers_killed_under_it(island: Island) -> None:
    """kill -9 of a container's first process and of its monitor: an end is told, the policy starts it anew, nothing is left."""
    island.docker("run", "-d", "--name", "plain", IMAGE, "sleep", "600")
    island.docker("run", "-d", "--name", "policy", "--restart", "always", IMAGE, "sleep", "600")
    for name in ("plain", "policy"):
        os.kill(island.inspect(name)["State"]["Pid"], signal.SIGKILL)
    until(lambda: island.inspect("plain")["State"]["Status"] == "exited")
    assert island.inspect("plain")["State"]["ExitCode"] == 137
    until(lambda: island.inspect("policy")["State"]["Running"] and island.inspect("policy")["RestartCount"] == 1)
    island.docker("start", "plain")
    for name in ("plain", "policy"):
        id = island.inspect(name)["Id"]
        (monitor,) = [found for found in processes(id) if "conmon" in found]
        os.kill(int(monitor.split()[0]), signal.SIGKILL)
    until(lambda: not island.inspect("plain")["State"]["Running"], what="the loss of the monitor is noticed")
    until(lambda: island.inspect("policy")["State"]["Running"] and island.inspect("policy")["RestartCount"] == 2)
    island.docker("start", "plain")
    assert island.docker("exec", "plain", "echo", "fine").stdout == b"fine\n"
    monitors = {name: island.inspect(name)["Id"] for name in ("plain", "policy")}
    island.kill()  # the same while nobody looks
    for id in monitors.values():
        (monitor,) = [found for found in processes(id) if "conmon" in found]
        os.kill(int(monitor.split()[0]), signal.SIGKILL)
    island.up()
    until(lambda: not island.inspect("plain")["State"]["Running"])
    until(lambda: island.inspect("policy")["State"]["Running"])
    settled(island, agrees)
    clear(island)


def test_down_leaves_workloads_and_down_all_leaves_nothing(island: Island) -> None:
    base = island.folder
    island.docker("network", "create", "own")
    island.docker(
        "run", "-d", "--name", "c", "--network", "own", "-p", "127.0.0.1::80", "-v", "vol:/v", IMAGE, "sleep", "600"
    )
    island.kubectl("run", "p", f"--image={IMAGE}", "--image-pull-policy=Never", "--", "sleep", "600")
    island.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=30s")
    pid = island.inspect("c")["State"]["Pid"]
    island.down()
    assert not island.alive
    Path(f"/proc/{pid}").stat()
    assert set(island.traces()) == {"mounts", "interfaces", "control groups", "tables", "processes"}
    island.up()
    assert island.inspect("c")["State"]["Pid"] == pid
    island.kill()
    island.insula("down", "--all")
    assert island.traces() == {}
    assert not Path(f"/proc/{pid}").exists()
    island.up()
    assert island.folder == base
    assert island.inspect("c")["State"]["Status"] == "exited"
    assert "vol" in island.text("volume", "ls", "-q").split()
    island.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=30s")
    clear(island)
