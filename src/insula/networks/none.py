"""The none network: instances with a loopback interface only."""

from __future__ import annotations

from insula.errors import Forbidden
from insula.networks.contract import Network
from insula.networks.type import Unattached, View


class Nothing(Unattached):
    """Instances on it have a namespace with nothing but loopback (`network_mode` none)."""

    driver = "none"
    summary = "loopback only"

    def complete(self, wish: Network, view: View) -> Network:
        """There is exactly one."""
        if any(network.driver == self.driver for network in view.networks):
            raise Forbidden('only one instance of "null" network is allowed', field="driver")
        return wish

    def refusal(self, network: Network) -> str:
        """Docker's sentence."""
        return "container cannot be connected to multiple networks with one of the networks in private (none) mode"


TYPE = Nothing()
