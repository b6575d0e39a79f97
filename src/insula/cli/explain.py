"""What is registered by presence: a file that is there is in the list. The words of each row come from the thing itself."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from insula.cli import settings
from insula.cli.paths import Paths

Row = dict[str, Any]
LEVELS = {
    1: ("instruction set", "QEMU TCG, Bochs"),
    2: ("hardware", "KVM, ESXi, Hyper-V, Xen"),
    3: ("operating system", "Docker, LXC, OpenVZ"),
    4: ("language", "JVM, .NET, Wasm"),
    5: ("library", "Wine, WSL"),
}


class Topic(Struct, frozen=True, kw_only=True):
    """One list: what it is of, its columns, how its rows are found."""

    summary: str
    columns: tuple[str, ...]
    rows: Callable[[Paths], Sequence[Row]]


def sentence(thing: object) -> str:
    """The first sentence of a docstring, without its full stop."""
    text = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(text.split()).partition(". ")[0].rstrip(".")


def _drivers(_: Paths) -> list[Row]:
    from insula import drivers

    made = [factory(Path("/run/insula")) for factory in drivers.available().values()]
    rows = [
        {
            "name": driver.name,
            "level": driver.level,
            "summary": driver.summary,
            "capabilities": sorted(str(word) for word in driver.capabilities),
        }
        for driver in made
    ]
    return sorted(rows, key=lambda row: (row["level"], row["name"]))


def _levels(paths: Paths) -> list[Row]:
    found = _drivers(paths)
    return [
        {
            "level": level,
            "name": name,
            "known_as": examples,
            "drivers": [row["name"] for row in found if row["level"] == level],
        }
        for level, (name, examples) in LEVELS.items()
    ]


def _kinds(_: Paths) -> list[Row]:
    from insula.kinds.registry import Registry, found_in_files

    registry = Registry.builtin()
    own = {kind.gvk for kind in found_in_files()}
    return [
        {
            "kind": kind.kind,
            "api_version": kind.gvk[0],
            "name": kind.ref.plural,
            "short": list(kind.short_names),
            "namespaced": kind.namespaced,
            "verbs": list(kind.verbs),
            "behaviour": "own file" if kind.gvk in own else "row",
        }
        for kind in registry.all()
    ]


def _controllers(_: Paths) -> list[Row]:
    from insula import controllers

    return [
        {
            "name": controller.name,
            "summary": controller.summary,
            "watches": [watch.ref.plural for watch in controller.watches],
        }
        for controller in controllers.load()
    ]


def _stores(_: Paths) -> list[Row]:
    from insula import store

    rows = []
    for found in pkgutil.iter_modules(store.__path__):
        module = importlib.import_module(f"{store.__name__}.{found.name}")
        names = [name for name, thing in vars(module).items() if _is_store(thing, module.__name__)]
        rows += [{"name": found.name, "class": name, "summary": sentence(module)} for name in names]
    return rows


def _is_store(thing: object, module: str) -> bool:
    """A class of that module with the verbs of the contract, which is a protocol and none itself."""
    if not inspect.isclass(thing) or thing.__module__ != module or getattr(thing, "_is_protocol", False):
        return False
    return all(callable(getattr(thing, verb, None)) for verb in ("get", "list", "watch", "close"))


def _networks(_: Paths) -> list[Row]:
    from insula.networks.type import all_types

    return [{"name": name, "summary": kind.summary} for name, kind in sorted(all_types().items())]


def _scheduler(_: Paths) -> list[Row]:
    from insula.scheduler.filters import FILTERS
    from insula.scheduler.scores import SCORES

    filters = [("filter", step[0], None) for step in FILTERS]
    scores = [("score", step[0], step[1]) for step in SCORES]
    return [
        {"step": step, "name": function.__name__, "weight": weight, "summary": sentence(function)}
        for step, function, weight in (*filters, *scores)
    ]


def _admission(_: Paths) -> list[Row]:
    from insula.verbs.admission import STEPS

    return [{"order": place, "name": step.name, "summary": sentence(step)} for place, step in enumerate(STEPS, start=1)]


def _settings(paths: Paths) -> list[Row]:
    import msgspec

    now = msgspec.to_builtins(settings.load(paths.config))
    return [{**row, "value": now[row["name"]]} for row in settings.rows()]


def _commands(_: Paths) -> list[Row]:
    from insula.cli.main import names, summary

    return [{"name": name, "summary": summary(name)} for name in names()]


TOPICS: dict[str, Topic] = {
    "levels": Topic(
        summary="how deep isolation goes, and what serves each level here",
        columns=("level", "name", "known_as", "drivers"),
        rows=_levels,
    ),
    "drivers": Topic(
        summary="one level each: drivers/NAME", columns=("name", "level", "summary", "capabilities"), rows=_drivers
    ),
    "kinds": Topic(
        summary="the resource kinds of the Kubernetes door: kinds/NAME.py, or rows",
        columns=("name", "short", "api_version", "namespaced", "kind", "behaviour"),
        rows=_kinds,
    ),
    "controllers": Topic(
        summary="loops that act on them: controllers/NAME.py", columns=("name", "summary", "watches"), rows=_controllers
    ),
    "stores": Topic(summary="where resources are kept: store/NAME.py", columns=("name", "summary"), rows=_stores),
    "networks": Topic(
        summary="types of networks, docker network create --driver: networks/NAME.py",
        columns=("name", "summary"),
        rows=_networks,
    ),
    "scheduler": Topic(
        summary="how a node is chosen: filters in order, then weighted scores",
        columns=("step", "name", "weight", "summary"),
        rows=_scheduler,
    ),
    "admission": Topic(
        summary="what happens to a write before it is stored, in order",
        columns=("order", "name", "summary"),
        rows=_admission,
    ),
    "settings": Topic(
        summary="what the settings file may say", columns=("name", "default", "value", "help"), rows=_settings
    ),
    "commands": Topic(summary="the commands of insula", columns=("name", "summary"), rows=_commands),
}


def overview() -> list[Row]:
    """The topics themselves."""
    return [{"topic": name, "summary": topic.summary} for name, topic in TOPICS.items()]
