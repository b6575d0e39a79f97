"""The macvlan network: end points with MACs of their own on the link of one of the host's interfaces."""

from __future__ import annotations

from insula.errors import Invalid
from insula.host import netlink
from insula.networks.contract import Endpoint, Network
from insula.networks.kernel import Kernel
from insula.networks.onparent import OnParent, parent_of
from insula.networks.type import View

MODE = "macvlan_mode"
_MODES = ("bridge", "vepa", "passthru", "private")


class Macvlan(OnParent):
    """The type."""

    driver = "macvlan"
    summary = "addresses and MACs on the link of a host's interface"

    def complete(self, wish: Network, view: View) -> Network:
        """Check the mode; the gateway is a router of the link."""
        mode = wish.options.get(MODE, "bridge")
        if mode not in _MODES:
            raise Invalid(f"unknown macvlan mode {mode}: one of {', '.join(_MODES)}", field=MODE)
        return self.settle(wish, view, gateways=True)

    def attach(self, kernel: Kernel, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """One interface on the parent."""
        data = netlink.macvlan_data(network.options.get(MODE, "bridge"))
        kernel.attach_child(endpoint, "macvlan", parent_of(kernel, network), data, mtu)

    def mend(self, kernel: Kernel, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """Made again when it went with its parent."""
        if not kernel.is_inside(endpoint):
            self.attach(kernel, endpoint, network, mtu)


TYPE = Macvlan()
