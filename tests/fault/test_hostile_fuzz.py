"""Random requests over every route of both doors, from fixed seeds: no 5xx that is not a refusal, every error in the form of
its dialect, no request that hangs, nothing unforeseen in the daemon's log, and the daemon unharmed."""
# ruff: noqa: E501 - tables of requests

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from fault.fault_support import IMAGE, Island, running, unharmed
from insula.api.docker.app import NOUNS

pytestmark = [pytest.mark.root, pytest.mark.may_block]

TIMEOUT_S = 10.0
NAMES = [
    "run", "stop", "vol", "net", "busybox", "insula/busybox:latest", "none", "bridge", "host", "", "..", "../..", "%2e%2e%2f",
    "%00", "a%2fb", "%ff%fe", "a" * 300, "x" * 6000, "-1", "%C3%A9", "%F0%9F%98%80", "a%20b", "sha256:", "sha256:" + "0" * 64,
    "@", "a:b:c", "busybox@sha256:0", "{}", "*", "%25", "%22", "run%00", ".", "%0d%0aX:%20y", "default", "kube-system", "A",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**40, 1e308, 0.5, "", "\0", "a/b", "../../etc", "x" * 5000,
    "\ud800", "é", "%s%n", "1", "-1", "0x10", "[]", [], {}, [[]], [None], [{}], {"": ""}, {"a": None}, {"a": "b"}, ["a"],
    ["\0"], "/", "/..", ":", "::", "a:b:c:d:e", "::1", "300.1.1.1", "10.0.0.0/33", "10.0.0.0/0", "ff:ff:ff:ff:ff:ff", "0/tcp",
    "99999/tcp", "80/xyz", "1-99999/tcp", "1e400", "100Ei", "-5Gi", "1n", "2020-13-45T99:99:99Z", "IntOrString", "$(A)", "~",
]  # fmt: skip
QUERY = [
    "", "1", "0", "-1", "true", "x", "99999999999999999999", "%00", "%ff", "{", "{}", "[]", '{"name":{"a":true}}',
    '{"name":["a"]}', '{"status":["x"]}', '{"label":"x"}', '{"id":5}', "a/b", "..", "x" * 3000, "1e9", "nan",
    "2020-01-01T00:00:00Z", "9223372036854775807", "-5m", "[[", '{"name":["("]}', "inf", "a==b", "a in (b", "!a", "a notin ()",
    "metadata.name=x", "spec.nodeName!=", ",,,", "a=b,c", "=", "eyJ2IjoxfQ", "Strict", "Foreground", "All", "NotOlderThan",
]  # fmt: skip
GARBAGE = [
    b"", b"{", b"[", b"\xff\xfe\x00", b"null", b"[]", b"5", b'"x"', b'{"a":' * 3000, b"[" * 200_000, b'{"a":1e999}',
    b'{"Image":"\\ud800"}', b'{"Image":"busybox","Image":5}', b"\0" * 100, b"{}" + b" " * 1000 + b"x", b"k8s\0", b"k8s\0\x0a\xff",
    b"a: &a [*a]", b"a: b: c", b"- " * 5000, b"!!python/name:os.system", b"\xef\xbb\xbf{}", b"---\n---\n", b"? {a: b}\n: c",
    b'[{"op":"replace"}]', b'[{"op":"test","path":"/a/~2","value":1}]', b'[{"op":"copy","from":"","path":"/metadata/x"}]' * 1,
    b'[{"op":"add","path":"/metadata/labels/a","value":{}}]', b'{"$patch":"delete"}', b'{"metadata":{"$retainKeys":[5]}}',
    b'{"spec":{"containers":[{"$patch":"replace"}]}}', b'{"spec":{"$setElementOrder/containers":5}}',
]  # fmt: skip


