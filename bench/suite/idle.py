"""What each daemon costs when nothing happens: memory of all of its processes, CPU and disk writes over some seconds."""

from __future__ import annotations

import time

from bench import processes
from bench.benchmark import AT_MOST, Benchmark, Budget, Row, Summary, summary
from bench.commands import run as run_command
from bench.context import Context
from bench.dockerd import Dockerd
from bench.insula import Insula
from bench.suite.docker_run import ARGV

SETTLE_S = 5.0
MIB = 2**20


def _watch(daemon: Insula | Dockerd, seconds: float) -> tuple[processes.Cost, float, float]:
    """(cost at the end, share of a core in percent, bytes written) of the idle time."""
    before = processes.cost(processes.tree(daemon.pid))
    began = time.monotonic()
    time.sleep(seconds)
    after = processes.cost(processes.tree(daemon.pid))
    share = (after.cpu_s - before.cpu_s) / (time.monotonic() - began) * 100
    return after, share, float(after.written_bytes - before.written_bytes)


def run(context: Context) -> list[Row]:
    """A daemon that has just run one container, with its images; Insula with all roles and one ready node."""
    seconds = float(context.times(60, 5))
    daemons = [daemon for daemon in (context.insula, context.dockerd) if daemon is not None]
    for daemon in daemons:
        run_command(ARGV, env=daemon.env)
    time.sleep(SETTLE_S)
    found = {daemon.name: _watch(daemon, seconds) for daemon in daemons}
    figures = {
        name: (cost.rss_bytes / MIB, cost.pss_bytes / MIB, cpu, written / 1024)
        for name, (cost, cpu, written) in found.items()
    }
    titles = (
        ("resident memory (RSS) of all processes", "MiB", (Budget(AT_MOST, 150),)),
        ("proportional memory (PSS) of all processes", "MiB", ()),
        (f"CPU over {seconds:.0f} idle seconds", "% of a core", (Budget(AT_MOST, 1),)),
        (f"disk writes over {seconds:.0f} idle seconds", "KiB", (Budget(AT_MOST, 0),)),
    )
    return [
        Row(
            what=what,
            unit=unit,
            insula=one(figures["Insula"][index]),
            peer=one(figures["dockerd"][index]) if "dockerd" in figures else None,
            peer_name="dockerd + containerd",
            absent=context.no_dockerd(),
            budgets=budgets,
        )
        for index, (what, unit, budgets) in enumerate(titles)
    ]


def one(value: float) -> Summary:
    """A single measurement."""
    return summary([value])


BENCHMARK = Benchmark("idle", "memory, CPU and disk writes when nothing happens", run)
