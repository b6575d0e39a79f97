"""A network type: one file of this package that exports `TYPE`. What `docker network create --driver` names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from insula.host.netlink import Route
from insula.networks.contract import Endpoint, Network
from insula.networks.ipam import Pool
from insula.networks.kernel import Kernel


class View(Struct, frozen=True, kw_only=True):
    """What a type may look at to complete a network: the other networks, the host's routes that are not ours, the pools that
    subnets are chosen from, and the prefix of interface names."""

    networks: Sequence[Network]
    routes: Sequence[Route]
    pools: Sequence[Pool]
    prefix: str


class NetworkType(Protocol):
    """One type. Methods that take a `Kernel` block and run on its thread."""

    driver: str
    summary: str
    takes_endpoints: bool  # whether instances get interfaces on it
    has_segment: bool  # whether there is a bridge, with DNS, DHCP, published ports and rules of the firewall

    def complete(self, wish: Network, view: View) -> Network:
        """Choose what was left open. Pure. Raises Invalid, Unavailable, Unsupported, Forbidden."""
        ...

    def refusal(self, network: Network) -> str:
        """Why nothing can be connected to such a network; unused where something can."""
        ...

    def interfaces(self, kernel: Kernel, network: Network) -> Sequence[str]:
        """The host's interfaces that the network stands on. Pure."""
        ...

    def shape(self, endpoint: Endpoint, network: Network) -> Endpoint:
        """A reserved end point as this type has it. Pure."""
        ...

    def prepare(self, kernel: Kernel, network: Network, mtu: int) -> None:
        """Make what the network needs on the host, or mend what is there. Repeatable. Raises Conflict, HostFault."""
        ...

    def clear(self, kernel: Kernel, network: Network) -> None:
        """Remove that again. Repeatable."""
        ...

    def attach(self, kernel: Kernel, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """Put an end point's interface in place. On failure nothing is left. Raises HostFault."""
        ...

    def mend(self, kernel: Kernel, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """After a restart: keep the interface where it is whole, else make it again. Raises NotFound without namespace."""
        ...


class Unattached:
    """The base of types whose instances have no interface of ours."""

    takes_endpoints = False
    has_segment = False

    def interfaces(self, kernel: Kernel, network: Network) -> Sequence[str]:
        """None."""
        return ()

    def shape(self, endpoint: Endpoint, network: Network) -> Endpoint:
        """Never asked: `refusal` says why."""
        return endpoint

    def prepare(self, kernel: Kernel, network: Network, mtu: int) -> None:
        """Nothing to make."""

    def clear(self, kernel: Kernel, network: Network) -> None:
        """Nothing to remove."""

    def attach(self, kernel: Kernel, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """Never asked: `refusal` says why."""

    def mend(self, kernel: Kernel, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """Never asked."""


def all_types() -> dict[str, NetworkType]:
    """Every type by the name of its driver."""
    package = __name__.rpartition(".")[0]
    found: dict[str, NetworkType] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        kind = getattr(importlib.import_module(f"{package}.{module.name}"), "TYPE", None)
        if kind is not None:
            found[kind.driver] = kind
    return found
