"""How far a stage has come: its root file system, its configuration, its variables. Frozen; a step makes a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from insula.engine.building.saying import history_entry
from insula.images import manifests
from insula.images.contract import Image
from insula.images.dockerfile.configuring import Config, env_of, shell_of, with_path
from insula.images.drafts import State
from insula.images.manifests import Platform

_OWN = (
    "architecture",
    "os",
    "variant",
    "config",
    "rootfs",
    "history",
    "created",
    "author",
    "container",
    "container_config",
)


class Frame(Struct, frozen=True, kw_only=True):
    """`key` stands for all steps so far; `args` are the build arguments declared in this stage; `commanded`: a CMD of this
    stage was seen. `more` are the parts of a base image's document that are kept as they are."""

    state: State = ()
    key: str = ""
    platform: Platform
    config: Config = {}
    history: tuple[dict[str, Any], ...] = ()
    created: str = ""
    author: str = ""
    args: Mapping[str, str] = {}
    declared: frozenset[str] = frozenset()
    commanded: bool = False
    more: Mapping[str, Any] = {}
    base: str = ""  # the image that it began with

    @property
    def shell(self) -> tuple[str, ...]:
        """What runs the shell form."""
        return shell_of(self.config)

    @property
    def env(self) -> dict[str, str]:
        """The environment of the image."""
        return env_of(self.config)

    @property
    def variables(self) -> dict[str, str]:
        """What `$name` means: ENV goes before ARG."""
        return {**self.args, **self.env}

    @property
    def run_args(self) -> dict[str, str]:
        """The build arguments that a RUN sees beside the environment."""
        env = self.env
        return {name: value for name, value in self.args.items() if name not in env}

    def said(self, dialect: Any, *, created: str, said: str, empty: bool, **changes: Any) -> Frame:
        """One step further, written down in the history."""
        author = str(changes.get("author", self.author))
        entry = history_entry(dialect, created=created, said=said, author=author, empty=empty)
        return msgspec.structs.replace(self, history=(*self.history, entry), created=created, **changes)

    def document(self) -> bytes:
        """The image's configuration document."""
        found: dict[str, Any] = {
            **self.more,
            "architecture": self.platform.architecture,
            "os": self.platform.os or "linux",
            "created": self.created,
            "config": {name: value for name, value in self.config.items() if value not in (None, [], {}, "")},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.state]},
            "history": list(self.history),
        }
        if self.platform.variant:
            found["variant"] = self.platform.variant
        if self.author:
            found["author"] = self.author
        return manifests.encode(found)


def from_scratch(platform: Platform) -> Frame:
    """FROM scratch."""
    return Frame(platform=platform, config=with_path({}), key="scratch")


def from_image(image: Image, state: State, platform: Platform) -> Frame:
    """FROM an image."""
    raw = image.config.raw
    own = Platform(os=image.os or "linux", architecture=image.architecture, variant=str(raw.get("variant") or ""))
    history = list(raw.get("history") or ())
    if sum(1 for each in history if not each.get("empty_layer")) != len(state):
        history = [{"created": image.created, "created_by": "unknown"} for _ in state]
    return Frame(
        state=state,
        key=image.id,
        platform=own if image.architecture else platform,
        config=with_path(dict(raw.get("config") or {})),
        history=tuple(history),
        created=image.created,
        author=str(raw.get("author") or ""),
        more={name: value for name, value in raw.items() if name not in _OWN},
        base=image.id,
    )


def from_stage(frame: Frame) -> Frame:
    """FROM another stage: its arguments end with it."""
    return msgspec.structs.replace(frame, args={}, declared=frozenset(), commanded=False)
