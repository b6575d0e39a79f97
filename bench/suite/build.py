"""A build of ten steps through the classic endpoint, turn by turn: with nothing in the cache, and with everything in it."""

from __future__ import annotations

import random
from pathlib import Path

from bench.benchmark import AT_MOST, Benchmark, Budget, Row, summary
from bench.commands import run as run_command
from bench.commands import timed
from bench.context import Context
from bench.insula import IMAGE

NAME = "bench/built:latest"
FILES, FILE_BYTES = 50, 20_000
DOCKERFILE = """FROM {image}
ENV A=1
WORKDIR /app
COPY src /app/src
RUN echo one > /one
RUN cat /app/src/* > /all
LABEL x=y
COPY Dockerfile /app/
RUN mkdir -p /many && for i in 1 2 3 4 5 6 7 8 9; do echo $i > /many/$i; done
CMD ["sh"]
"""


def write_context(folder: Path, image: str) -> None:
    """A megabyte of files that do not compress, the same every time."""
    source = random.Random(7)
    (folder / "src").mkdir(parents=True)
    for number in range(FILES):
        (folder / "src" / f"file{number}").write_bytes(source.randbytes(FILE_BYTES))
    (folder / "Dockerfile").write_text(DOCKERFILE.format(image=image))


def run(context: Context) -> list[Row]:
    """The whole command."""
    folder = context.scratch / "build"
    write_context(folder, IMAGE)
    daemons = [daemon for daemon in (context.insula, context.dockerd) if daemon is not None]
    cold: dict[str, list[float]] = {daemon.name: [] for daemon in daemons}
    cached: dict[str, list[float]] = {daemon.name: [] for daemon in daemons}
    for taken, more, times in ((cold, ["--no-cache"], context.times(6, 2)), (cached, [], context.times(20, 3))):
        for daemon in daemons:
            run_command(["docker", "build", "-q", "-t", NAME, str(folder)], env={**daemon.env, "DOCKER_BUILDKIT": "0"})
        for _ in range(times):
            for daemon in daemons:
                argv = ["docker", "build", "-q", *more, "-t", NAME, str(folder)]
                taken[daemon.name].append(timed(argv, env={**daemon.env, "DOCKER_BUILDKIT": "0"}))
    for daemon in daemons:
        run_command(["docker", "rmi", NAME], env=daemon.env)
    return [
        _row(context, "docker build of ten steps, cold", cold),
        _row(context, "docker build of ten steps, all cached", cached),
    ]


def _row(context: Context, what: str, taken: dict[str, list[float]]) -> Row:
    peers = taken.get("dockerd")
    return Row(
        what=what,
        unit="s",
        insula=summary(taken["Insula"]),
        peer=summary(peers) if peers else None,
        peer_name="dockerd",
        absent=context.no_dockerd(),
        budgets=(Budget(AT_MOST, 0.5, times=True),),
    )


BENCHMARK = Benchmark("build", "docker build of ten steps", run)
