"""The ipvlan network: end points with addresses on the link of one of the host's interfaces, behind that one's MAC. In mode l2
they talk on the link as macvlan's do; in l3 and l3s the kernel routes for them, and neither gateway nor broadcast exists."""

from __future__ import annotations

import msgspec

from insula.errors import Invalid
from insula.host import netlink
from insula.networks.contract import Endpoint, Network
from insula.networks.kernel import Kernel
from insula.networks.onparent import PARENT, OnParent, parent_of
from insula.networks.type import View

MODE, FLAG = "ipvlan_mode", "ipvlan_flag"
_MODES, _FLAGS = ("l2", "l3", "l3s"), ("bridge", "private", "vepa")


class Ipvlan(OnParent):
    """The type."""

    driver = "ipvlan"
    summary = "addresses on the link of a host's interface, behind its MAC"

    def complete(self, wish: Network, view: View) -> Network:
        """Check mode and flag; only l2 has a gateway."""
        mode, flag = wish.options.get(MODE, "l2"), wish.options.get(FLAG, "bridge")
        if mode not in _MODES:
            raise Invalid(f"unknown ipvlan mode {mode}: one of {', '.join(_MODES)}", field=MODE)
        if flag not in _FLAGS:
            raise Invalid(f"unknown ipvlan flag {flag}: one of {', '.join(_FLAGS)}", field=FLAG)
        return self.settle(wish, view, gateways=mode == "l2")

    def shape(self, endpoint: Endpoint, network: Network) -> Endpoint:
        """Behind the parent's MAC; without a gateway in the routed modes."""
        shaped = super().shape(msgspec.structs.replace(endpoint, mac=""), network)
        if network.options.get(MODE, "l2") == "l2":
            return shaped
        on_link = bool(network.options.get(PARENT)) and not network.internal
        return msgspec.structs.replace(shaped, gateway="", gateway6="", on_link=on_link)

    def attach(self, kernel: Kernel, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """One interface on the parent."""
        data = netlink.ipvlan_data(network.options.get(MODE, "l2"), network.options.get(FLAG, "bridge"))
        kernel.attach_child(endpoint, "ipvlan", parent_of(kernel, network), data, mtu)

    def mend(self, kernel: Kernel, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """Made again when it went with its parent."""
        if not kernel.is_inside(endpoint):
            self.attach(kernel, endpoint, network, mtu)


TYPE = Ipvlan()
