"""The bridge network: a Linux bridge with subnets of its own, masqueraded behind the host unless it is internal."""

from __future__ import annotations

import re
import secrets

import msgspec

from insula.errors import Forbidden, Invalid
from insula.networks import options, ranges
from insula.networks.contract import Endpoint, Network
from insula.networks.kernel import Kernel
from insula.networks.type import View


class Bridge:
    """The type."""

    driver = "bridge"
    summary = "a segment of its own on this node, behind the host's address"
    takes_endpoints = True
    has_segment = True

    def complete(self, wish: Network, view: View) -> Network:
        """Subnets, gateways and the bridge's name."""
        options.check_bridge(wish)
        if any(len(ranges.ranges_of(wish, version)) > 1 for version in (4, 6)):
            raise Forbidden("bridge driver doesn't support multiple subnets", field="subnet")
        bridge = wish.bridge or wish.options.get(options.NAME, "") or f"{view.prefix}b{secrets.token_hex(4)}"
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", bridge) or bridge in (".", ".."):
            raise Invalid(f"{bridge} is not an interface name: at most 15 of A-Z a-z 0-9 _ . -", field="bridge")
        made = ranges.complete(wish, others=view.networks, routes=view.routes, pools=view.pools)
        return msgspec.structs.replace(made, bridge=bridge)

    def refusal(self, network: Network) -> str:
        """Never asked."""
        return f"{network.name} takes no end points."

    def interfaces(self, kernel: Kernel, network: Network) -> tuple[str, ...]:
        """The bridge."""
        return (network.bridge,)

    def shape(self, endpoint: Endpoint, network: Network) -> Endpoint:
        """As it was reserved; where the bridge has no address there is nothing to send things to."""
        return msgspec.structs.replace(
            endpoint,
            gateway=endpoint.gateway if options.has_gateway(network, 4) else "",
            gateway6=endpoint.gateway6 if options.has_gateway(network, 6) else "",
        )

    def prepare(self, kernel: Kernel, network: Network, mtu: int) -> None:
        """The bridge with its addresses."""
        kernel.ensure_bridge(network, mtu)

    def clear(self, kernel: Kernel, network: Network) -> None:
        """The bridge goes with its addresses."""
        kernel.remove_links([network.bridge])

    def attach(self, kernel: Kernel, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """A tap for a machine, else a veth."""
        if endpoint.tap:
            kernel.attach_tap(endpoint.tap, network, mtu)
        else:
            kernel.attach_veth(endpoint, network, mtu)

    def mend(self, kernel: Kernel, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """The tap that a running machine holds stays, and so does a pair that is whole."""
        if endpoint.tap:
            kernel.attach_tap(endpoint.tap, network, mtu)
        else:
            kernel.mend_veth(endpoint, network, mtu)


TYPE = Bridge()
