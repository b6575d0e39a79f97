"""The whole command `docker run --rm IMAGE true`, the same client and image on both daemons, turn by turn."""

from __future__ import annotations

from bench.benchmark import AT_MOST, Benchmark, Budget, Row, summary
from bench.commands import timed
from bench.context import Context
from bench.insula import IMAGE

ARGV = ["docker", "run", "--rm", IMAGE, "true"]


def run(context: Context) -> list[Row]:
    """Interleaved, so that whatever else the machine does meets both alike."""
    ours, theirs = context.insula, context.dockerd
    taken: dict[str, list[float]] = {ours.name: [], "dockerd": []}
    for turn in range(-2, context.times(30, 5)):
        for daemon in (ours, theirs):
            if daemon is not None:
                took = timed(ARGV, env=daemon.env)
                if turn >= 0:
                    taken[daemon.name].append(took * 1000)
    return [
        Row(
            what="docker run --rm IMAGE true, whole command",
            unit="ms",
            insula=summary(taken[ours.name]),
            peer=summary(taken["dockerd"]) if theirs else None,
            peer_name="dockerd",
            absent=context.no_dockerd(),
            budgets=(Budget(AT_MOST, 0.35, times=True),),
        )
    ]


BENCHMARK = Benchmark("docker-run", "docker run --rm IMAGE true", run)
