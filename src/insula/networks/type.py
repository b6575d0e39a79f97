"""A network type: one file of this package that exports `TYPE`. What `docker network create --driver` names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from insula.host.netlink import Route
from insula.networks.contract import Network
from insula.networks.ipam import Pool


class View(Struct, frozen=True, kw_only=True):
    """What a type may look at to complete a network: the other networks, the host's routes that are not ours, the pools that
    subnets are chosen from, and the prefix of interface names."""

    networks: Sequence[Network]
    routes: Sequence[Route]
    pools: Sequence[Pool]
    prefix: str


class NetworkType(Protocol):
    """One type."""

    driver: str
    summary: str
    has_segment: bool  # whether there is a bridge, with addresses, DNS and end points

    def complete(self, wish: Network, view: View) -> Network:
        """Choose what was left open. Pure. Raises Invalid, Unavailable, Unsupported, Forbidden."""
        ...

    def refusal(self, network: Network) -> str:
        """Why nothing can be connected to such a network; unused where there is a segment."""
        ...


def all_types() -> dict[str, NetworkType]:
    """Every type by the name of its driver."""
    package = __name__.rpartition(".")[0]
    found: dict[str, NetworkType] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        kind = getattr(importlib.import_module(f"{package}.{module.name}"), "TYPE", None)
        if kind is not None:
            found[kind.driver] = kind
    return found
