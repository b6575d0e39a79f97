"""What the API servers are filled with: pods that no scheduler takes, in a namespace of their own."""

from __future__ import annotations

from typing import Any

import msgspec

from bench import loads
from bench.api import Api, Server
from bench.commands import CommandError, until
from bench.loads.http import Measured, Settings

NAMESPACE = "bench"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


def pod(name: str, *, scheduler: str = "nobody") -> dict[str, Any]:
    """A pod as people write them."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "bench", "tier": "backend"}},
        "spec": {
            "schedulerName": scheduler,
            "containers": [
                {
                    "name": "main",
                    "image": "insula/busybox",
                    "command": ["sleep", "1000"],
                    "env": [{"name": "MODE", "value": "bench"}, {"name": "PEER", "value": "none"}],
                    "ports": [{"containerPort": 8080}],
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                    "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 5},
                }
            ],
        },
    }


def namespace(server: Server, *, account: bool) -> None:
    """Make the namespace; with `account` wait for its service account, which pods need where that admission is on."""
    api = Api(server)
    try:
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}}, accept=(409,))
        if account:
            path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
            until(lambda: api.call("GET", path, accept=(404,))["kind"] == "ServiceAccount", "the service account")
    finally:
        api.close()


def fill(server: Server, count: int, *, first: int = 0, connections: int = 16) -> tuple[Measured, float]:
    """Create pods `p0`, `p1`, ... Returns what it took, and the generator's share of a core. Raises CommandError."""
    body = msgspec.json.encode(pod("p{n}")).decode()
    settings = Settings(
        server=server, method="POST", path=PODS, body=body, count=count, first=first, connections=connections
    )
    found, cpu = loads.run("http", settings, Measured)
    if found.errors:
        raise CommandError(f"{found.errors} of {found.count} pods were refused")
    return found, cpu


SELECTOR = {"bench/simulated": "yes"}


def node(number: str) -> dict[str, Any]:
    """A simulated node: nothing runs behind it. `number` may be the load's counter."""
    amounts = {"cpu": "32", "memory": "256Gi", "ephemeral-storage": "1000Gi", "pods": "250"}
    labels = {**SELECTOR, "kubernetes.io/hostname": f"n{number}", "topology.kubernetes.io/zone": f"zone-{number[-1]}"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"n{number}", "labels": labels},
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Simulated", "message": "simulated"}],
        },
    }


def scheduled_pod(name: str, kind: str = "plain") -> dict[str, Any]:
    """A pod for simulated nodes. `plain` asks for CPU and memory, `spread` also for an even spread over zones, `apart` also for a
    node without another of its kind. Raises KeyError for another kind."""
    made = pod(name, scheduler="default-scheduler")
    made["spec"]["nodeSelector"] = SELECTOR
    group = {"matchLabels": {"app": "bench"}}
    spread = {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": group,
    }
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": group}
    extra: dict[str, dict[str, Any]] = {
        "plain": {},
        "spread": {"topologySpreadConstraints": [spread]},
        "apart": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}},
    }
    made["spec"].update(extra[kind])
    return made


def fill_nodes(server: Server, count: int) -> None:
    """Create simulated nodes `n0`, `n1`, ... and say that they are ready. Raises CommandError."""
    made = node("{n}")
    made["metadata"]["labels"]["topology.kubernetes.io/zone"] = "zone-{n}"
    status = {"status": made.pop("status")}
    for method, path, body in (("POST", "/api/v1/nodes", made), ("PATCH", "/api/v1/nodes/n{n}/status", status)):
        text = msgspec.json.encode(body).decode()
        found, _ = loads.run(
            "http", Settings(server=server, method=method, path=path, body=text, count=count), Measured
        )
        if found.errors:
            raise CommandError(f"{found.errors} of {found.count} nodes were refused")
