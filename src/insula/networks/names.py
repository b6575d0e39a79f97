"""Which names live on a segment: pure, built from the end points.

On a user-made network an end point is known by its aliases, by its host name, and by each with `.NETWORK` behind it; the
default network knows no names, as Docker has it. Lookups are case-insensitive (RFC 4343).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from insula.networks.contract import Endpoint, Network, Record

_REVERSE = {".in-addr.arpa": 4, ".ip6.arpa": 6}


class Names:
    """The names on one segment."""

    def __init__(self, network: Network, endpoints: Iterable[Endpoint]) -> None:
        self._forward: dict[str, list[Endpoint]] = {}
        self._reverse: dict[str, str] = {}
        for endpoint in () if network.builtin else endpoints:
            names = dict.fromkeys(n.lower() for n in (*endpoint.aliases, endpoint.hostname) if n)
            for name in names:
                for known in (name, f"{name}.{network.name.lower()}"):
                    self._forward.setdefault(known, []).append(endpoint)
            for address in filter(None, (endpoint.address, endpoint.address6) if names else ()):
                self._reverse[address] = f"{next(iter(names))}.{network.name}"

    def lookup(self, name: str, type_: str) -> list[Record] | None:
        """Records of a name on this segment; [] when it has none of that type; None when the segment does not know it."""
        version = next((v for suffix, v in _REVERSE.items() if name.lower().endswith(suffix)), 0)
        if version:
            return self._lookup_reverse(name, type_, version)
        endpoints = self._forward.get(name.lower())
        if endpoints is None:
            return None
        found = [("A", each.address) for each in endpoints] + [("AAAA", each.address6) for each in endpoints]
        return [Record(name, kind, address) for kind, address in found if address and type_ in (kind, "ANY")]

    def _lookup_reverse(self, name: str, type_: str, version: int) -> list[Record] | None:
        known = self._reverse.get(pointed_at(name, version))
        if known is None:
            return None
        return [Record(name, "PTR", known + ".")] if type_ in ("PTR", "ANY") else []


def pointed_at(name: str, version: int) -> str:
    """The address that a name of the reverse tree stands for (RFC 1035 3.5, RFC 3596 2.5), empty for none."""
    labels = list(reversed(name.lower().split(".")[:-2]))
    try:
        if version == 4:
            return str(ipaddress.IPv4Address(".".join(labels)))
        return str(ipaddress.IPv6Address(bytes.fromhex("".join(labels)))) if len(labels) == 32 else ""
    except ValueError:
        return ""
