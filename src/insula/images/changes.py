"""The Dockerfile instructions that `docker import --change` and `docker commit --change` take, applied to a configuration.

See the Dockerfile reference; only those that change the configuration are allowed, as Docker does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from insula.errors import Invalid

Config = dict[str, Any]


def apply_changes(config: Config, changes: Sequence[str]) -> Config:
    """A copy of an OCI `config` part with the instructions applied. Raises Invalid."""
    changed = {key: (value.copy() if isinstance(value, dict | list) else value) for key, value in config.items()}
    for line in changes:
        word, _, rest = line.strip().partition(" ")
        step = _STEPS.get(word.upper())
        if step is None:
            raise Invalid(f"{word} is not a valid change command", field="changes")
        if not rest.strip():
            raise Invalid(f"{word.upper()} requires at least one argument", field="changes")
        step(changed, rest.strip())
    return changed


def _command(text: str) -> list[str]:
    """The exec form `["a", "b"]`, else the shell form."""
    if text.startswith("["):
        try:
            return msgspec.json.decode(text, type=list[str])
        except msgspec.DecodeError:
            pass
    return ["/bin/sh", "-c", text]


def _pairs(text: str) -> list[tuple[str, str]]:
    """`a=1 b="2 3"`, or the old form `a the rest`."""
    first = text.split(None, 1)[0]
    if "=" not in first:
        name, _, value = text.partition(" ")
        return [(name, value.strip())]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Invalid(f"cannot read {text!r}: {error}", field="changes") from None
    for word in words:
        if "=" not in word:
            raise Invalid(f"Syntax error - can't find = in {word!r}. Must be of the form: name=value", field="changes")
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]


def _env(config: Config, text: str) -> None:
    env: list[str] = [*(config.get("Env") or [])]
    for name, value in _pairs(text):
        env = [each for each in env if each.partition("=")[0] != name] + [f"{name}={value}"]
    config["Env"] = env


def _label(config: Config, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(text))}


def _expose(config: Config, text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in text.split():
        if not re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp|sctp))?", word):
            raise Invalid(f"Invalid containerPort: {word}", field="changes")
        ports[word if "/" in word else f"{word}/tcp"] = {}
    config["ExposedPorts"] = ports


def _volume(config: Config, text: str) -> None:
    names = _command(text) if text.startswith("[") else text.split()
    config["Volumes"] = {**(config.get("Volumes") or {}), **{name: {} for name in names}}


def _workdir(config: Config, text: str) -> None:
    config["WorkingDir"] = (
        text if text.startswith("/") else f"{config.get('WorkingDir') or '/'}".rstrip("/") + f"/{text}"
    )


def _set(key: str) -> Callable[[Config, str], None]:
    def step(config: Config, text: str) -> None:
        config[key] = text

    return step


def _set_command(key: str) -> Callable[[Config, str], None]:
    def step(config: Config, text: str) -> None:
        config[key] = _command(text)

    return step


def _onbuild(config: Config, text: str) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or []), text]


def _healthcheck(config: Config, text: str) -> None:
    kind, _, rest = text.partition(" ")
    if kind.upper() == "NONE":
        config["Healthcheck"] = {"Test": ["NONE"]}
    elif kind.upper() == "CMD" and rest.strip():
        words = _command(rest.strip())
        shell = words[:2] == ["/bin/sh", "-c"] and not rest.strip().startswith("[")
        config["Healthcheck"] = {"Test": ["CMD-SHELL", words[2]] if shell else ["CMD", *words]}
    else:
        raise Invalid("HEALTHCHECK takes CMD or NONE here", field="changes")


_STEPS: dict[str, Callable[[Config, str], None]] = {
    "CMD": _set_command("Cmd"),
    "ENTRYPOINT": _set_command("Entrypoint"),
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _set("StopSignal"),
    "USER": _set("User"),
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
