"""Results as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from bench.benchmark import Row, Summary

VERDICTS = {True: "[green]met[/green]", False: "[red]missed[/red]", None: ""}


class Result(msgspec.Struct, frozen=True):
    """One benchmark's rows, with the load that other programs put on the machine just before it; or why it failed."""

    name: str
    about: str
    load: float
    seconds: float
    rows: list[Row] = []
    fault: str = ""


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(found: Summary | None) -> str:
    """Median and 90th percentile."""
    if found is None:
        return "–"
    return number(found.p50) if found.count == 1 else f"{number(found.p50)} / {number(found.p90)}"


def machine() -> str:
    """What this was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}, {platform.machine()}"


def table(results: list[Result]) -> Table:
    """For a terminal."""
    made = Table(title=f"Insula beside its peers on {machine()}", title_justify="left")
    for name, justify in (
        ("benchmark", "left"),
        ("what", "left"),
        ("unit", "left"),
        ("Insula p50 / p90", "right"),
        ("peer p50 / p90", "right"),
        ("ratio", "right"),
        ("budget", "left"),
        ("", "left"),
    ):
        made.add_column(name, justify=justify)  # type: ignore[arg-type]
    for result in results:
        if result.fault:
            made.add_row(result.name, result.fault, "", "", "", "", "", "[red]failed[/red]", end_section=True)
        for row in result.rows:
            made.add_row(*_cells(result, row), end_section=row is result.rows[-1])
    return made


def _cells(result: Result, row: Row) -> list[str]:
    peer = f"{spread(row.peer)} ({row.peer_name})" if row.peer else row.absent or "–"
    what = f"{row.what}\n[dim]{row.note}[/dim]" if row.note else row.what
    ratio = "" if row.ratio is None else f"{number(row.ratio)} ×"
    budget = ", ".join(str(budget) for budget in row.budgets)
    return [result.name, what, row.unit, spread(row.insula), peer, ratio, budget, VERDICTS[row.met]]


def document(results: list[Result]) -> dict[str, Any]:
    """For programs: everything in the table, with verdicts."""
    return {
        "machine": machine(),
        "results": [
            {
                **msgspec.to_builtins(result),
                "rows": [{**msgspec.to_builtins(row), "ratio": row.ratio, "met": row.met} for row in result.rows],
            }
            for result in results
        ],
    }


def write(path: Path, results: list[Result]) -> None:
    """The document as a file."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document(results)), indent=2) + b"\n")
