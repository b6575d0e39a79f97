"""From the start of `kubectl run` until a watch shows the pod Ready, the image being present."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.api import Api
from bench.benchmark import AT_MOST, Benchmark, Budget, Row, summary
from bench.commands import CommandError, until
from bench.context import Context
from bench.insula import IMAGE

PODS = "/api/v1/namespaces/default/pods"


def kubectl() -> str:
    """The client: of this virtual environment or of the path. Raises CommandError."""
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        raise CommandError("kubectl is not installed")
    return found


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(found["type"] == "Ready" and found["status"] == "True" for found in conditions)


def _first_moments(events: Iterator[dict[str, Any]], name: str, began: float) -> tuple[float, float]:
    """Seconds from `began` until the pod is seen, and until it is Ready."""
    seen = 0.0
    for event in events:
        if event["object"].get("metadata", {}).get("name") == name:
            seen = seen or time.perf_counter() - began
            if _is_ready(event["object"]):
                return seen, time.perf_counter() - began
    raise CommandError(f"the watch ended before {name} was ready")


def _one(context: Context, api: Api, name: str) -> tuple[float, float]:
    insula = context.insula
    argv = [kubectl(), "--kubeconfig", str(insula.kubeconfig), "--cache-dir", str(context.scratch / "kubectl-cache")]
    argv += ["run", name, f"--image={IMAGE}", "--image-pull-policy=IfNotPresent", "--", "sleep", "1000"]
    revision = api.call("GET", f"{PODS}?limit=1")["metadata"]["resourceVersion"]
    with api.watch(f"{PODS}?watch=1&resourceVersion={revision}") as events:
        began = time.perf_counter()
        command = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            taken = _first_moments(events, name, began)
        finally:
            _, words = command.communicate(timeout=60)
            if command.returncode:
                raise CommandError(f"kubectl run failed: {words.decode(errors='replace')}")
    api.call("DELETE", f"{PODS}/{name}?gracePeriodSeconds=0")
    until(lambda: api.call("GET", f"{PODS}/{name}", accept=(404,))["kind"] == "Status", f"no {name}")
    return taken


def run(context: Context) -> list[Row]:
    """One after the other; the first ones warm kubectl's discovery cache."""
    api = Api(context.insula.server())
    try:
        taken = [_one(context, api, f"ready-{number}") for number in range(2 + context.times(30, 5))]
    finally:
        api.close()
    kept = taken[2:]
    return [
        Row(
            what="kubectl run to Ready, image present",
            unit="ms",
            insula=summary([ready * 1000 for _, ready in kept]),
            budgets=(Budget(AT_MOST, 300),),
        ),
        Row(
            what="of which: pod created to Ready",
            unit="ms",
            insula=summary([(ready - seen) * 1000 for seen, ready in kept]),
            note="the rest is kubectl's own start and its request",
        ),
    ]


BENCHMARK = Benchmark("pod-ready", "kubectl run to Ready", run)