class Dice:
    """Everything random, from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.pick: Callable[[Any], Any] = self._random.choice

    def often(self, part: float) -> bool:
        return self._random.random() < part

    def query(self, names: list[str], least: int = 0) -> str:
        chosen = [self.pick(names) for _ in range(max(least, self.pick([0, 0, 1, 1, 2, 3])))]
        values = [self.pick(QUERY) for _ in chosen]
        pairs = [
            f"{name}={value if '%' in value else quote(value, safe='')}"
            for name, value in zip(chosen, values, strict=True)
        ]
        return "?" + "&".join(pairs) if pairs else ""

    def mutated(self, value: Any) -> Any:
        """The value with one to three places changed."""
        value = json.loads(json.dumps(value))
        places = [place for place in _places(value) if place]
        for _ in range(self.pick([1, 1, 1, 2, 3])):
            self._change(value, self.pick(places))
        return value

    def _change(self, value: Any, place: tuple[Any, ...]) -> None:
        try:
            for key in place[:-1]:
                value = value[key]
            if self.often(0.1) and isinstance(value, dict):
                value[self.pick(["x" * 2000, "\0", "../x", "", "a/b", "80/tcp", "/", "nope"])] = value.pop(place[-1])
            else:
                value[place[-1]] = self.pick(VALUES)
        except (KeyError, IndexError, TypeError):  # an earlier change has taken it away
            pass


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pairs:
        yield from _places(each, (*place, key))


class Line:
    """A connection that is kept while it can be; of a stream that goes on only the head counts."""

    def __init__(self, connect: Callable[[float], Any]) -> None:
        self._http = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        self._http.connect = lambda: setattr(self._http, "sock", connect(TIMEOUT_S))  # type: ignore[method-assign]

    def ask(self, method: str, target: str, body: bytes | None, kind: str) -> tuple[int, bytes]:
        """Status and, of an error, the body; status 0 for no answer."""
        used = self._http.sock is not None
        try:
            self._http.putrequest(method, target, skip_accept_encoding=True)
            if body is not None:
                self._http.putheader("Content-Type", kind)
                self._http.putheader("Content-Length", str(len(body)))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was read
                self._http.endheaders(body)
            answer = self._http.getresponse()
            data = answer.read(200_000) if answer.status >= 400 or answer.length is not None else b""
            if not answer.isclosed():
                self._http.close()
            return answer.status, data
        except http.client.RemoteDisconnected as fault:
            self._http.close()
            return self.ask(method, target, body, kind) if used else (0, repr(fault).encode())
        except (OSError, http.client.HTTPException) as fault:
            self._http.close()
            return 0, repr(fault).encode()

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    yield from running()


# --- the Docker door ----------------------------------------------------------------------------------------------

DOCKER_QUERY = [
    "all",
    "limit",
    "size",
    "filters",
    "force",
    "v",
    "link",
    "stream",
    "one-shot",
    "signal",
    "t",
    "condition",
    "h",
    "w",
    "stdout",
    "stderr",
    "stdin",
    "logs",
    "since",
    "until",
    "timestamps",
    "tail",
    "details",
    "detachKeys",
    "path",
    "noOverwriteDirNonDir",
    "container",
    "repo",
    "tag",
    "comment",
    "author",
    "pause",
    "changes",
    "fromSrc",
    "message",
    "platform",
    "name",
    "names",
    "quiet",
    "noprune",
    "digests",
    "shared-size",
    "manifests",
    "driver",
    "scope",
    "type",
    "verbose",
    "ps_args",
    "dangling",
    "term",
]
CONTAINER = {
    "Hostname": "h", "Domainname": "d", "User": "0", "AttachStdin": False, "AttachStdout": True, "AttachStderr": True,
    "ExposedPorts": {"80/tcp": {}}, "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": ["A=b"], "Cmd": ["true"],
    "Image": "busybox", "Volumes": {"/v": {}}, "WorkingDir": "/tmp", "Entrypoint": None, "NetworkDisabled": False,
    "MacAddress": "", "Labels": {"a": "b"}, "StopSignal": "SIGTERM", "StopTimeout": 3, "Shell": ["sh"],
    "HostConfig": {
        "Binds": ["/tmp:/b:ro"], "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}}, "NetworkMode": "bridge",
        "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}, "AutoRemove": False, "VolumesFrom": [],
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "ConsoleSize": [10, 20], "Annotations": {"a": "b"},
        "CapAdd": ["NET_ADMIN"], "CapDrop": ["CHOWN"], "CgroupnsMode": "", "Dns": ["1.1.1.1"], "DnsOptions": ["ndots:1"],
        "DnsSearch": ["x.y"], "ExtraHosts": ["a:1.2.3.4"], "GroupAdd": ["5"], "IpcMode": "", "Links": None,
        "OomScoreAdj": 0, "PidMode": "", "Privileged": False, "PublishAllPorts": False, "ReadonlyRootfs": False,
        "SecurityOpt": ["no-new-privileges"], "Tmpfs": {"/t": "size=1m"}, "UTSMode": "", "ShmSize": 1048576,
        "Sysctls": {"net.core.somaxconn": "64"}, "Runtime": "", "CpuShares": 2, "Memory": 33554432, "NanoCpus": 500000000,
        "CgroupParent": "", "BlkioWeight": 0, "CpuPeriod": 0, "CpuQuota": 0, "CpusetCpus": "0", "CpusetMems": "",
        "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/n", "CgroupPermissions": "rwm"}],
        "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": None, "OomKillDisable": False, "PidsLimit": 50,
        "Ulimits": [{"Name": "core", "Soft": 10, "Hard": 20}], "MaskedPaths": ["/proc/x"], "ReadonlyPaths": ["/proc/y"],
        "Mounts": [
            {"Type": "volume", "Source": "vol", "Target": "/m", "ReadOnly": True,
             "VolumeOptions": {"NoCopy": True, "Labels": {}, "DriverConfig": {"Name": "local", "Options": {}}, "Subpath": ""}},
            {"Type": "tmpfs", "Target": "/t2", "TmpfsOptions": {"SizeBytes": 1000, "Mode": 511}},
            {"Type": "bind", "Source": "/tmp", "Target": "/b2", "BindOptions": {"Propagation": "rprivate"}},
        ],
    },
    "NetworkingConfig": {"EndpointsConfig": {"net": {"IPAMConfig": {"IPv4Address": ""}, "Aliases": ["al"], "MacAddress": ""}}},
}  # fmt: skip
BODIES: dict[str, Any] = {
    "/containers/create": CONTAINER,
    "/containers/{id}/update": {
        "Memory": 33554432, "CpuShares": 5, "PidsLimit": 5, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "NanoCpus": 1000, "CpusetCpus": "0", "CpusetMems": "0",
    },
    "/containers/{id}/exec": {
        "AttachStdin": False, "AttachStdout": True, "AttachStderr": True, "DetachKeys": "", "Tty": False, "Env": ["A=b"],
        "Cmd": ["true"], "Privileged": False, "User": "", "WorkingDir": "/", "ConsoleSize": [1, 2],
    },
    "/exec/{id}/start": {"Detach": True, "Tty": False, "ConsoleSize": [1, 2]},
    "/networks/create": {
        "Name": "nn", "Driver": "bridge", "Internal": False, "Attachable": False, "EnableIPv4": True, "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": {}, "Config": [
            {"Subnet": "10.199.0.0/24", "Gateway": "10.199.0.1", "IPRange": "10.199.0.0/25",
             "AuxiliaryAddresses": {"a": "10.199.0.9"}}]},
        "Options": {"com.docker.network.bridge.name": "x"}, "Labels": {"a": "b"},
    },
    "/networks/{id}/connect": {
        "Container": "run",
        "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.1.1.1"}, "Aliases": ["a"], "MacAddress": ""},
    },
    "/networks/{id}/disconnect": {"Container": "run", "Force": True},
    "/volumes/create": {
        "Name": "vv", "Driver": "local", "DriverOpts": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}, "Labels": {"a": "b"},
    },
    "/commit": {"Hostname": "x", "Env": ["a=b"], "Cmd": ["x"], "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}},
    "/auth": {"username": "a", "password": "b", "serveraddress": "127.0.0.1:1"},
}  # fmt: skip
# these wait, stream without an end, clear everything away, or go out to a registry, which is what they are for
NOT_DOCKER = re.compile(r"/(wait|attach|events|prune|push|stats|auth)\b|images/create|/restart|/stop$")


def docker_requests(dice: Dice, count: int) -> Iterator[tuple[str, str, str, bytes | None]]:
    """Method, pattern, target, body."""
    routes = [
        route for noun in NOUNS if not noun.__name__.endswith("refused") for route in noun.ROUTES
        if not NOT_DOCKER.search(route.path)
    ]  # fmt: skip
    writing = [route for route in routes if route.path in BODIES]
    for _ in range(count):
        route = dice.pick(writing if dice.often(0.4) else routes)
        if route.path == "/images/{name*}" and route.method == "DELETE":
            continue
        path = re.sub(r"\{\w+\*?\}", lambda _: dice.pick(NAMES[:5] if dice.often(0.5) else NAMES), route.path)
        body = None
        if route.method in ("POST", "PUT", "DELETE") and dice.often(0.9):
            mutate = route.path in BODIES and dice.often(0.85)
            body = json.dumps(dice.mutated(BODIES[route.path])).encode() if mutate else dice.pick(GARBAGE)
        version = dice.pick(["", "/v1.44", "/v1.50", "/v1.24", "/v1.47"])
        yield route.method, route.path, version + path + dice.query(DOCKER_QUERY), body


@pytest.mark.parametrize("seed", [1, 2])
def test_docker(island: Island, seed: int) -> None:
    for name, more in (("run", ("sleep", "600")), ("stop", ("true",))):
        island.docker("rm", "-fv", name, check=None)
        island.docker("run", "-d", "--name", name, IMAGE, *more)
    island.docker("volume", "create", "vol", check=None)
    if not island.text("network", "ls", "-q", "-f", "name=net"):
        island.docker("network", "create", "net")
    wrong: list[Any] = []
    with unharmed(island), contextlib.closing(Line(island.docker_socket)) as line:
        for method, pattern, target, body in docker_requests(Dice(seed), 700):
            status, answer = line.ask(method, target, body, "application/json")
            unreachable = status == 503 and b"dial tcp" in answer  # a registry, which random names lead to
            if not (200 <= status < 500 or status == 501 or unreachable) or not _docker_form(method, status, answer):
                wrong.append((status, answer[:300], method, target[:300], body[:1500] if body else body))
            if pattern == "/containers/create" and status == 201:
                wrong += start_all(island)
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"
    assert island.tracebacks() == []


def _docker_form(method: str, status: int, answer: bytes) -> bool:
    if status < 400 or method == "HEAD":
        return True
    try:
        return set(json.loads(answer)) == {"message"}
    except ValueError:
        return False


def start_all(island: Island) -> list[Any]:
    """What was created also starts, or says why not; and goes away."""
    wrong = []
    for each in island.docker_api("GET", '/containers/json?all=1&filters={"status":["created"]}').json:
        answer = island.docker_api("POST", f"/containers/{each['Id']}/start")
        if answer.status >= 500 and not re.search(rb"sysctl|rlimit|oom_score|PID from pipe", answer.body):
            wrong.append((answer, island.docker_api("GET", f"/containers/{each['Id']}/json").body[:3000]))
        answer = island.docker_api("DELETE", f"/containers/{each['Id']}?force=1&v=1")
        if answer.status != 204:
            wrong.append(answer)
    return wrong


# --- the Kubernetes door ------------------------------------------------------------------------------------------

META = {"name": "x", "labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": [], "ownerReferences": []}
POD = {
    "containers": [
        {"name": "c", "image": "busybox", "command": ["true"], "ports": [{"containerPort": 80, "protocol": "TCP", "name": "p"}],
         "env": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
         "resources": {"limits": {"cpu": "1", "memory": "64Mi"}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}],
         "livenessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 5}, "securityContext": {"runAsUser": 5}}],
    "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}], "restartPolicy": "Never", "nodeSelector": {"none": "none"},
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["5"]}]}]}}},
    "tolerations": [{"key": "a", "operator": "Exists"}], "topologySpreadConstraints": [], "hostAliases": [],
}  # fmt: skip
CORE = "/api/v1/namespaces/default/"
APPS = "/apis/apps/v1/namespaces/default/"
OBJECTS: dict[str, Any] = {
    f"{CORE}configmaps": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": META, "data": {"a": "b"}, "binaryData": {"c": "ZA=="}},
    f"{CORE}secrets": {"apiVersion": "v1", "kind": "Secret", "metadata": META, "type": "Opaque", "data": {"a": "YQ=="}},
    f"{CORE}pods": {"apiVersion": "v1", "kind": "Pod", "metadata": META, "spec": POD},
    f"{CORE}services": {
        "apiVersion": "v1", "kind": "Service", "metadata": META,
        "spec": {"selector": {"a": "b"}, "type": "NodePort", "ports": [{"port": 80, "targetPort": "p", "nodePort": 30080}]}},
    f"{APPS}deployments": {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": META,
        "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"rollingUpdate": {"maxSurge": "25%"}},
                 "template": {"metadata": {"labels": {"a": "b"}}, "spec": {**POD, "restartPolicy": "Always"}}}},
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions": {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "ws.x.io"},
        "spec": {"group": "x.io", "scope": "Namespaced", "names": {"plural": "ws", "singular": "w", "kind": "W"},
                 "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
                     "type": "object", "properties": {"spec": {"type": "object", "properties": {
                         "a": {"type": "string", "pattern": "^a+$", "maxLength": 5}, "n": {"type": "integer"}}}}}}}]}},
    "/apis/kubevirt.io/v1/namespaces/default/virtualmachines": {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": META,
        "spec": {"runStrategy": "Halted", "template": {"spec": {
            "domain": {"cpu": {"cores": 1}, "memory": {"guest": "64Mi"}, "devices": {"disks": [{"name": "d", "disk": {"bus": "virtio"}}],
                       "interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}], "volumes": [{"name": "d", "containerDisk": {"image": "x"}}]}}}},
    "/apis/rbac.authorization.k8s.io/v1/clusterroles": {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": META,
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]},
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "x"}}},
    f"{CORE}pods/x/binding": {"apiVersion": "v1", "kind": "Binding", "metadata": META, "target": {"kind": "Node", "name": "x"}},
    f"{CORE}pods/x/eviction": {
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": META,
        "deleteOptions": {"gracePeriodSeconds": 5, "preconditions": {"uid": "x"}}},
    f"{CORE}serviceaccounts/default/token": {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["a"], "expirationSeconds": 3600}},
}  # fmt: skip
KUBE_QUERY = [
    "limit",
    "continue",
    "labelSelector",
    "fieldSelector",
    "resourceVersion",
    "resourceVersionMatch",
    "dryRun",
    "fieldManager",
    "fieldValidation",
    "force",
    "gracePeriodSeconds",
    "propagationPolicy",
    "pretty",
    "allowWatchBookmarks",
    "sendInitialEvents",
    "orphanDependents",
    "container",
    "tailLines",
    "sinceSeconds",
    "limitBytes",
    "previous",
]
SUBRESOURCES = [
    "",
    "/status",
    "/scale",
    "/log",
    "/eviction",
    "/binding",
    "/exec",
    "/portforward",
    "/ephemeralcontainers",
    "/nope",
]
PATCHES = ["merge-patch+json", "strategic-merge-patch+json", "json-patch+json", "apply-patch+yaml", "x"]
OTHER_PATHS = [
    "/api", "/apis", "/api/v1", "/apis/apps", "/apis/nope/v1/x", "/openapi/v2", "/openapi/v3", "/openapi/v3/apis/apps/v1",
    "/version", "/healthz", "/livez/x", "/readyz", "/metrics", "/logs", "/", "//", "/api/v1/", "/api//v1", "/api/v1/watch/pods",
    "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/x/start", "/api/v1/nodes/x/proxy/y",
]  # fmt: skip


def kube_requests(dice: Dice, count: int) -> Iterator[tuple[str, str, bytes | None, str]]:
    """Method, target, body, content type."""
    for _ in range(count):
        if dice.often(0.1):
            path = dice.pick(OTHER_PATHS) + dice.pick(["", "", "/", "/%2e%2e", "/%00"])
            yield dice.pick(["GET", "POST", "OPTIONS"]), path + dice.query(KUBE_QUERY), None, "application/json"
            continue
        where = dice.pick(list(OBJECTS))
        body = json.dumps(dice.mutated(OBJECTS[where])).encode() if dice.often(0.85) else dice.pick(GARBAGE)
        method = dice.pick(["POST", "POST", "POST", "PUT", "PATCH", "PATCH", "GET", "DELETE"])
        name = "" if method == "POST" and dice.often(0.9) else "/" + (dice.pick(NAMES) if dice.often(0.4) else "x")
        kind = dice.pick(
            ["application/json"] * 6 + ["application/yaml", "application/vnd.kubernetes.protobuf", "text/html"]
        )
        if method == "PATCH":
            kind = "application/" + dice.pick(PATCHES)
        query = dice.query(KUBE_QUERY)
        if method == "GET" and dice.often(0.1):
            query += ("&" if query else "?") + "watch=true&timeoutSeconds=1"
        yield method, where + name + dice.pick(SUBRESOURCES if dice.often(0.2) else [""]) + query, body, kind


@pytest.mark.parametrize("seed", [11, 12])
def test_kubernetes(island: Island, seed: int) -> None:
    wrong: list[Any] = []
    with unharmed(island, grown_mib=120), contextlib.closing(Line(island.kube_socket)) as line:
        for method, target, body, kind in kube_requests(Dice(seed), 400):
            status, answer = line.ask(method, target, None if method == "GET" else body, kind)
            if not (200 <= status < 500 or b"the agent of node" in answer) or (
                status >= 400 and not _status_form(status, answer)
            ):
                wrong.append((status, answer[:300], method, target[:300], kind, body[:1500] if body else body))
        island.kubectl(
            "delete", "crd,deploy,pod,svc,cm,secret,vm", "-A", "--all", "--wait=false", "--force", check=None
        )
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"
    assert island.tracebacks() == []


def _status_form(status: int, answer: bytes) -> bool:
    try:
        found = json.loads(answer)
        return (found["kind"], found["status"], found["code"]) == ("Status", "Failure", status) and bool(
            found["message"]
        )
    except (ValueError, KeyError, TypeError):
        return False
