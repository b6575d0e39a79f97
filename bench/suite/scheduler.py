"""Placements per second on 5,000 simulated nodes, every node scored: decisions in memory, and pods bound through an API server,
beside kube-scheduler at the same kube-apiserver."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import msgspec

from bench import doors, kubepeer, loads, population
from bench.api import Api, Server
from bench.benchmark import AT_LEAST, Benchmark, Budget, Row, Summary, summary
from bench.commands import CommandError
from bench.context import Context
from bench.kubepeer import KubePeer
from bench.loads.http import Measured as Requests
from bench.loads.http import Settings as HttpSettings
from bench.loads.placing import Measured, Settings


def _decisions(context: Context, nodes: int, kind: str) -> Summary:
    """Kinds that look at other pods are decided more slowly, so that fewer of them say as much in the same time."""
    plain, rates = kind == "plain", []
    for _ in range(context.times(3 if plain else 2, 1)):
        settings = Settings(nodes=nodes, pods=context.times(5000 if plain else 1000, 500 if plain else 100), kind=kind)
        rates.append(loads.run("placing", settings, Measured)[0].rate)
    return summary(rates)


def _create(server: Server, count: int) -> None:
    body = msgspec.json.encode(population.scheduled_pod("p{n}")).decode()
    settings = HttpSettings(server=server, method="POST", path=population.PODS, body=body, count=count)
    found, _ = loads.run("http", settings, Requests)
    if found.errors:
        raise CommandError(f"{found.errors} of {found.count} pods were refused")


def _bound(server: Server, count: int, begin: Callable[[], object]) -> tuple[float, float]:
    """Begin something once a watch is open. Seconds from there, and from the first binding, to the last one."""
    api = Api(server)
    revision = api.call("GET", f"{population.PODS}?limit=1")["metadata"]["resourceVersion"]
    bound: set[str] = set()
    with api.watch(f"{population.PODS}?watch=1&resourceVersion={revision}") as events:
        began = time.perf_counter()
        begin()
        first = 0.0
        for event in events:
            if event["object"]["spec"].get("nodeName"):
                bound.add(event["object"]["metadata"]["name"])
                first = first or time.perf_counter()
            if len(bound) >= count:
                break
    api.close()
    if len(bound) < count:
        raise CommandError(f"the watch ended when {len(bound)} of {count} pods were bound")
    end = time.perf_counter()
    return end - began, end - first


def _on_insula(context: Context, nodes: int, pods: int) -> float:
    """Pods per second from the first request to the last binding, made and bound at the same time."""
    with doors.insula(context) as door:
        population.fill_nodes(door.server, nodes)
        with _in_background(lambda: _create(door.server, pods)) as begin:
            return pods / _bound(door.server, pods, begin)[0]


@contextmanager
def _in_background(work: Callable[[], None]) -> Iterator[Callable[[], object]]:
    with ThreadPoolExecutor(1) as pool:
        started = []
        yield lambda: started.append(pool.submit(work))
        for future in started:
            future.result()


def _at_kube(peer: KubePeer, pods: int, start: Callable[[], Callable[[], None]]) -> float:
    """Pods per second that a scheduler binds, from its first binding to its last; the pods wait before it starts."""
    server, api = peer.server(), Api(peer.server())
    api.call("DELETE", f"{population.PODS}?gracePeriodSeconds=0")
    _create(server, pods)
    stops: list[Callable[[], None]] = []
    try:
        _, seconds = _bound(server, pods, lambda: stops.append(start()))
    finally:
        for stop in stops:
            stop()
        api.close()
    return (pods - 1) / seconds


def _start_ours(server: Server) -> Callable[[], None]:
    process = subprocess.Popen([sys.executable, "-m", "bench.loads.scheduler"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(server))
    process.stdin.close()

    def stop() -> None:
        process.terminate()
        process.wait(30)

    return stop


def _start_theirs(peer: KubePeer) -> Callable[[], None]:
    peer.start_scheduler()
    return peer.stop_scheduler


def _side_by_side(context: Context, nodes: int, pods: int) -> tuple[list[float], list[float], str] | None:
    with context.kube_peer() as peer:
        if peer is None:
            return None
        population.namespace(peer.server(), account=False)
        population.fill_nodes(peer.server(), nodes)
        ours, theirs = [], []
        for _ in range(context.times(2, 1)):
            theirs.append(_at_kube(peer, pods, lambda: _start_theirs(peer)))
            ours.append(_at_kube(peer, pods, lambda: _start_ours(peer.server())))
        return ours, theirs, peer.version()


def run(context: Context) -> list[Row]:
    """Decisions of three kinds of pods, then real bindings."""
    nodes, pods = context.times(5000, 500), context.times(1000, 200)
    made = [
        Row(
            what=f"decisions on {nodes:,} nodes, {what}",
            unit="pods/s",
            insula=_decisions(context, nodes, kind),
            budgets=(Budget(AT_LEAST, 2000),) if kind == "plain" else (),
        )
        for kind, what in (("plain", "plain pods"), ("spread", "spread over zones"), ("apart", "one per node"))
    ]
    found = _side_by_side(context, nodes, pods)
    if found is not None:
        made.append(
            Row(
                what=f"{pods:,} waiting pods bound on {nodes:,} nodes at one kube-apiserver",
                unit="pods/s",
                insula=summary(found[0]),
                peer=summary(found[1]),
                peer_name=f"kube-scheduler {found[2]}",
                budgets=(Budget(AT_LEAST, 5, times=True),),
                note="both schedulers as own processes; the API server sets the limit of the faster one",
            )
        )
    made.append(
        Row(
            what=f"{pods:,} pods created and bound on {nodes:,} nodes",
            unit="pods/s",
            insula=summary([_on_insula(context, nodes, pods)]),
            absent="" if found else f"no peer: {kubepeer.missing()} is not installed",
            note="the whole of Insula in one process",
        )
    )
    return made


BENCHMARK = Benchmark("scheduler", "placements per second on 5,000 simulated nodes", run)
