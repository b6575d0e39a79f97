"""After a restart: which entries of the ledger have lost what they belonged to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec import Struct

from insula.networks.contract import Endpoint, Published


class Orphans(Struct, frozen=True, kw_only=True):
    """What is to be dropped."""

    endpoints: list[Endpoint]
    published: list[Published]


def orphans(
    endpoints: Iterable[Endpoint], published: Iterable[Published], owners: Collection[str], dead: Collection[str]
) -> Orphans:
    """End points of nobody, or in a namespace that is gone (`dead` paths, as after a reboot: their instances start anew);
    ports of nobody, or towards an address that no remaining end point has."""
    endpoints = list(endpoints)
    lost = [e for e in endpoints if e.owner not in owners or e.netns in dead]
    gone = {e.id for e in lost}
    addresses = {address for e in endpoints if e.id not in gone for address in (e.address, e.address6)}
    ports = [p for p in published if p.owner not in owners or p.address not in addresses]
    return Orphans(endpoints=lost, published=ports)
