"""python -m bench [NAME...] [--quick] [--json FILE]"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from bench import report, suite
from bench.benchmark import Benchmark
from bench.commands import CommandError
from bench.context import Context, opened
from bench.processes import load_average

console = Console(stderr=True)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--quick", is_flag=True, help="Few repetitions: a look, not a measurement.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results to FILE.")
@click.option("--list", "only_list", is_flag=True, help="List the benchmarks.")
def main(names: tuple[str, ...], quick: bool, json_file: Path | None, only_list: bool) -> None:
    """Measure Insula beside the real peers on this machine. NAMES pick benchmarks; without any, all are run.

    \b
    python -m bench
    python -m bench docker-run api-list --quick --json results.json
    """
    found = suite.load()
    if only_list:
        for benchmark in found:
            click.echo(f"{benchmark.name:16} {benchmark.about}")
        return
    picked = pick(found, names)
    signal.signal(signal.SIGTERM, _stop)
    with opened(quick=quick, console=console) as context:
        results = [measure(benchmark, context) for benchmark in picked]
    Console(width=None if sys.stdout.isatty() else 170).print(report.table(results))
    if json_file:
        report.write(json_file, results)
    sys.exit(1 if any(result.fault for result in results) else 0)


def pick(found: list[Benchmark], names: tuple[str, ...]) -> list[Benchmark]:
    """The named ones, or all. Raises UsageError for an unknown name."""
    known = {benchmark.name: benchmark for benchmark in found}
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}")
    return [known[name] for name in names] or found


def measure(benchmark: Benchmark, context: Context) -> report.Result:
    """Run one; a failure is part of the result and does not end the others."""
    console.print(f"[bold]{benchmark.name}[/bold]: {benchmark.about}", highlight=False)
    load, began = load_average(), time.monotonic()
    try:
        rows, fault = benchmark.run(context), ""
    except (CommandError, OSError, RuntimeError, ValueError) as found:
        console.print(f"{type(found).__name__}: {found}", style="red", highlight=False, markup=False)
        rows, fault = [], f"{type(found).__name__}: {str(found).strip().splitlines()[-1][:200]}"
    return report.Result(
        benchmark.name, benchmark.about, round(load, 2), round(time.monotonic() - began, 1), rows, fault
    )


def _stop(_number: int, _frame: FrameType | None) -> None:
    sys.exit(143)


if __name__ == "__main__":
    main()
