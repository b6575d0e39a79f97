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
