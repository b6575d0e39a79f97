"""One file per benchmark; each exports `BENCHMARK`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from bench.benchmark import Benchmark


def load() -> list[Benchmark]:
    """Every benchmark, in the order of the files' names."""
    modules = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return [importlib.import_module(f"bench.suite.{name}").BENCHMARK for name in modules]
