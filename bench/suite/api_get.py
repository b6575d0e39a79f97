"""GET of one pod: 16 connections that ask again as soon as they are answered, TLS, all objects in place."""

from __future__ import annotations

import msgspec

from bench import loads, population
from bench.benchmark import AT_LEAST, AT_MOST, Benchmark, Budget, Row
from bench.context import Context
from bench.doors import Door, Figures, rows
from bench.loads.http import Measured, Settings

CONNECTIONS = 16


def figures(door: Door, settings: Settings, repeats: int) -> Figures:
    """Repeat a load and put its figures together. Raises RuntimeError when answers were errors."""
    rates, latencies, generator = [], [], []
    count, before = 0, door.cpu_s()
    for turn in range(repeats):
        numbered = msgspec.structs.replace(settings, first=turn * 1_000_000)
        found, cpu = loads.run("http", numbered, Measured)
        if found.errors:
            raise RuntimeError(f"{found.errors} of {found.count} answers of {door.name} were errors")
        rates.append(found.count / found.seconds)
        latencies += found.latencies
        generator.append(cpu)
        count += found.count + settings.warm
    return Figures(rates, latencies, (door.cpu_s() - before) / count, sum(generator) / len(generator))


def run(context: Context) -> list[Row]:
    """Rate and latency under load."""

    def measure(door: Door) -> Figures:
        population.fill(door.server, 100)
        settings = Settings(
            server=door.server,
            method="GET",
            path=f"{population.PODS}/p7",
            connections=CONNECTIONS,
            seconds=context.times(5, 2),
            warm=50,
        )
        return figures(door, settings, context.times(3, 1))

    return rows(
        context,
        f"GET one pod, {CONNECTIONS} connections",
        measure,
        rate=(Budget(AT_LEAST, 1, times=True),),
        latency=(Budget(AT_MOST, 1, times=True),),
    )


BENCHMARK = Benchmark("api-get", "GET: rate, latency, CPU", run)
