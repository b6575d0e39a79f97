"""From the lines of a Dockerfile to typed instructions in their stages. What can be wrong without knowing any variable is
refused here, with the Docker Engine's sentences; variables are put in place when a stage is built.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from insula.errors import Invalid
from insula.images.dockerfile.lines import (
    DockerfileFault,
    Heredoc,
    Line,
    Text,
    heredoc_mark,
    read,
    split_quoted,
    strings_of_json,
)

_STAGE_NAME = re.compile(r"[a-z][a-z0-9\-_.]*")
_RESERVED = frozenset({"context", "scratch"})


class From(Struct, frozen=True, kw_only=True, tag=True):
    """FROM: `base` and `platform` may hold variables."""

    base: str
    name: str = ""
    platform: str = ""


class Arg(Struct, frozen=True, kw_only=True, tag=True):
    """ARG: names with their defaults; None has none."""

    pairs: tuple[tuple[str, str | None], ...]


class Run(Struct, frozen=True, kw_only=True, tag=True):
    """RUN: `words` is one text for the shell form."""

    words: tuple[str, ...]
    shell: bool
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[str, ...] = ()
    network: str = ""
    security: str = ""


class Copy(Struct, frozen=True, kw_only=True, tag=True):
    """COPY and ADD. `contents` are here-documents among the sources."""

    sources: tuple[str, ...]
    target: str
    add: bool = False
    contents: tuple[Heredoc, ...] = ()
    source_stage: str = ""
    owner: str = ""
    mode: str = ""
    link: bool = False
    parents: bool = False
    excludes: tuple[str, ...] = ()
    checksum: str = ""
    keep_git_dir: bool = False
    unpack: bool | None = None


class Command(Struct, frozen=True, kw_only=True, tag=True):
    """CMD and ENTRYPOINT."""

    word: str
    words: tuple[str, ...]
    shell: bool


class Pairs(Struct, frozen=True, kw_only=True, tag=True):
    """ENV and LABEL, as written: quotes and variables are still there."""

    word: str
    pairs: tuple[tuple[str, str], ...]


class Words(Struct, frozen=True, kw_only=True, tag=True):
    """EXPOSE, VOLUME, USER, WORKDIR, STOPSIGNAL, MAINTAINER, SHELL."""

    word: str
    words: tuple[str, ...]


class Healthcheck(Struct, frozen=True, kw_only=True, tag=True):
    """HEALTHCHECK: `test` as the image configuration has it; times in nanoseconds, 0 inherits."""

    test: tuple[str, ...]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Onbuild(Struct, frozen=True, kw_only=True, tag=True):
    """ONBUILD: the trigger's text, here-documents included."""

    trigger: str


Instruction = From | Arg | Run | Copy | Command | Pairs | Words | Healthcheck | Onbuild


class Step(Struct, frozen=True, kw_only=True):
    """An instruction and where it was written."""

    line: Line
    what: Instruction


class Stage(Struct, frozen=True, kw_only=True):
    """One FROM and what follows it."""

    index: int
    origin: From
    line: Line
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """Its name, or its number as text."""
        return self.origin.name or str(self.index)


class Dockerfile(Struct, frozen=True, kw_only=True):
    """A whole file. `globals` are the ARGs before the first FROM."""

    text: Text
    globals: tuple[Step, ...]
    stages: tuple[Stage, ...]

    def stage(self, name: str, *, before: int | None = None) -> Stage | None:
        """The last stage of that name (case does not count), or of that number. `before`: only earlier ones."""
        known = self.stages if before is None else self.stages[:before]
        for stage in reversed(known):
            if stage.origin.name and stage.origin.name == name.lower():
                return stage
        if name.isdecimal() and len(name) < 6 and int(name) < len(known):
            return known[int(name)]
        return None


def parse(text: str) -> Dockerfile:
    """Read a Dockerfile. Raises DockerfileFault."""
    return _staged(read(text))


def _staged(text: Text) -> Dockerfile:
    before: list[Step] = []
    stages: list[tuple[From, Line, list[Step]]] = []
    for line in text.lines:
        what = instruction(line, escape=text.escape)
        if isinstance(what, From):
            stages.append((what, line, []))
        elif stages:
            stages[-1][2].append(Step(line=line, what=what))
        elif isinstance(what, Arg):
            before.append(Step(line=line, what=what))
        else:
            raise DockerfileFault("no build stage in current context", line.start, line.end)
    if not stages:
        raise DockerfileFault("no build stage in current context", 0, 0)
    made = [
        Stage(index=index, origin=origin, line=line, steps=tuple(steps))
        for index, (origin, line, steps) in enumerate(stages)
    ]
    return Dockerfile(text=text, globals=tuple(before), stages=tuple(made))


