"""The segments of a node: which networks there are, and what runs for each of them: bridge, firewall, DNS, DHCP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from insula import clock
from insula.errors import AlreadyExists, Conflict, Forbidden, HostFault, Invalid, NotFound
from insula.host.netlink import Route
from insula.networks import firewall, ipam, options
from insula.networks.configs import check_unused, inherit
from insula.networks.contract import AddressRange, Endpoint, Network
from insula.networks.dhcp import DhcpServer
from insula.networks.dhcp_packet import Lease
from insula.networks.dns import DnsServer
from insula.networks.firewall import Segment, Side
from insula.networks.kernel import Kernel
from insula.networks.ports import PortTable
from insula.networks.ranges import complete, ranges_of, with_ranges
from insula.networks.type import NetworkType, View, all_types

log = logging.getLogger(__name__)

DEFAULT, HOST, NONE = "default", "host", "none"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


class Segments:
    """The networks and end points in memory, and the doing that keeps the host in step. `save` writes them to the ledger."""

    def __init__(
        self,
        kernel: Kernel,
        dns: DnsServer,
        ports: PortTable,
        pools: Sequence[ipam.Pool],
        save: Callable[[], Awaitable[None]],
    ) -> None:
        self.networks: dict[str, Network] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.default_mtu = 1500
        self._kernel, self._dns, self._ports, self._save = kernel, dns, ports, save
        self.pools = tuple(pools)
        self._dhcp = DhcpServer(kernel)
        self._firewall: dict[str, Segment] = {}
        self._types: dict[str, NetworkType] = all_types()
        self._changing = asyncio.Lock()  # networks come and go one at a time

    async def ensure_builtin(self, default_subnet: str) -> None:
        """Make the networks that are always there, at the first start."""
        names = {network.name for network in self.networks.values()}
        if {DEFAULT, HOST, NONE} <= names:
            return
        lock = await self._kernel.call(self._kernel.lock_subnets)
        try:
            routes = await self._kernel.call(self._kernel.foreign_routes)
            subnet = ipam.choose_default(default_subnet, [route.destination for route in routes])
            wishes = (
                Network(id="", name=DEFAULT, subnet=subnet, bridge=f"{self._kernel.prefix}0", builtin=True),
                Network(id="", name=HOST, driver=HOST, builtin=True),
                Network(id="", name=NONE, driver=NONE, builtin=True),
            )
            for wish in wishes:
                if wish.name not in names:
                    network = self._complete(wish, routes=())
                    await self._kernel.call(self._prepare, network)
                    self.networks[network.id] = network
            await self._save()
        finally:
            lock.close()

    async def ensure_ipv6(self, wanted: str) -> None:
        """Give the default network IPv6, or take it away: `wanted` is a subnet, `auto` for one of our own choice, or empty.
        End points that are there keep what they have. Raises Invalid."""
        default = next(network for network in self.networks.values() if network.name == DEFAULT)
        four, six = ranges_of(default, 4), ranges_of(default, 6)
        same = [each for each in six if wanted == ("auto" if each.chosen else each.subnet)]
        if bool(wanted) == bool(six) == bool(same):
            return
        asked = [AddressRange(subnet=wanted)] if wanted not in ("", "auto") else []
        wish = msgspec.structs.replace(with_ranges(default, [*four, *asked]), ipv6=bool(wanted))
        others = [network for network in self.networks.values() if network is not default]
        made = complete(wish, others=others, routes=(), pools=self.pools)
        kept = [msgspec.structs.replace(each, chosen=False) for each in ranges_of(made, 4)]
        self.networks[default.id] = with_ranges(made, [*kept, *ranges_of(made, 6)])
        await self._save()

    async def bring_up_all(self) -> None:
        """At start. A network whose parent interface the host has lost must not keep the others down."""
        for network in self.networks.values():
            try:
                await self.bring_up(network)
            except (HostFault, Invalid) as fault:
                if self.is_bridged(network):
                    raise
                log.error("a network cannot be made again", extra={"network": network.name, "fault": str(fault)})
        await self._kernel.call(self.apply_table)

    def interfaces(self) -> set[str]:
        """The names of the host's interfaces that the networks themselves stand on."""
        known = [network for network in self.networks.values() if not network.config_only]
        return {name for each in known for name in self._types[each.driver].interfaces(self._kernel, each)}

    async def bring_up(self, network: Network) -> None:
        """What the network needs on the host; on a segment DNS, and DHCP where machines are; the firewall follows in one go."""
        await self._kernel.call(self._prepare, network)
        if not self.is_bridged(network):
            return
        udp, tcp = await self._dns.listen(network) if options.has_gateway(network, 4) else (0, 0)
        sides = {version: side_of(network, version) for version in (4, 6)}
        self._firewall[network.id] = Segment(
            bridge=network.bridge,
            gateway=network.gateway,
            ipv4=sides[4] or Side(subnet=network.subnet),
            ipv6=sides[6],
            internal=network.internal,
            within=options.flag(network.options, options.ICC, default=True),
            dns_udp=udp,
            dns_tcp=tcp,
        )
        try:
            await self.announce(network)
        except HostFault as fault:  # the rest of the node's networks work without this one's DHCP
            log.error("machines get no addresses", extra={"network": network.name, "fault": str(fault)})

    def _prepare(self, network: Network) -> None:
        if network.config_only:
            return
        self._types[network.driver].prepare(self._kernel, network, options.mtu(network, self.default_mtu))

    def attach(self, endpoint: Endpoint) -> None:
        """Put an end point's interface in place. Blocking."""
        network = self.networks[endpoint.network]
        self._types[network.driver].attach(self._kernel, endpoint, network, options.mtu(network, self.default_mtu))

    def mend(self, endpoint: Endpoint) -> None:
        """Keep an end point's interface where it is whole, else make it again. Blocking."""
        network = self.networks[endpoint.network]
        self._types[network.driver].mend(self._kernel, endpoint, network, options.mtu(network, self.default_mtu))

    def point_resolver(self, netns: str, *, fresh: bool = False) -> None:
        """Let 127.0.0.11 in a namespace lead to the DNS server of one of its user-made segments. Blocking."""
        here = [each for each in self.endpoints.values() if each.netns == netns and self.has_names(each)]
        if here:
            self._kernel.point_resolver(here[0], self.networks[here[0].network].gateway, fresh=fresh)

    def has_names(self, endpoint: Endpoint) -> bool:
        """Whether names are told on an end point's segment."""
        network = self.networks[endpoint.network]
        return not network.builtin and self.is_bridged(network) and options.has_gateway(network, 4)

    def vacate(self, leaving: Sequence[Endpoint]) -> None:
        """Take interfaces out of namespaces that live on. Blocking."""
        for endpoint in leaving:
            if not endpoint.host_interface:
                self._kernel.remove_inside(endpoint)
        self._kernel.reap()

    def shape(self, endpoint: Endpoint) -> Endpoint:
        """A reserved end point as the type of its network has it."""
        network = self.networks[endpoint.network]
        return self._types[network.driver].shape(endpoint, network)

    def find(self, name_or_id: str) -> Network:
        """By name, id or unique prefix of an id. Raises NotFound, Invalid."""
        if found := self.networks.get(name_or_id):
            return found
        for network in self.networks.values():
            if network.name == name_or_id:
                return network
        matches = [n for n in self.networks.values() if name_or_id and n.id.startswith(name_or_id)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise Invalid(f"network {name_or_id} is ambiguous ({len(matches)} matches found based on ID prefix)")
        raise NotFound(f"network {name_or_id} not found", kind="network", name=name_or_id)

    def segment(self, name_or_id: str, *, bridged: bool = False) -> Network:
        """A network that takes end points, with `bridged` those of machines. Raises NotFound, Forbidden."""
        network = self.find(name_or_id)
        kind = self._types[network.driver]
        if network.config_only:
            raise Forbidden(f"cannot connect to the configuration-only network {network.name}")
        if not kind.takes_endpoints:
            raise Forbidden(kind.refusal(network))
        if bridged and not kind.has_segment:
            raise Forbidden(f"a machine cannot be connected to the {network.driver} network {network.name}")
        return network

    def is_bridged(self, network: Network) -> bool:
        """Whether there is a bridge, with DNS, DHCP and published ports."""
        return self._types[network.driver].has_segment and not network.config_only

    def segmented(self) -> list[Network]:
        """The networks that have a bridge."""
        return [network for network in self.networks.values() if self.is_bridged(network)]

    async def create(self, network: Network) -> Network:
        """Make it; what is empty is chosen."""
        async with self._changing:
            if not NAME.fullmatch(network.name.replace(" ", "_")):
                raise Invalid(
                    f"{network.name} is not a network name: letters, digits, blanks, _ . - after the first",
                    field="name",
                )
            if any(n.name == network.name for n in self.networks.values()):
                raise AlreadyExists(
                    f"network with name {network.name} already exists", kind="network", name=network.name
                )
            lock = await self._kernel.call(self._kernel.lock_subnets)
            try:
                routes = await self._kernel.call(self._kernel.foreign_routes)
                made = self._complete(msgspec.structs.replace(network, builtin=False), routes=routes)
                await self._make_segment(made)
            finally:
                lock.close()
            return made

    async def _make_segment(self, network: Network) -> None:
        there = await self._kernel.call(self._kernel.has_interface, network.bridge) if network.bridge else False
        if there:
            raise Conflict(f"The host has an interface {network.bridge} already.", field="bridge")
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._save)
            self.networks[network.id] = network
            undo.callback(self.networks.pop, network.id)
            await (
                self._save()
            )  # first, so that a killed creation is finished by the next start, whatever the bridge's name
            undo.push_async_callback(self._tear_down, network)
            await self.bring_up(network)
            await self._kernel.call(self.apply_table)
            undo.pop_all()

    def _complete(self, wish: Network, routes: Sequence[Route]) -> Network:
        if wish.driver not in self._types:
            raise NotFound(f'plugin "{wish.driver}" not found', kind="plugin", name=wish.driver)
        view = View(
            networks=list(self.networks.values()),
            routes=routes,
            pools=self.pools,
            prefix=self._kernel.prefix,
        )
        wish = inherit(wish, view.networks)
        network = wish if wish.config_only else self._types[wish.driver].complete(wish, view)
        created = network.created or clock.rfc3339_nano(clock.now())
        return msgspec.structs.replace(network, id=network.id or secrets.token_hex(32), created=created)

    async def remove(self, name_or_id: str) -> None:
        """Raises Conflict while end points are on it, Forbidden for a built-in one."""
        async with self._changing:
            network = self.find(name_or_id)
            if network.builtin:
                raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
            if any(e.network == network.id for e in self.endpoints.values()):
                raise Conflict(
                    f"error while removing network: network {network.name} id {network.id} has active endpoints"
                )
            check_unused(network, self.networks.values())
            del self.networks[network.id]
            try:
                await self._tear_down(network)
                await self._save()
            except BaseException:
                self.networks[network.id] = network
                raise

    async def _tear_down(self, network: Network) -> None:
        self._firewall.pop(network.id, None)
        await self._dns.forget(network.id)
        self._dhcp.forget(network.bridge)
        if not network.config_only:
            kind = self._types[network.driver]
            await self._kernel.call(kind.clear, self._kernel, network)
        if network.bridge:
            await self._kernel.call(self.apply_table)

    async def announce(self, network: Network) -> None:
        """Tell DNS and DHCP who is on a segment."""
        if not self.is_bridged(network):
            return
        there = [e for e in self.endpoints.values() if e.network == network.id]
        self._dns.set_names(network, there)
        mtu = options.mtu(network, self.default_mtu)
        await self._dhcp.serve(network.bridge, [_lease(e, network, mtu) for e in there if e.tap])

    def apply_or_replace(self, commands: str) -> None:
        """A small firewall change; where the table is not as we left it (somebody flushed the rules), the whole table
        instead. Blocking."""
        try:
            self._kernel.apply(commands)
        except HostFault:
            self.apply_table()

    def apply_table(self) -> None:
        """Replace the firewall's table. Blocking."""
        self._kernel.apply(firewall.table(self._kernel.table, tuple(self._firewall.values()), self._ports.all()))

    def stop_dhcp(self) -> None:
        """Let go of the DHCP sockets."""
        self._dhcp.close()


def side_of(network: Network, version: int) -> Side | None:
    """What the firewall knows of one IP version of a network."""
    found = ranges_of(network, version)
    if not found:
        return None
    mode = options.gateway_mode(network, version)
    return Side(
        subnet=found[0].subnet,
        masquerade=options.masquerades(network, version),
        source=options.source_address(network, version),
        routed=mode == "routed",
        open=mode == "nat-unprotected",
    )


def _lease(endpoint: Endpoint, network: Network, mtu: int) -> Lease:
    return Lease(
        mac=endpoint.mac,
        address=endpoint.address,
        prefix=endpoint.prefix,
        server=network.gateway,
        router=endpoint.gateway,
        dns=network.gateway,
        hostname=endpoint.hostname,
        mtu=mtu,
    )
