"""What `macvlan` and `ipvlan` share: networks whose end points hang on an interface of the host, their parent, and are on that
one's own link, with addresses of it. No bridge, no NAT, no published ports; the host itself is not reached through its parent.

The parent is named by the option `parent`. `eth0.10` names VLAN 10 of eth0 and is made, and removed with the network, where the
host does not have it. Without the option it is one end of a pair that leads nowhere: end points then reach each other alone.
(A dummy interface would do too, but not every kernel has them.)

Sources: ip-link(8), linux/if_link.h, Docker's documentation of its macvlan and ipvlan drivers.
"""

from __future__ import annotations

import errno

import msgspec

from insula.errors import Forbidden, Invalid
from insula.host import netlink
from insula.networks import options, ranges
from insula.networks.contract import Endpoint, Network
from insula.networks.kernel import Kernel
from insula.networks.type import View

PARENT = "parent"


class OnParent:
    """The base of both types."""

    driver = ""
    takes_endpoints = True
    has_segment = False

    def refusal(self, network: Network) -> str:
        """Never asked."""
        return f"{network.name} takes no end points."

    def settle(self, wish: Network, view: View, *, gateways: bool) -> Network:
        """Check the parent and choose subnets. Raises Invalid, Forbidden, Unavailable."""
        options.check_mtu(wish)
        parent = wish.options.get(PARENT, "")
        if parent:
            options.check_interface(parent, PARENT)
            _, dot, number = parent.rpartition(".")
            if dot and not (number.isascii() and number.isdecimal() and 1 <= int(number) <= 4094):
                raise Invalid(f"{parent} is not INTERFACE.VLAN with a VLAN from 1 to 4094", field=PARENT)
            for other in view.networks:
                if other.driver == self.driver and not other.config_only and other.options.get(PARENT) == parent:
                    raise Forbidden(f"network {other.name} is already using parent interface {parent}", field=PARENT)
        return ranges.complete(wish, others=view.networks, routes=(), pools=view.pools, gateways=gateways)

    def interfaces(self, kernel: Kernel, network: Network) -> tuple[str, ...]:
        """The parent, and the other end of a pair."""
        parent = parent_of(kernel, network)
        return (parent, f"{parent}x")

    def shape(self, endpoint: Endpoint, network: Network) -> Endpoint:
        """Without an interface on the host, and without a way out where there is no parent."""
        if not network.options.get(PARENT):
            endpoint = msgspec.structs.replace(endpoint, gateway="", gateway6="")
        return msgspec.structs.replace(endpoint, host_interface="")

    def prepare(self, kernel: Kernel, network: Network, mtu: int) -> None:
        """Make the parent where it is ours to make."""
        parent = parent_of(kernel, network)
        if kernel.has_interface(parent):
            return
        if parent != network.options.get(PARENT):
            pair = netlink.add_pair(parent, mtu=mtu, peer=f"{parent}x", group=kernel.group)
            kernel.rtnl.run(pair, netlink.set_link(f"{parent}x", up=True, no_ipv6=True), ignore=(errno.EEXIST,))
        else:
            self._make_vlan(kernel, parent)
        kernel.rtnl.run(netlink.set_link(parent, up=True, no_ipv6=True))

    def _make_vlan(self, kernel: Kernel, parent: str) -> None:
        below, dot, number = parent.rpartition(".")
        link = kernel.rtnl.link(below) if dot else None
        if link is None:
            raise Invalid(f"-o parent interface was not found on the host: {parent}", field=PARENT)
        data = netlink.vlan_data(int(number))
        kernel.add_child(netlink.add_child("vlan", parent, parent=link.index, data=data, group=kernel.group), "8021q")

    def clear(self, kernel: Kernel, network: Network) -> None:
        """Remove the parent that was made."""
        parent = parent_of(kernel, network)
        link = kernel.rtnl.link(parent)
        if link is not None and link.group == kernel.group:
            kernel.remove_links([parent])


def parent_of(kernel: Kernel, network: Network) -> str:
    """The parent's name: the host's interface, or that of the pair, which follows from the network's id."""
    return network.options.get(PARENT) or f"{kernel.prefix}d{network.id[:7]}"
