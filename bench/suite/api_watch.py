"""Watch fan-out: one object changes, 1,000 watchers, each on its own TLS connection, have to hear of it."""

from __future__ import annotations

import msgspec

from bench import kubepeer, loads, population
from bench.api import Api
from bench.benchmark import AT_MOST, Benchmark, Budget, Row, summary
from bench.context import Context
from bench.doors import Door, both
from bench.doors import Figures as DoorFigures
from bench.loads.watch import Measured, Settings

MAPS = f"/api/v1/namespaces/{population.NAMESPACE}/configmaps"


def run(context: Context) -> list[Row]:
    """From sending the change until the last watcher has it, and the server's CPU per event."""
    watchers, changes = context.times(1000, 100), context.times(30, 5)
    each: list[list[float]] = []

    def measure(door: Door) -> DoorFigures:
        api = Api(door.server)
        api.call("POST", MAPS, {"metadata": {"name": "watched"}, "data": {"key": "value"}})
        revision = api.call("GET", MAPS)["metadata"]["resourceVersion"]
        api.close()
        watch = f"{MAPS}?watch=1&resourceVersion={revision}&fieldSelector=metadata.name%3Dwatched"
        settings = Settings(
            server=door.server, watch=watch, change=f"{MAPS}/watched", watchers=watchers, changes=changes
        )
        idle = msgspec.structs.replace(settings, changes=0)
        before = door.cpu_s()
        loads.run("watch", idle, Measured)
        middle = door.cpu_s()
        found, generator = loads.run("watch", settings, Measured)
        spent = (door.cpu_s() - middle) - (middle - before)  # without what connecting costs
        each.append(found.each)
        rates = [watchers * changes / found.seconds]
        return DoorFigures(rates, found.last, spent / (watchers * changes), generator)

    ours, theirs, name = both(context, measure)
    absent = "" if theirs else f"no peer: {kubepeer.missing()} is not installed"
    note = f"generator took {ours.generator:.0%} of a core" + (
        f", {theirs.generator:.0%} beside the peer" if theirs else ""
    )
    values = [
        (
            f"a change to the last of {watchers:,} watchers",
            "ms",
            [v * 1000 for v in ours.latencies],
            theirs and [v * 1000 for v in theirs.latencies],
            (Budget(AT_MOST, 1, times=True),),
        ),
        (
            f"a change to each of {watchers:,} watchers",
            "ms",
            [v * 1000 for v in each[0]],
            [v * 1000 for v in each[1]] if theirs else None,
            (),
        ),
        ("events delivered", "1/s", ours.rates, theirs and theirs.rates, ()),
        ("server CPU per event", "µs", [ours.cpu_s * 1e6], [theirs.cpu_s * 1e6] if theirs else None, ()),
    ]
    return [
        Row(
            what=what,
            unit=unit,
            insula=summary(mine),
            peer=summary(peers) if peers else None,
            peer_name=name,
            absent=absent,
            budgets=budgets,
            note=note if index == 0 else "",
        )
        for index, (what, unit, mine, peers, budgets) in enumerate(values)
    ]


BENCHMARK = Benchmark("api-watch", "watch fan-out to 1,000 watchers", run)
