"""Which names live on a segment: pure, built from the end points.

On a user-made network an end point is known by its aliases, by its host name, and by each with `.NETWORK` behind it; the
default network knows no names, as Docker has it. Lookups are case-insensitive (RFC 4343).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from insula.networks.contract import Endpoint, Network, Record


class Names:
    """The names on one segment."""

    def __init__(self, network: Network, endpoints: Iterable[Endpoint]) -> None:
        self._forward: dict[str, list[str]] = {}
        self._reverse: dict[str, str] = {}
        self._subnet = ipaddress.IPv4Network(network.subnet)
        for endpoint in () if network.builtin else endpoints:
            names = dict.fromkeys(n.lower() for n in (*endpoint.aliases, endpoint.hostname) if n)
            for name in names:
                for known in (name, f"{name}.{network.name.lower()}"):
                    self._forward.setdefault(known, []).append(endpoint.address)
            if names:
                self._reverse[endpoint.address] = f"{next(iter(names))}.{network.name}"

    def lookup(self, name: str, type_: str) -> list[Record] | None:
        """Records of a name on this segment; [] when it has none of that type; None when the segment does not know it."""
        if name.endswith(".in-addr.arpa"):
            return self._lookup_reverse(name, type_)
        addresses = self._forward.get(name.lower())
        if addresses is None:
            return None
        return [Record(name, "A", address) for address in addresses] if type_ in ("A", "ANY") else []

    def _lookup_reverse(self, name: str, type_: str) -> list[Record] | None:
        try:
            address = ipaddress.IPv4Address(".".join(reversed(name.split(".")[:4])))
        except ValueError:
            return None
        known = self._reverse.get(str(address))
        if known is None:
            return None
        return [Record(name, "PTR", known + ".")] if type_ in ("PTR", "ANY") else []
