"""The host network: instances that use the host's own interfaces."""

from __future__ import annotations

from insula.errors import Forbidden
from insula.networks.contract import Network
from insula.networks.type import Unattached, View


class Host(Unattached):
    """Instances on it run in the host's network namespace (`network_mode` host); they have no end point."""

    driver = "host"
    summary = "the host's own network, without isolation"

    def complete(self, wish: Network, view: View) -> Network:
        """There is exactly one."""
        if any(network.driver == self.driver for network in view.networks):
            raise Forbidden(f'only one instance of "{self.driver}" network is allowed', field="driver")
        return wish

    def refusal(self, network: Network) -> str:
        """Docker's sentence."""
        return "container cannot be connected to host network"


TYPE = Host()
