"""The Dockerfile instructions that `docker import --change` and `docker commit --change` take, applied to a configuration.

Only those that change nothing but the configuration are allowed, as Docker does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from insula.errors import Invalid
from insula.images.dockerfile.configuring import configure, env_of
from insula.images.dockerfile.instructions import instruction
from insula.images.dockerfile.lines import DockerfileFault, read

Config = dict[str, Any]
_ALLOWED = frozenset(
    {
        "CMD",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "HEALTHCHECK",
        "LABEL",
        "ONBUILD",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    }
)


def apply_changes(config: Config, changes: Sequence[str]) -> Config:
    """A copy of an OCI `config` part with the instructions applied. Raises Invalid."""
    changed = dict(config)
    commanded = False
    for text in changes:
        try:
            lines = read(text).lines
        except DockerfileFault as fault:
            raise Invalid(fault.message, field="changes") from None
        for line in lines:
            if line.word not in _ALLOWED:
                raise Invalid(f"{line.word} is not a valid change command", field="changes")
            if not line.rest:
                raise Invalid(f"{line.word} requires at least one argument", field="changes")
            try:
                what = instruction(line)
                changed = configure(changed, what, env_of(changed), keeps_command=commanded).config
            except Invalid as fault:
                raise Invalid(fault.message.partition(": ")[2] or fault.message, field="changes") from None
            commanded = commanded or line.word == "CMD"
    return changed
