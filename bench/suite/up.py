"""From `insula up` to a Ready node: the first start of all, which makes keys and a store, and the starts after it."""

from __future__ import annotations

import time

from bench.api import Api
from bench.benchmark import AT_MOST, Benchmark, Budget, Row, summary
from bench.commands import until
from bench.context import Context
from bench.insula import Insula


def _ready(api: Api) -> bool:
    nodes = api.call("GET", "/api/v1/nodes")["items"]
    found = [c for node in nodes for c in (node.get("status") or {}).get("conditions") or () if c["type"] == "Ready"]
    return any(condition["status"] == "True" for condition in found)


def _start(insula: Insula) -> float:
    began = time.perf_counter()
    insula.start()
    api = Api(insula.server())
    until(lambda: _ready(api), "a ready node", every_s=0.005)
    took = time.perf_counter() - began
    api.close()
    return took


def _first(context: Context) -> float:
    insula = Insula(context.new_root())
    try:
        return _start(insula)
    finally:
        insula.stop()


def _again(context: Context, count: int) -> list[float]:
    insula = Insula(context.new_root())
    try:
        insula.start()
        insula.stop()
        taken = []
        for _ in range(count):
            taken.append(_start(insula))
            insula.stop()
        return taken
    finally:
        insula.stop()


def run(context: Context) -> list[Row]:
    """The whole command, with the start of Python, until GET shows Ready=True."""
    first = [_first(context) for _ in range(context.times(5, 2))]
    again = _again(context, context.times(10, 2))
    budget = (Budget(AT_MOST, 1.5),)
    return [
        Row(what="insula up to a Ready node, first start", unit="s", insula=summary(first), budgets=budget),
        Row(what="insula up to a Ready node, later starts", unit="s", insula=summary(again), budgets=budget),
    ]


BENCHMARK = Benchmark("up", "insula up to a Ready node", run)
