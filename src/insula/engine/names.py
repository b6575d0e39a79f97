"""Ids and names of instances: made, checked, taken by exactly one, found by any unique prefix."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import TypeVar

from insula.errors import Conflict, Invalid, NotFound

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_LEFT = (  # noqa: SIM905 - words are easier to read than quotes
    "amber brave calm clever deep early fair gentle golden happy keen kind late light lively lucid merry mild noble "
    "plain proud quick quiet rapid rare round sharp silent slow solid steady still strong sunny swift tidy warm wise young"
).split()
_RIGHT = (  # noqa: SIM905
    "ada atlas aurora basalt beacon birch cedar cliff comet coral crane delta dune ember falcon fern fjord forest grove "
    "harbor heron island juniper lagoon lantern maple meadow mesa orchard otter pebble pine plover reef ridge river "
    "sparrow summit tern tide valley willow"
).split()
T = TypeVar("T")


def new_id() -> str:
    """64 random hex digits."""
    return secrets.token_hex(32)


def suggest_name(attempt: int = 0) -> str:
    """A readable random name; later attempts get longer."""
    name = f"{secrets.choice(_LEFT)}_{secrets.choice(_RIGHT)}"
    return name if attempt == 0 else f"{name}_{secrets.token_hex(2 + attempt)}"


def check_name(name: str) -> str:
    """The name without Docker's leading slash. Raises Invalid with the Docker Engine's sentence."""
    bare = name.removeprefix("/")
    if len(bare) > 255 or not _NAME.match(bare):
        raise Invalid(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", field="name")
    return bare


class NameTable:
    """Who has which name. Taking is one step of the event loop, so of two clients exactly one wins."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}

    def take(self, name: str, id: str) -> None:
        """Raises Conflict with the Docker Engine's sentence."""
        holder = self._holders.setdefault(name, id)
        if holder != id:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name.",
                kind="container",
                name=name,
            )

    def free(self, name: str, id: str) -> None:
        """Let go of a name, if it is this one's."""
        if self._holders.get(name) == id:
            del self._holders[name]

    def holder(self, name: str) -> str | None:
        """The id behind a name."""
        return self._holders.get(name.removeprefix("/"))

    def unused(self) -> str:
        """A random name that nobody has."""
        attempt = 0
        while (name := suggest_name(attempt)) in self._holders:
            attempt += 1
        return name


def find(things: Mapping[str, T], names: NameTable, reference: str) -> T:
    """By id, name or unique prefix of an id, in this order. Raises NotFound and Invalid with Docker's sentences."""
    if reference in things:
        return things[reference]
    holder = names.holder(reference)
    if holder is not None and holder in things:
        return things[holder]
    found = [id for id in things if id.startswith(reference)] if reference else []
    if len(found) > 1:
        raise Invalid(f"multiple IDs or names found with provided prefix: {reference}")
    if not found:
        raise NotFound(f"No such container: {reference}", kind="container", name=reference)
    return things[found[0]]
