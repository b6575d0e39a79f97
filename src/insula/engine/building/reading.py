"""What can be said of a Dockerfile without building it: what a context must hold, what a target offers. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from insula.engine.building.contract import ArgInfo, ContextWish, Location, Outline, StageInfo, Warning
from insula.engine.building.mountwords import Mount, parse_mount
from insula.engine.building.planning import Plan, location_of
from insula.errors import Invalid
from insula.images.dockerfile.instructions import Arg, Command, Copy, Dockerfile, Run, Step
from insula.images.dockerfile.words import expand

_JSON_RULE = "JSONArgsRecommended"


def wish_of(plan: Plan) -> ContextWish:
    """The paths that the steps take from the main context; everything, where a variable decides."""
    paths: set[str] = set()
    for stage in plan.stages:
        for step in stage.steps:
            for path in _paths(step):
                if "$" in path:
                    return ContextWish()
                paths.add(path.strip("/") or ".")
    return ContextWish(paths=None if "." in paths else tuple(sorted(paths)))


def _paths(step: Step) -> Iterator[str]:
    what = step.what
    if isinstance(what, Copy) and not what.source_stage:
        yield from (each for each in what.sources if "://" not in each)
    elif isinstance(what, Run):
        for mount in mounts_of(what):
            if mount.kind == "bind" and not mount.source_stage:
                yield mount.source or "."


def mounts_of(what: Run) -> list[Mount]:
    """The mounts of a RUN that can be read without its variables."""
    found = []
    for text in what.mounts:
        try:
            found.append(parse_mount(text, {}))
        except Invalid:
            continue
    return found


def outline_of(dockerfile: Dockerfile, plan: Plan) -> Outline:
    """What a target offers."""
    mounts = [
        mount
        for stage in plan.stages
        for step in stage.steps
        if isinstance(step.what, Run)
        for mount in mounts_of(step.what)
    ]
    return Outline(
        stages=tuple(
            StageInfo(
                name=stage.origin.name,
                base=stage.origin.base,
                default=stage is dockerfile.stages[-1],
                location=location_of(stage),
                description=_description(stage.line.comments, stage.origin.name),
            )
            for stage in dockerfile.stages
        ),
        args=tuple(_args(plan)),
        secrets=tuple(dict.fromkeys((each.id, each.required) for each in mounts if each.kind == "secret")),
        ssh=tuple(dict.fromkeys((each.id, each.required) for each in mounts if each.kind == "ssh")),
        caches=tuple(dict.fromkeys(each.id for each in mounts if each.kind == "cache")),
        warnings=tuple(warnings_of(dockerfile)),
    )


def _args(plan: Plan) -> Iterator[ArgInfo]:
    steps = [*plan.dockerfile.globals, *(step for stage in plan.stages for step in stage.steps)]
    seen: set[str] = set()
    for step in steps:
        if not isinstance(step.what, Arg):
            continue
        for name, default in step.what.pairs:
            if name not in seen:
                seen.add(name)
                yield ArgInfo(
                    name=name,
                    default=None if default is None else _plain(default),
                    location=location_of(step),
                    description=_description(step.line.comments, name),
                )


def _plain(text: str) -> str:
    try:
        return expand(text, {}, keep_unset=True)
    except Invalid:
        return text


def _description(comments: tuple[str, ...], name: str) -> str:
    """A comment that begins with the name describes it."""
    return next((text.removeprefix(name).strip() for text in comments if name and text.startswith(f"{name} ")), "")


def warnings_of(dockerfile: Dockerfile) -> Iterator[Warning]:
    """What the Dockerfile reference advises against."""
    for line in dockerfile.text.empty_continuations:
        yield Warning(
            vertex="",
            rule="NoEmptyContinuation",
            message="Empty continuation line",
            location=Location(start=line, end=line),
        )
    for stage in dockerfile.stages:
        for step in stage.steps:
            if isinstance(step.what, Command) and step.what.shell:
                yield Warning(
                    vertex="",
                    rule=_JSON_RULE,
                    message=f"JSON arguments recommended for {step.line.word} to prevent unintended behavior related to OS "
                    "signals",
                    location=location_of(step),
                )
            elif step.line.word == "MAINTAINER":
                yield Warning(
                    vertex="",
                    rule="MaintainerDeprecated",
                    message="Maintainer instruction is deprecated in favor of using label",
                    location=location_of(step),
                )
