"""50 containers made and started side by side through the Docker API: how many per second run."""

from __future__ import annotations

from bench import loads
from bench.benchmark import AT_LEAST, Benchmark, Budget, Row, summary
from bench.commands import run as run_command
from bench.context import Context
from bench.dockerd import Dockerd
from bench.insula import IMAGE, Insula
from bench.loads.containers import Measured, Settings

COUNT = 50


def _rate(daemon: Insula | Dockerd, count: int) -> float:
    settings = Settings(socket=daemon.socket, image=IMAGE, command=["sleep", "1000"], count=count)
    found, _ = loads.run("containers", settings, Measured)
    run_command(["docker", "rm", "-f", *found.ids], env=daemon.env)
    return count / found.seconds


def run(context: Context) -> list[Row]:
    """Turn by turn; the first turn, with few containers, warms up."""
    daemons = [daemon for daemon in (context.insula, context.dockerd) if daemon is not None]
    rates: dict[str, list[float]] = {daemon.name: [] for daemon in daemons}
    for turn in range(-1, context.times(4, 1)):
        for daemon in daemons:
            rate = _rate(daemon, COUNT if turn >= 0 else 5)
            if turn >= 0:
                rates[daemon.name].append(rate)
    peers = rates.get("dockerd")
    return [
        Row(
            what=f"{COUNT} containers started side by side",
            unit="1/s",
            insula=summary(rates["Insula"]),
            peer=summary(peers) if peers else None,
            peer_name="dockerd",
            absent=context.no_dockerd(),
            budgets=(Budget(AT_LEAST, 3, times=True),),
        )
    ]


BENCHMARK = Benchmark("docker-parallel", "50 containers started side by side", run)
