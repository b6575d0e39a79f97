"""The addresses that machines had, so that one that is started again gets its own where it is free. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from insula.networks.ledger import Lease

MOST = 4096  # beyond, the ones not used for the longest time are forgotten


class Leases:
    """By network and MAC, the one used last at the end."""

    def __init__(self, kept: Iterable[Lease] = ()) -> None:
        self._kept = {(lease.network, lease.mac): lease for lease in kept}

    def all(self) -> list[Lease]:
        """For the ledger."""
        return list(self._kept.values())

    def find(self, network: str, mac: str) -> str:
        """The address; empty for a MAC that was not seen."""
        lease = self._kept.get((network, mac))
        return lease.address if lease else ""

    def keep(self, network: str, mac: str, address: str) -> None:
        """It has this address now."""
        self._kept.pop((network, mac), None)
        self._kept[network, mac] = Lease(network, mac, address)
        while len(self._kept) > MOST:
            del self._kept[next(iter(self._kept))]

    def forget(self, network: str) -> None:
        """The network is gone."""
        self._kept = {key: lease for key, lease in self._kept.items() if lease.network != network}
