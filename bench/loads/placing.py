"""Decisions alone: pods placed one after another on simulated nodes in memory, every node filtered and scored each time."""

from __future__ import annotations

import sys
import time

import msgspec

from bench.loads import tell
from bench.population import node, scheduled_pod
from insula.scheduler.columns import Columns
from insula.scheduler.needs import needs_of_pod
from insula.scheduler.place import place


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`kind` is one of those of `population.scheduled_pod`."""

    nodes: int = 5000
    pods: int = 5000
    kind: str = "plain"


class Measured(msgspec.Struct, frozen=True):
    """Pods placed per second, reading the pod included."""

    rate: float


def main() -> None:
    """Read the settings, place, tell."""
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)
    columns = Columns()
    for number in range(settings.nodes):
        columns.set_node(node(str(number)))
    pods = [scheduled_pod(f"p{number}", settings.kind) for number in range(settings.pods)]
    for pod in pods:
        pod["metadata"]["uid"] = pod["metadata"]["name"]
    began, cpu = time.perf_counter(), time.process_time()
    for pod in pods:
        needs = needs_of_pod(pod)
        placement = place(columns, needs)
        if not placement.node:
            raise RuntimeError(placement.reason)
        columns.put(pod["metadata"]["uid"], placement.row, needs)
    seconds = time.perf_counter() - began
    tell(Measured(settings.pods / seconds), time.process_time() - cpu, seconds)


if __name__ == "__main__":
    main()
