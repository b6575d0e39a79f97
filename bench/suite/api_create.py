"""CREATE of pods: 16 connections, every write acknowledged when it is on the disk, in both."""

from __future__ import annotations

import msgspec

from bench import population
from bench.benchmark import AT_LEAST, AT_MOST, Benchmark, Budget, Row
from bench.context import Context
from bench.doors import Door, Figures, rows
from bench.loads.http import Settings
from bench.suite.api_get import CONNECTIONS, figures


def run(context: Context) -> list[Row]:
    """Rate and latency under load. Each repetition makes its own pods."""

    def measure(door: Door) -> Figures:
        population.fill(door.server, 50)
        body = msgspec.json.encode(population.pod("c{n}")).decode()
        settings = Settings(
            server=door.server,
            method="POST",
            path=population.PODS,
            body=body,
            connections=CONNECTIONS,
            seconds=context.times(5, 2),
        )
        return figures(door, settings, context.times(3, 1))

    return rows(
        context,
        f"CREATE a pod, {CONNECTIONS} connections",
        measure,
        rate=(Budget(AT_LEAST, 1, times=True),),
        latency=(Budget(AT_MOST, 1, times=True),),
    )


BENCHMARK = Benchmark("api-create", "CREATE: rate, latency, CPU", run)
