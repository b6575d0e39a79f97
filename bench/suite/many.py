"""A full machine at rest: 200 running containers on one network, and what the daemon costs then."""

from __future__ import annotations

import time

from bench import loads, processes
from bench.benchmark import AT_MOST, Benchmark, Budget, Row
from bench.commands import run as run_command
from bench.context import Context
from bench.dockerd import Dockerd
from bench.insula import IMAGE, Insula
from bench.loads.containers import Measured, Settings
from bench.suite.idle import MIB, SETTLE_S, one


def _figures(daemon: Insula | Dockerd, count: int, seconds: float) -> tuple[float, ...]:
    """Seconds until all run; MiB of the daemon with its children; share of a core in percent and KiB written while idle."""
    settings = Settings(socket=daemon.socket, image=IMAGE, command=["sleep", "1000"], count=count)
    found, _ = loads.run("containers", settings, Measured)
    time.sleep(SETTLE_S)
    before = processes.cost(processes.tree(daemon.pid))
    began = time.monotonic()
    time.sleep(seconds)
    after = processes.cost(processes.tree(daemon.pid))
    share = (after.cpu_s - before.cpu_s) / (time.monotonic() - began) * 100
    run_command(["docker", "rm", "-f", *found.ids], env=daemon.env)
    return found.seconds, after.rss_bytes / MIB, share, (after.written_bytes - before.written_bytes) / 1024


def run(context: Context) -> list[Row]:
    """One daemon after the other: both sets of containers at once would be a test of the machine."""
    count, seconds = context.times(200, 20), float(context.times(30, 3))
    ours = _figures(context.insula, count, seconds)
    theirs = _figures(context.dockerd, count, seconds) if context.dockerd else None
    titles = (
        (f"{count} containers: until all run", "s", ()),
        (f"{count} containers: resident memory of the daemon", "MiB", (Budget(AT_MOST, 150),)),
        (f"{count} containers: CPU while they sleep", "% of a core", (Budget(AT_MOST, 1),)),
        (f"{count} containers: disk writes while they sleep", "KiB", (Budget(AT_MOST, 0),)),
    )
    return [
        Row(
            what=what,
            unit=unit,
            insula=one(ours[index]),
            peer=one(theirs[index]) if theirs else None,
            peer_name="dockerd",
            absent=context.no_dockerd(),
            budgets=budgets,
        )
        for index, (what, unit, budgets) in enumerate(titles)
    ]


BENCHMARK = Benchmark("many", "200 running containers and an idle daemon", run)
