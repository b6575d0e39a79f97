"""How fast decisions are on many simulated nodes. `placements_per_second` is what the benchmark measures; the test here only
holds it to being right, for a clock says little on a busy machine."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from insula.model.resource import Resource
from insula.scheduler.columns import Columns
from insula.scheduler.needs import needs_of_pod
from insula.scheduler.place import place

ZONES = 10


def simulated_node(number: int) -> Resource:
    """A node of 32 CPUs in one of ten zones; every hundredth is cordoned, every fiftieth tainted."""
    spec: dict[str, Any] = {"unschedulable": True} if number % 100 == 99 else {}
    if number % 50 == 49:
        spec["taints"] = [{"key": "dedicated", "value": "x", "effect": "NoSchedule"}]
    name = f"node-{number:05d}"
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": f"z{number % ZONES}"}},
        "spec": spec,
        "status": {"allocatable": {"cpu": "32", "memory": "128Gi", "ephemeral-storage": "500Gi", "pods": "110"}},
    }


def simulated_pod(number: int) -> Resource:
    """A pod of one container with ordinary requests."""
    resources = {"requests": {"cpu": "250m", "memory": "512Mi"}}
    meta = {
        "name": f"pod-{number}",
        "uid": f"uid-{number}",
        "namespace": "default",
        "labels": {"app": f"a{number % 50}"},
    }
    container = {"name": "c", "image": "busybox:1", "resources": resources}
    return {"kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}


def filled(nodes: int) -> Columns:
    """Columns of so many nodes."""
    columns = Columns(nodes)
    for number in range(nodes):
        columns.set_node(simulated_node(number))
    return columns


def place_all(columns: Columns, pods: int) -> Counter[str]:
    """Read, place and count so many pods one after another; how many each node got."""
    chosen: Counter[str] = Counter()
    for number in range(pods):
        needs = needs_of_pod(simulated_pod(number))
        placement = place(columns, needs)
        columns.put(f"uid-{number}", placement.row, needs)
        chosen[placement.node] += 1
    return chosen


def placements_per_second(nodes: int = 5000, pods: int = 2000) -> float:
    """Decisions a second, reading each pod and scoring every node included."""
    columns = filled(nodes)
    place_all(columns, 50)
    began = time.perf_counter()
    place_all(columns, pods)
    return pods / (time.perf_counter() - began)


def test_many_pods_are_spread_over_all_nodes_that_may_take_them() -> None:
    chosen = place_all(filled(500), 980)
    assert "" not in chosen
    assert set(chosen.values()) == {2}
    assert len(chosen) == 490
