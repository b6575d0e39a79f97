"""LIST of 10,000 pods in one answer, one request at a time."""

from __future__ import annotations

from bench import population
from bench.benchmark import AT_LEAST, AT_MOST, Benchmark, Budget, Row
from bench.context import Context
from bench.doors import Door, Figures, rows
from bench.loads.http import Settings
from bench.suite.api_get import figures


def run(context: Context) -> list[Row]:
    """The latency of one, and how many per second that makes."""
    count = context.times(10_000, 2_000)

    def measure(door: Door) -> Figures:
        population.fill(door.server, count)
        settings = Settings(
            server=door.server, method="GET", path=population.PODS, connections=1, count=context.times(10, 3), warm=1
        )
        return figures(door, settings, context.times(2, 1))

    return rows(
        context,
        f"LIST {count:,} pods",
        measure,
        rate=(Budget(AT_LEAST, 2, times=True),),
        latency=(Budget(AT_MOST, 0.5, times=True),),
    )


BENCHMARK = Benchmark("api-list", "LIST of 10,000 pods: latency, CPU", run)
