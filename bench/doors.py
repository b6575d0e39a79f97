"""Measuring one thing on Insula's API server and on kube-apiserver, one after the other in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from bench import kubepeer, population, processes
from bench.api import Server
from bench.benchmark import Budget, Row, Summary, summary
from bench.context import Context


class Figures(msgspec.Struct, frozen=True):
    """Of one server: the rate per second, latencies in seconds, the server's CPU seconds per request, the generator's share of
    a core."""

    rates: list[float]
    latencies: list[float]
    cpu_s: float
    generator: float


class Door(msgspec.Struct, frozen=True):
    """An API server under load and its processes."""

    name: str
    server: Server
    pids: Callable[[], list[int]]
    account: bool

    def cpu_s(self) -> float:
        """Seconds of CPU that it has used."""
        return processes.cpu_s(self.pids())


@contextmanager
def insula(context: Context) -> Iterator[Door]:
    """A fresh Insula, all roles in one process."""
    with context.fresh_insula() as made:
        door = Door("Insula", made.server(), lambda: processes.tree(made.pid), True)
        population.namespace(door.server, account=True)
        yield door


@contextmanager
def peer(context: Context) -> Iterator[Door | None]:
    """A fresh kube-apiserver over etcd, nothing else beside it; None where it is not installed."""
    with context.kube_peer() as made:
        if made is None:
            yield None
            return
        door = Door(f"kube-apiserver {made.version()}", made.server(), lambda: made.pids, False)
        population.namespace(door.server, account=False)
        yield door


def both(context: Context, measure: Callable[[Door], Figures]) -> tuple[Figures, Figures | None, str]:
    """Ours, the peer's, and the peer's name."""
    with insula(context) as door:
        ours = measure(door)
    with peer(context) as door_or_none:
        if door_or_none is None:
            return ours, None, ""
        return ours, measure(door_or_none), door_or_none.name


def rows(
    context: Context,
    what: str,
    measure: Callable[[Door], Figures],
    *,
    rate: tuple[Budget, ...] = (),
    latency: tuple[Budget, ...] = (),
) -> list[Row]:
    """Rate, latency and CPU per request as three rows."""
    ours, theirs, name = both(context, measure)
    absent = "" if theirs else f"no peer: {kubepeer.missing()} is not installed"
    note = f"generator took {ours.generator:.0%} of a core" + (
        f", {theirs.generator:.0%} beside the peer" if theirs else ""
    )
    made = []
    parts: tuple[tuple[str, str, Callable[[Figures], Summary], tuple[Budget, ...]], ...] = (
        (f"{what}: rate", "1/s", lambda f: summary(f.rates), rate),
        (f"{what}: latency", "ms", lambda f: summary([value * 1000 for value in f.latencies]), latency),
        (f"{what}: server CPU", "ms", lambda f: summary([f.cpu_s * 1000]), ()),
    )
    for title, unit, figure, budgets in parts:
        made.append(
            Row(
                what=title,
                unit=unit,
                insula=figure(ours),
                peer=figure(theirs) if theirs else None,
                peer_name=name,
                absent=absent,
                budgets=budgets,
                note=note if title.endswith("rate") else "",
            )
        )
    return made
