"""Programs that make load, each in a process of its own: `python -m bench.loads.NAME`, settings as JSON on standard input, what
it measured as JSON on standard output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bench.commands import CommandError

T = TypeVar("T")
DEADLINE_S = 600.0


class Answer(msgspec.Struct, frozen=True):
    """What every load tells beside its own result: the share of a core that it took itself while it measured."""

    result: Any
    generator_cpu: float


def run(name: str, settings: msgspec.Struct, kind: type[T]) -> tuple[T, float]:
    """Start a load and wait for it. Returns its result and its own share of a core. Raises CommandError."""
    argv = [sys.executable, "-m", f"bench.loads.{name}"]
    where = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        argv, input=msgspec.json.encode(settings), capture_output=True, cwd=where, timeout=DEADLINE_S, check=False
    )
    if done.returncode:
        raise CommandError(f"the load {name} failed: {done.stderr.decode(errors='replace')[-2000:].strip()}")
    answer = msgspec.json.decode(done.stdout, type=Answer)
    return msgspec.convert(answer.result, kind), answer.generator_cpu


def tell(result: msgspec.Struct, cpu_s: float, wall_s: float) -> None:
    """Print the answer."""
    os.write(1, msgspec.json.encode(Answer(msgspec.to_builtins(result), round(cpu_s / max(wall_s, 1e-9), 3))))


def percentiles(values: Sequence[float]) -> list[float]:
    """At most a thousand values of the same distribution: what is sent back instead of all of them."""
    ordered = sorted(values)
    if len(ordered) <= 1000:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / 999)] for i in range(1000)]
