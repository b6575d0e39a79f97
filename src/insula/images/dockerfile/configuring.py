"""What an instruction does to an image's configuration: the `config` part of an OCI image configuration goes in, a changed copy
comes out. `docker build`, `docker commit --change` and `docker import --change` share this file.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from insula.errors import Invalid
from insula.images.dockerfile.instructions import Command, Healthcheck, Instruction, Onbuild, Pairs, Words
from insula.images.dockerfile.words import expand, expand_words

Config = dict[str, Any]
DEFAULT_SHELL = ("/bin/sh", "-c")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/([A-Za-z]+))?")
_RT_SIGNAL = re.compile(r"(SIG)?RTM(IN(\+[0-9]{1,2})?|AX(-[0-9]{1,2})?)")
MAX_PORTS = 4096


class Changed(Struct, frozen=True, kw_only=True):
    """The new configuration, and the instruction as history tells it, its variables in place."""

    config: Config
    said: str


def env_of(config: Config) -> dict[str, str]:
    """The environment as a mapping."""
    return dict(entry.partition("=")[::2] for entry in config.get("Env") or ())


def shell_of(config: Config) -> tuple[str, ...]:
    """What runs the shell form."""
    return tuple(config.get("Shell") or DEFAULT_SHELL)


def configure(
    config: Config, what: Instruction, variables: Mapping[str, str], *, escape: str = "\\", keeps_command: bool = False
) -> Changed:
    """Apply one instruction that only changes the configuration. `keeps_command`: a CMD of this stage survives an ENTRYPOINT,
    one of the base image does not. Raises Invalid."""
    config = dict(config)
    match what:
        case Pairs(word="ENV"):
            pairs = _expanded(what, variables, escape)
            env = env_of(config) | dict(pairs)
            config["Env"] = [f"{name}={value}" for name, value in env.items()]
            said = "ENV " + " ".join(f"{name}={value}" for name, value in pairs)
        case Pairs():
            pairs = _expanded(what, variables, escape)
            config["Labels"] = {**(config.get("Labels") or {}), **dict(pairs)}
            said = "LABEL " + " ".join(f"{name}={value}" for name, value in pairs)
        case Command():
            said = _command(config, what, keeps_command)
        case Healthcheck():
            config["Healthcheck"] = _health(what)
            said = "HEALTHCHECK " + " ".join(_go_quoted(each) for each in what.test)
        case Onbuild():
            config["OnBuild"] = [*(config.get("OnBuild") or ()), what.trigger]
            said = f"ONBUILD {what.trigger}"
        case Words():
            said = _words(config, what, variables, escape)
        case _:
            raise Invalid(f"{type(what).__name__.upper()} does not only change the configuration")
    return Changed(config=config, said=said)


def _expanded(what: Pairs, variables: Mapping[str, str], escape: str) -> list[tuple[str, str]]:
    """All values are worked out before the first one is set."""
    pairs = [
        (expand(name, variables, escape=escape), expand(value, variables, escape=escape)) for name, value in what.pairs
    ]
    if any(not name for name, _ in pairs):
        raise Invalid(f"{what.word} names can not be blank")
    return pairs


def _command(config: Config, what: Command, keeps_command: bool) -> str:
    words = [*shell_of(config), *what.words] if what.shell else list(what.words)
    if what.word == "CMD":
        config["Cmd"] = words or None
    else:
        config["Entrypoint"] = words or None
        if not keeps_command:
            config.pop("Cmd", None)
    return f"{what.word} [{' '.join(_go_quoted(word) for word in words)}]"


def _go_quoted(text: str) -> str:
    """As Go's %q, near enough for people to read."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


def _health(what: Healthcheck) -> dict[str, Any]:
    times = {
        "Interval": what.interval,
        "Timeout": what.timeout,
        "StartPeriod": what.start_period,
        "StartInterval": what.start_interval,
        "Retries": what.retries,
    }
    return {"Test": list(what.test)} | {name: value for name, value in times.items() if value}


def _words(config: Config, what: Words, variables: Mapping[str, str], escape: str) -> str:
    if what.word == "SHELL":
        config["Shell"] = list(what.words)
        return f"SHELL [{' '.join(what.words)}]"
    if what.word == "MAINTAINER":
        return f"MAINTAINER {what.words[0]}"
    if what.word == "EXPOSE":
        words = [word for each in what.words for word in expand_words(each, variables, escape=escape)]
        ports = [port for word in words for port in ports_of(word)]
        if len(ports) > MAX_PORTS:
            raise Invalid(f"EXPOSE names more than {MAX_PORTS} ports")
        config["ExposedPorts"] = {**(config.get("ExposedPorts") or {}), **{port: {} for port in ports}}
        return "EXPOSE " + " ".join(f"{port}" for port in sorted(ports))
    values = [expand(word, variables, escape=escape) for word in what.words]
    if what.word == "VOLUME":
        if not all(values):
            raise Invalid("VOLUME specified can not be an empty string")
        config["Volumes"] = {**(config.get("Volumes") or {}), **{value: {} for value in values}}
        return f"VOLUME [{' '.join(values)}]"
    (value,) = values
    if what.word == "WORKDIR":
        config["WorkingDir"] = value = working_dir(config, value)
    elif what.word == "USER":
        config["User"] = value
    else:
        config["StopSignal"] = check_signal(value)
    return f"{what.word} {value}"


def working_dir(config: Config, path: str) -> str:
    """Where WORKDIR leads to. Raises Invalid."""
    if not path or "\0" in path:
        raise Invalid("cannot normalize nothing" if not path else "WORKDIR holds a NUL byte")
    joined = posixpath.normpath(posixpath.join("/", str(config.get("WorkingDir") or "/"), path))
    return "/" + joined.lstrip("/")


def ports_of(text: str) -> list[str]:
    """`80`, `80/udp`, `80-82/tcp` as `80/tcp` and so on. Raises Invalid."""
    match = _PORT.fullmatch(text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if match is None or high > 65535 or low > high:
        raise Invalid(f"invalid containerPort: {text}", field="EXPOSE")
    protocol = (match[3] or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise Invalid(f"invalid proto: {protocol}", field="EXPOSE")
    return [f"{port}/{protocol}" for port in range(low, high + 1)]


def check_signal(text: str) -> str:
    """A signal by name or number. Raises Invalid with the Docker Engine's sentence."""
    name = text.upper()
    known = f"SIG{name.removeprefix('SIG')}" in signal.Signals.__members__
    if not (known or _RT_SIGNAL.fullmatch(name) or (text.isdecimal() and 0 < int(text[:4]) <= 64)):
        raise Invalid(f"invalid signal: {text}", field="STOPSIGNAL")
    return text


def with_path(config: Config) -> Config:
    """Every stage begins with a PATH: the base image's, or the usual one."""
    env: Sequence[str] = config.get("Env") or ()
    if any(entry.startswith("PATH=") for entry in env):
        return config
    return {**config, "Env": [*env, f"PATH={DEFAULT_PATH}"]}