def instruction(line: Line, *, escape: str = "\\") -> Instruction:
    """One instruction. Raises DockerfileFault."""
    reader = _READERS.get(line.word)
    try:
        if reader is None:
            raise Invalid(f"unknown instruction: {line.word}{_guess(line.word, list(_READERS))}")
        return reader(_Given(line, escape))
    except DockerfileFault:
        raise
    except Invalid as fault:
        raise DockerfileFault(fault.message, line.start, line.end) from None


def _guess(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word[:40], known, n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


class _Given:
    """One line on its way to a typed instruction."""

    def __init__(self, line: Line, escape: str) -> None:
        self.line = line
        self.word = line.word
        self.rest = line.rest
        self.escape = escape

    def need(self) -> None:
        if not self.rest:
            raise Invalid(f"{self.word} requires at least one argument")

    def one(self) -> str:
        """The rest as a single argument."""
        if not self.rest:
            raise Invalid(f"{self.word} requires exactly one argument")
        return self.rest

    def flags(self, **kinds: str) -> Mapping[str, Any]:
        """The flags that are allowed here; kinds: text, flag, list. Raises Invalid."""
        found: dict[str, Any] = {}
        for flag in self.line.flags:
            name, equals, value = flag.removeprefix("--").partition("=")
            kind = kinds.get(name.replace("-", "_"))
            key = name.replace("-", "_")
            if kind is None or "_" in name:
                raise Invalid(f"unknown flag: --{name}{_guess(name, [each.replace('_', '-') for each in kinds])}")
            if kind == "list":
                if not equals:
                    raise Invalid(f"missing a value on flag: {name}")
                found.setdefault(key, []).append(value)
                continue
            if key in found:
                raise Invalid(f"duplicate flag specified: {name}")
            if kind == "flag":
                if equals and value.lower() not in ("true", "false"):
                    raise Invalid(f"expecting boolean value for flag {name}, not: {value}")
                found[key] = not equals or value.lower() == "true"
            else:
                if not equals:
                    raise Invalid(f"missing a value on flag: {name}")
                found[key] = value
        return found


# --- one reader for each instruction ------------------------------------------------------------------------------


def _from(given: _Given) -> From:
    flags = given.flags(platform="text")
    words = given.rest.split()
    name = ""
    if len(words) == 3 and words[1].lower() == "as":
        name = words[2].lower()
        if not _STAGE_NAME.fullmatch(name):
            raise Invalid(
                f'invalid name for build stage: "{words[2]}", name can\'t start with a number or contain symbols'
            )
        if name in _RESERVED:
            raise Invalid(f'invalid name for build stage: "{words[2]}", name is reserved')
    elif len(words) != 1:
        raise Invalid("FROM requires either one or three arguments")
    return From(base=words[0], name=name, platform=flags.get("platform", ""))


def _arg(given: _Given) -> Arg:
    given.flags()
    given.need()
    pairs: list[tuple[str, str | None]] = []
    for word in split_quoted(given.rest, given.escape):
        name, equals, value = word.partition("=")
        if not name:
            raise Invalid("ARG names can not be blank")
        pairs.append((name, value if equals else None))
    return Arg(pairs=tuple(pairs))


def _run(given: _Given) -> Run:
    flags = given.flags(mount="list", network="text", security="text")
    words = strings_of_json(given.rest)
    if words is None:
        words = (given.rest,) if given.rest else ()
        shell = True
    else:
        shell = False
    if not words:
        raise Invalid("RUN requires at least one argument")
    return Run(
        words=words,
        shell=shell,
        heredocs=given.line.heredocs,
        mounts=tuple(flags.get("mount", ())),
        network=flags.get("network", ""),
        security=flags.get("security", ""),
    )


def _copy(given: _Given) -> Copy:
    common = {"chown": "text", "chmod": "text", "link": "flag", "exclude": "list"}
    if given.word == "ADD":
        flags = given.flags(**common, checksum="text", keep_git_dir="flag", unpack="flag")
    else:
        flags = given.flags(**common, parents="flag", **{"from": "text"})
    words = strings_of_json(given.rest)
    if words is None:
        words = tuple(split_quoted(given.rest, given.escape))
    if not words:
        raise Invalid(f"{given.word} requires at least one argument")
    if len(words) == 1:
        raise Invalid(
            f"{given.word} requires at least two arguments, but only one was provided. Destination could not be determined."
        )
    marks = [heredoc_mark(word) if given.line.heredocs else None for word in words]
    if marks[-1] is not None:
        raise Invalid(f"{given.word} cannot have a here-document as its destination")
    return Copy(
        sources=tuple(word for word, mark in zip(words[:-1], marks, strict=False) if mark is None),
        target=words[-1],
        add=given.word == "ADD",
        contents=given.line.heredocs,
        source_stage=flags.get("from", ""),
        owner=flags.get("chown", ""),
        mode=flags.get("chmod", ""),
        link=flags.get("link", False),
        parents=flags.get("parents", False),
        excludes=tuple(flags.get("exclude", ())),
        checksum=flags.get("checksum", ""),
        keep_git_dir=flags.get("keep_git_dir", False),
        unpack=flags.get("unpack"),
    )


def _command(given: _Given) -> Command:
    given.flags()
    words = strings_of_json(given.rest)
    if words is not None:
        return Command(word=given.word, words=words, shell=False)
    return Command(word=given.word, words=(given.rest,) if given.rest else (), shell=bool(given.rest))


def _pairs(given: _Given) -> Pairs:
    given.flags()
    given.need()
    words = split_quoted(given.rest, given.escape)
    if "=" not in words[0]:  # the old form: one name, the rest of the line is its value
        parts = given.rest.split(None, 1)
        if len(parts) < 2:
            raise Invalid(f"{given.word} must have two arguments")
        return Pairs(word=given.word, pairs=((parts[0], parts[1]),))
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise Invalid(f'Syntax error - can\'t find = in "{word}". Must be of the form: name=value')
        if not name:
            raise Invalid(f"{given.word} names can not be blank")
        pairs.append((name, value))
    return Pairs(word=given.word, pairs=tuple(pairs))


def _single(given: _Given) -> Words:
    given.flags()
    return Words(word=given.word, words=(given.one(),))


def _expose(given: _Given) -> Words:
    given.flags()
    given.need()
    return Words(word=given.word, words=tuple(given.rest.split()))


def _volume(given: _Given) -> Words:
    given.flags()
    given.need()
    words = strings_of_json(given.rest)
    if words is None:
        words = tuple(given.rest.split())
    if not words:
        raise Invalid("VOLUME requires at least one argument")
    if not all(word.strip() for word in words):
        raise Invalid("VOLUME specified can not be an empty string")
    return Words(word=given.word, words=tuple(word.strip() for word in words))


def _shell(given: _Given) -> Words:
    given.flags()
    given.need()
    words = strings_of_json(given.rest)
    if words is None:
        raise Invalid("SHELL requires the arguments to be in JSON form")
    if not words:
        raise Invalid("SHELL requires at least one argument")
    return Words(word=given.word, words=words)


def _onbuild(given: _Given) -> Onbuild:
    given.flags()
    given.need()
    trigger = given.rest.split(None, 1)[0].upper()
    if trigger == "ONBUILD":
        raise Invalid("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise Invalid(f"{trigger} isn't allowed as an ONBUILD trigger")
    text = given.rest + "".join(f"\n{each.content}{each.name}" for each in given.line.heredocs)
    if not given.line.heredocs:
        instruction(read(text).lines[0], escape=given.escape)
    return Onbuild(trigger=text)


def _healthcheck(given: _Given) -> Healthcheck:
    flags = given.flags(interval="text", timeout="text", start_period="text", start_interval="text", retries="text")
    given.need()
    kind, _, rest = given.rest.partition(" ")
    rest = rest.strip()
    if kind.upper() == "NONE":
        if rest:
            raise Invalid("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(test=("NONE",))
    if kind.upper() != "CMD":
        raise Invalid(f'Unknown type "{kind.upper()}" in HEALTHCHECK (try CMD)')
    words = strings_of_json(rest)
    if not rest or words == ():
        raise Invalid("Missing command after HEALTHCHECK CMD")
    times = {
        name: _duration(name, flags[name])
        for name in ("interval", "timeout", "start_period", "start_interval")
        if name in flags
    }
    return Healthcheck(
        test=("CMD", *words) if words is not None else ("CMD-SHELL", rest),
        retries=_retries(flags.get("retries", "0")),
        **times,
    )


_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"([0-9]*\.?[0-9]+|[0-9]+\.)(ns|us|µs|ms|s|m|h)")


def _duration(name: str, text: str) -> int:
    """A duration as Go writes it (`1m30s`), in nanoseconds; 0 inherits. Raises Invalid."""
    parts = _DURATION.findall(text)
    if text == "0":
        return 0
    if not parts or "".join(number + unit for number, unit in parts) != text or len(text) > 40:
        raise Invalid(f'time: invalid duration "{text}"')
    total = round(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if 0 < total < 10**6:
        raise Invalid(f'Interval "{name.replace("_", "-")}" cannot be less than 1ms')
    return min(total, 2**63 - 1)


def _retries(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        raise Invalid(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None
    if count < 0 or count > 2**31:
        raise Invalid(f"--retries must be at least 0 (not {count})")
    return count


_READERS: dict[str, Callable[[_Given], Instruction]] = {
    "ADD": _copy,
    "ARG": _arg,
    "CMD": _command,
    "COPY": _copy,
    "ENTRYPOINT": _command,
    "ENV": _pairs,
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _pairs,
    "MAINTAINER": _single,
    "ONBUILD": _onbuild,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _single,
    "USER": _single,
    "VOLUME": _volume,
    "WORKDIR": _single,
}
