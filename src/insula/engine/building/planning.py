"""Which stages a build needs, what its variables are, and how its steps are counted and called. Pure.

Scopes of ARG and the platform variables are those of the Dockerfile reference ("ARG", "Automatic platform ARGs").
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from msgspec import Struct

from insula.engine.building.contract import BuildFault, BuildRequest, Location
from insula.engine.building.mountwords import parse_mount
from insula.errors import Invalid
from insula.images.dockerfile.instructions import Arg, Copy, Dockerfile, Run, Stage, Step
from insula.images.dockerfile.words import expand
from insula.images.manifests import Platform, parse_platform
from insula.images.reference import parse

# Build arguments that every RUN gets without an ARG, and that are no part of what a step is known by.
PROXIES = frozenset(
    name
    for each in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (each, each.upper())
)
MAX_STAGES = 1000
_LAYERED = ("RUN", "COPY", "ADD", "WORKDIR")


class Plan(Struct, frozen=True, kw_only=True):
    """A build for one platform. `stages` are those that the target needs, in their order; `numbers` and `total` count all of
    their instructions as the classic builder does, after the ARGs before the first FROM (stage -1); `globals` are the variables
    that FROM lines see."""

    dockerfile: Dockerfile
    platform: Platform
    target: Stage
    stages: tuple[Stage, ...]
    globals: Mapping[str, str]
    bases: Mapping[int, str]
    needs: Mapping[int, frozenset[int]]
    numbers: Mapping[tuple[int, int], int]
    total: int
    images: frozenset[int] = frozenset()  # stages that begin with an image, not with another stage or nothing
    several_platforms: bool = False

    def base_words(self, stage: Stage, named: Collection[str]) -> str:
        """What a stage begins with, an image by its whole name."""
        base = self.bases[stage.index]
        if stage.index not in self.images or base in named:
            return base
        try:
            found = parse(base)
        except Invalid:
            return base  # said when its turn comes
        tag = found.tag or ("" if found.digest else "latest")
        return found.full_name + (f":{tag}" if tag else "") + (f"@{found.digest}" if found.digest else "")

    def step_name(self, stage: Stage, position: int, text: str) -> str:
        """`[build 2/3] RUN make`, as BuildKit calls it; `position` 0 is the FROM."""
        layered = [0] if stage.index in self.images else []
        layered += [number for number, step in enumerate(stage.steps, 1) if step.line.word in _LAYERED]
        words = [str(self.platform)] if self.several_platforms else []
        if len(self.stages) > 1 or stage.origin.name:
            words.append(stage.origin.name or f"stage-{stage.index}")
        count = layered.index(position) + 1 if position in layered else 0
        words.append(f"{count:{len(str(len(layered)))}d}/{len(layered)}")
        return f"[{' '.join(words)}] {text}"


def location_of(step: Step | Stage, file: str = "") -> Location:
    """Where something was written."""
    return Location(start=step.line.start, end=step.line.end, file=file)


def plan(
    dockerfile: Dockerfile, request: BuildRequest, platform: Platform, host: Platform, *, several: bool = False
) -> Plan:
    """Raises BuildFault."""
    if len(dockerfile.stages) > MAX_STAGES:
        raise BuildFault(f"the Dockerfile has more than {MAX_STAGES} stages")
    target = dockerfile.stages[-1]
    if request.target:
        found = dockerfile.stage(request.target)
        if found is None:
            raise BuildFault(f'target stage "{request.target}" could not be found', field="target")
        target = found
    variables = global_variables(dockerfile, request, platform, host, target)
    bases = {stage.index: _base(dockerfile, stage, variables) for stage in dockerfile.stages[: target.index + 1]}
    needs = {index: frozenset(_needs(dockerfile, dockerfile.stages[index], bases, request)) for index in bases}
    wanted: set[int] = set()
    pending = [target.index]
    while pending:
        index = pending.pop()
        if index not in wanted:
            wanted.add(index)
            pending += needs[index]
    stages = tuple(stage for stage in dockerfile.stages if stage.index in wanted)
    numbers = {(-1, position): position + 1 for position in range(len(dockerfile.globals))}
    for stage in stages:
        for position in range(len(stage.steps) + 1):
            numbers[stage.index, position] = len(numbers) + 1
    return Plan(
        dockerfile=dockerfile,
        platform=platform,
        target=target,
        stages=stages,
        globals=variables,
        bases=bases,
        needs=needs,
        numbers=numbers,
        total=len(numbers),
        images=frozenset(
            stage.index
            for stage in stages
            if bases[stage.index] != "scratch" and stage_named(dockerfile, bases[stage.index], stage, request) is None
        ),
        several_platforms=several,
    )


def global_variables(
    dockerfile: Dockerfile, request: BuildRequest, platform: Platform, host: Platform, target: Stage
) -> dict[str, str]:
    """What FROM lines see: platform variables, and the ARGs before the first FROM. Raises BuildFault."""
    automatic = platform_variables(platform, host)
    automatic["TARGETSTAGE"] = target.origin.name or ("default" if not request.target else request.target)
    variables = {name: _given(request, name, value) for name, value in automatic.items()}
    for step in dockerfile.globals:
        assert isinstance(step.what, Arg)
        for name, default in step.what.pairs:
            try:
                value = None if default is None else expand(default, variables, escape=dockerfile.text.escape)
            except Invalid as fault:
                raise BuildFault(fault.message, location=location_of(step)) from None
            given = request.build_args.get(name)
            chosen = given if given is not None else value
            if chosen is not None:
                variables[name] = chosen
    return variables


def _given(request: BuildRequest, name: str, value: str) -> str:
    given = request.build_args.get(name)
    return value if given is None else given


def platform_variables(platform: Platform, host: Platform) -> dict[str, str]:
    """The automatic platform arguments."""
    found = {}
    for prefix, each in (("BUILD", host), ("TARGET", platform)):
        variant = "" if each.architecture == "arm64" and each.variant == "v8" else each.variant
        parts = (each.os, each.architecture, variant)
        found[f"{prefix}PLATFORM"] = "/".join(part for part in parts if part)
        found[f"{prefix}OS"], found[f"{prefix}ARCH"], found[f"{prefix}VARIANT"] = parts
    return found


def _base(dockerfile: Dockerfile, stage: Stage, variables: Mapping[str, str]) -> str:
    try:
        base = expand(stage.origin.base, variables, escape=dockerfile.text.escape)
    except Invalid as fault:
        raise BuildFault(fault.message, location=location_of(stage)) from None
    if not base:
        raise BuildFault(f"base name ({stage.origin.base}) should not be blank", location=location_of(stage))
    return base


def platform_of(stage: Stage, variables: Mapping[str, str], default: Platform) -> Platform:
    """A stage's own platform (`FROM --platform=…`), or the build's. Raises BuildFault."""
    if not stage.origin.platform:
        return default
    try:
        text = expand(stage.origin.platform, variables)
        if not text:
            raise Invalid(f"empty platform value from expression {stage.origin.platform}")
        return parse_platform(text)
    except Invalid as fault:
        raise BuildFault(f"failed to parse platform: {fault.message}", location=location_of(stage)) from None


def _needs(dockerfile: Dockerfile, stage: Stage, bases: Mapping[int, str], request: BuildRequest) -> Iterator[int]:
    """The earlier stages that a stage is made from."""
    names = [bases[stage.index]] if bases[stage.index] not in request.named_contexts else []
    for step in stage.steps:
        if isinstance(step.what, Copy) and step.what.source_stage:
            names.append(step.what.source_stage)
        elif isinstance(step.what, Run):
            names += [each for text in step.what.mounts if (each := _from_of(text))]
    for name in names:
        if (found := stage_named(dockerfile, name, stage, request)) is not None:
            yield found.index
        elif name.isdecimal() and name != bases[stage.index]:
            raise BuildFault(f"invalid from flag value {name}: invalid stage index {name}", location=location_of(stage))


def stage_named(dockerfile: Dockerfile, name: str, user: Stage, request: BuildRequest) -> Stage | None:
    """The stage that `--from=NAME` or `FROM NAME` means in another stage, if it means one."""
    if name in request.named_contexts:
        return None
    found = dockerfile.stage(name, before=user.index)
    itself = user.origin.name and user.origin.name == name.lower()
    if found is None and itself and name != user.origin.base:
        raise BuildFault(
            f"invalid from flag value {name}: circular dependency on stage: {name}", location=location_of(user)
        )
    return found


def _from_of(text: str) -> str:
    try:
        return parse_mount(text, {}).source_stage
    except Invalid:
        return ""  # said when its turn comes


_BLANKS = re.compile(r"\s+")


def one_line(text: str) -> str:
    """An instruction on one line, for progress."""
    return _BLANKS.sub(" ", text).strip()
