"""`NodeNetworks`: the networks of one node, put together from the parts beside this file.

    ledger     what was acknowledged         kernel    bridges, veths, taps, nftables, on one thread
    ipam       which addresses               firewall  the nftables table as a pure function
    ports      who has which host port       dns, dhcp what runs on each segment
    pool       namespaces kept ready         recovery  making the kernel agree with the ledger

Order of every change: decide and reserve in memory (no await, so two callers cannot choose the same) → kernel → ledger →
answer. A failure in between takes the reservation and the kernel's part back; a kill in between leaves what `recover` removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from insula.errors import Conflict, HostFault, InsulaError, Invalid, NotFound
from insula.host import netns as namespaces
from insula.model.instance import PortMapping
from insula.networks import firewall, ipam, options, probe, ranges
from insula.networks.contract import Endpoint, Network, Published, Zone
from insula.networks.dns import DnsServer
from insula.networks.kernel import Kernel
from insula.networks.leases import Leases
from insula.networks.ledger import Ledger, LedgerFile
from insula.networks.pool import NamespacePool
from insula.networks.ports import PortTable
from insula.networks.recovery import orphans
from insula.networks.reserve import Wish, by_rank, reserve, with_metrics
from insula.networks.segments import NAME, Segments
from insula.tasks import Tasks, in_thread

log = logging.getLogger(__name__)

_POOL_SIZE = 4
_REAP_S = 0.5


class NodeNetworks:
    """Implements `networks.contract.Networks`. Made by `open`; used on the event loop."""

    def __init__(
        self,
        state_dir: Path,
        runtime_dir: Path,
        *,
        prefix: str = "ins",
        table: str = "insula",
        default_subnet: str = "10.88.0.0/16",
        default_subnet6: str = "",
        pools: Sequence[ipam.Pool] = ipam.DEFAULT_POOLS,
        resolv_conf: Path = Path("/etc/resolv.conf"),
        host_netns: str = "",
        pool_size: int = _POOL_SIZE,
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,5}", prefix):
            raise Invalid(f"{prefix} is not a prefix for interfaces: 1 to 6 of a-z 0-9", field="prefix")
        if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]{0,63}", table):
            raise Invalid(f"{table} is not a name for an nftables table", field="table")
        self._default_subnet, self._default_subnet6 = default_subnet, default_subnet6
        self._netns_dir = runtime_dir / "netns"
        self._state_dir = state_dir
        self._kernel = Kernel(prefix, table, host_netns)
        self._file = LedgerFile(state_dir / "networks.json", self._snapshot)
        self._last_address: dict[str, dict[str, str]] = {}  # network to subnet to the address given last
        self._leases = Leases()
        self._ports = PortTable()
        self._dns = DnsServer(resolv_conf, self._make_socket)
        self._segments = Segments(self._kernel, self._dns, self._ports, pools, self._save_durably)
        self._pool = NamespacePool(pool_size)
        self._tasks = Tasks("networks")
        self._reaping: asyncio.Task[None] | None = None

    # --- life

    @classmethod
    async def open(cls, state_dir: Path, runtime_dir: Path, **options: object) -> Self:
        """Load the ledger and make bridges, firewall, DNS and DHCP agree with it; nothing is removed before `recover`. The
        options are those of the constructor: `prefix` of interface names and `table`, which differ for every Insula on a
        host; `default_subnet`, replaced by a free one at the first start when the host has a route that overlaps it;
        `default_subnet6` as `Segments.ensure_ipv6` has it; `pools`
        for the subnets of further networks; `resolv_conf`; `host_netns`, a namespace that plays the host.
        Raises HostFault, Unavailable, Invalid."""
        networks = cls(state_dir, runtime_dir, **options)  # type: ignore[arg-type]
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(networks.close)
            await networks._start()
            undo.pop_all()
        return networks

    async def _start(self) -> None:
        await in_thread(self._state_dir.mkdir, parents=True, exist_ok=True)
        await in_thread(self._netns_dir.mkdir, parents=True, exist_ok=True)
        ledger = await self._file.load()
        self._segments.networks = {n.id: n for n in ledger.networks}
        self._segments.endpoints = {e.id: e for e in with_metrics(ledger.endpoints)}
        self._leases = Leases(ledger.leases)
        await self._kernel.call(self._kernel.prepare_host)
        self._segments.pools = (*self._segments.pools, ipam.ula_pool(await in_thread(_seed, self._state_dir)))
        self._segments.default_mtu = await self._kernel.call(self._kernel.default_mtu)
        await self._kernel.call(self._ports.restore, ledger.published)
        await self._segments.ensure_builtin(self._default_subnet)
        await self._segments.ensure_ipv6(self._default_subnet6)
        await self._segments.bring_up_all()
        await self._kernel.call(self._kernel.open_docker_user)
        self._pool.start()

    async def close(self) -> None:
        """Stop DNS, DHCP and the pool, let go of the ports' sockets; the kernel's state stays, workloads use it."""
        await self._tasks.close()
        if self._reaping is not None:
            await self._reap()
        await self._pool.close()
        await self._dns.close()
        self._segments.stop_dhcp()
        await self._kernel.call(self._ports.close)
        await self._kernel.close()
        await asyncio.sleep(0)  # the loop closes the sockets of ended transports in its next round

    async def destroy(self) -> None:
        """Remove every interface, rule and namespace; user-made networks stay in the ledger. Ends with `close`."""
        async with contextlib.AsyncExitStack() as steps:  # runs every step, whatever fails
            steps.push_async_callback(self.close)
            steps.push_async_callback(self._forget_all)
            steps.push_async_callback(self._kernel.call, self._kernel.apply, firewall.drop(self._kernel.table))
            steps.push_async_callback(self._kernel.call, self._kernel.close_docker_user)
            steps.push_async_callback(self._kernel.call, self._remove_own_links)
            for path in await in_thread(lambda: list(self._netns_dir.iterdir())):
                steps.push_async_callback(in_thread, namespaces.unbind, path)
            await self._dns.close()
            self._segments.stop_dhcp()

    async def _forget_all(self) -> None:
        self._segments.endpoints.clear()
        await self._kernel.call(lambda: self._ports.release(self._ports.all()))
        await self._file.save(durable=True)

    def _remove_own_links(self) -> None:
        bridges = [network.bridge for network in self._segments.segmented()]
        self._kernel.remove_links([*(link.name for link in self._kernel.own_links()), *bridges])

    async def recover(self, owners: Sequence[str]) -> None:
        """Drop what belongs to no owner or lives in a namespace that is gone; make again what the kernel lost."""
        keep = set(owners)
        dead = {e.netns for e in self._segments.endpoints.values() if e.netns and not namespaces.is_namespace(e.netns)}
        lost = orphans(self._segments.endpoints.values(), self._ports.all(), keep, dead)
        for endpoint in lost.endpoints:
            del self._segments.endpoints[endpoint.id]
        expected = {e.host_interface for e in self._segments.endpoints.values()} | self._segments.interfaces()
        await self._kernel.call(self._prune, expected, lost.published)
        for path in await in_thread(lambda: list(self._netns_dir.iterdir())):
            if path.name not in keep:
                await in_thread(namespaces.unbind, path)
        for endpoint in list(self._segments.endpoints.values()):
            try:
                await self._kernel.call(self._segments.mend, endpoint)
            except (InsulaError, OSError) as fault:  # one lost end point must not keep the others from recovering
                log.error("an end point cannot be made again", extra={"owner": endpoint.owner, "fault": str(fault)})
        for network in self._segments.segmented():
            await self._segments.announce(network)
        await self._file.save()

    def _prune(self, expected: set[str], ports: Sequence[Published]) -> None:
        self._ports.release(ports)
        self._segments.apply_table()
        self._kernel.remove_links([link.name for link in self._kernel.own_links() if link.name not in expected])

    # --- networks

    async def get(self, name_or_id: str) -> Network:
        """By name, id or unique prefix of an id."""
        return self._segments.find(name_or_id)

    async def create(self, network: Network) -> Network:
        """Make it; what is empty is chosen."""
        return await self._segments.create(network)

    async def remove(self, name_or_id: str) -> None:
        """Raises Conflict while end points are on it, Forbidden for a built-in one."""
        network = self._segments.find(name_or_id)
        await self._segments.remove(network.id)
        self._last_address.pop(network.id, None)
        self._leases.forget(network.id)

    async def list(self) -> Sequence[Network]:
        """Built-in first, then by name."""
        return sorted(self._segments.networks.values(), key=lambda n: (not n.builtin, n.name))

    # --- namespaces

    async def make_namespace(self, owner: str) -> str:
        """A fresh network namespace, bound to a path; one that a killed attempt left is replaced."""
        path = self._namespace_path(owner)
        fd = await self._pool.take()
        try:
            await in_thread(_bind_fresh, fd, path)
        finally:
            os.close(fd)
        return str(path)

    async def drop_namespace(self, owner: str) -> None:
        """Unbind it. Repeatable."""
        await in_thread(namespaces.unbind, self._namespace_path(owner))

    def _namespace_path(self, owner: str) -> Path:
        if not NAME.fullmatch(owner):
            raise Invalid(f"{owner} is not an id that a namespace can be named after", field="owner")
        return self._netns_dir / owner

    # --- end points

    async def connect(
        self,
        network: str,
        owner: str,
        *,
        netns: str,
        address: str = "",
        mac: str = "",
        aliases: Sequence[str] = (),
        hostname: str = "",
        address6: str = "",
        resolvers: Sequence[str] = (),
        priority: int = 0,
        options: Mapping[str, str] | None = None,
    ) -> Endpoint:
        """Put an interface into the namespace. Connecting the same owner, network and namespace again mends what is there."""
        segment = self._segments.segment(network)
        if there := self._endpoint(owner, segment.id):
            if there.netns == netns:
                await self._kernel.call(self._segments.mend, there)
                return there
            await self.disconnect(owner, segment.id)
        wish = Wish(
            owner=owner,
            netns=netns,
            address=address,
            address6=address6,
            mac=mac,
            aliases=tuple(aliases),
            hostname=hostname,
            resolvers=tuple(resolvers),
            priority=priority,
            options=dict(options or {}),
        )
        return await self._join(self._reserve(segment, wish), segment)

    async def connect_tap(
        self, network: str, owner: str, *, mac: str = "", address: str = "", hostname: str = ""
    ) -> Endpoint:
        """Make a tap on the bridge for a machine and a DHCP lease for its MAC. Repeatable."""
        segment = self._segments.segment(network, bridged=True)
        if there := self._endpoint(owner, segment.id):
            await self._kernel.call(self._segments.mend, there)
            return there
        wish = Wish(owner=owner, address=address, mac=mac, hostname=hostname)
        return await self._join(self._reserve_tap(segment, wish), segment)

    def _reserve_tap(self, network: Network, wish: Wish) -> Endpoint:
        """A machine that says its MAC gets the address that it had before, if that is free."""
        had = self._leases.find(network.id, wish.mac.lower()) if wish.mac and not wish.address else ""
        if had and not any(each.address == had for each in self._segments.endpoints.values()):
            with contextlib.suppress(Invalid, Conflict):  # the network's ranges have changed
                return self._reserve(network, msgspec.structs.replace(wish, address=had))
        endpoint = self._reserve(network, wish)
        if wish.mac:
            self._leases.keep(network.id, endpoint.mac, endpoint.address)
        return endpoint

    def _reserve(self, network: Network, wish: Wish) -> Endpoint:
        """Choose and record an end point, without waiting. Raises Invalid, Conflict, Unavailable."""
        last = self._last_address.setdefault(network.id, {})
        endpoint = self._segments.shape(
            reserve(network, wish, self._segments.endpoints.values(), last, prefix=self._kernel.prefix)
        )
        for given, asked in ((endpoint.address, wish.address), (endpoint.address6, wish.address6)):
            if given and not asked:
                last[ranges.range_with(network, given).subnet] = given
        self._segments.endpoints[endpoint.id] = endpoint
        return endpoint

    async def _join(self, endpoint: Endpoint, network: Network) -> Endpoint:
        try:
            await self._kernel.call(self._segments.attach, endpoint)
            await self._rank(endpoint)
            if endpoint.netns and self._segments.has_names(endpoint):
                await self._kernel.call(self._segments.point_resolver, endpoint.netns, fresh=not endpoint.metric)
            await self._segments.announce(network)
            await self._file.save()
        except BaseException:
            await asyncio.shield(self._leave([endpoint]))
            raise
        return self._segments.endpoints[endpoint.id]

    async def _rank(self, endpoint: Endpoint) -> None:
        """Give the default route to the end point of the same namespace that comes first, where another one has it."""
        here = [e for e in self._segments.endpoints.values() if endpoint.netns and e.netns == endpoint.netns]
        names = {network.id: network.name for network in self._segments.networks.values()}
        ranked = by_rank(here, names)
        if ranked == sorted(here, key=lambda each: each.metric):
            return
        first = max(each.metric for each in here) + 1
        moved = [msgspec.structs.replace(each, metric=first + n) for n, each in enumerate(ranked)]
        self._segments.endpoints.update({each.id: each for each in moved})
        await self._kernel.call(self._kernel.reroute, ranked, moved)

    async def disconnect(self, owner: str, network: str = "") -> None:
        """Take the owner off one network or all. Repeatable."""
        wanted = self._segments.find(network).id if network else ""
        leaving = [e for e in self._segments.endpoints.values() if e.owner == owner and wanted in ("", e.network)]
        if not leaving:
            return
        await self._leave(leaving)
        if wanted:  # the namespace lives on and must not show the interface any more
            await self._kernel.call(self._segments.vacate, leaving)
            for netns in {each.netns for each in leaving if each.netns}:
                await self._kernel.call(self._segments.point_resolver, netns)
        elif self._reaping is None or self._reaping.done():
            self._reaping = self._tasks.spawn(self._reap_later(), "reap")

    async def _leave(self, leaving: Sequence[Endpoint]) -> None:
        addresses = {address for e in leaving for address in (e.address, e.address6) if address}
        ports = [p for p in self._ports.all() if p.address in addresses]
        await self._kernel.call(self._cut_off, [e.host_interface for e in leaving], ports)
        for endpoint in leaving:
            self._segments.endpoints.pop(endpoint.id, None)
        for network_id in {e.network for e in leaving}:
            if network := self._segments.networks.get(network_id):
                await self._segments.announce(network)
        await self._file.save()

    def _cut_off(self, names: Sequence[str], ports: Sequence[Published]) -> None:
        self._close_ports(ports)
        self._kernel.detach(names)

    async def _reap_later(self) -> None:
        """Removing interfaces holds the kernel's network lock for some 15 ms, so those of many owners that end go together;
        most went with their namespaces by then."""
        await asyncio.sleep(_REAP_S)
        await self._reap()

    async def _reap(self) -> None:
        with contextlib.suppress(HostFault):  # `recover` removes what stays
            await self._kernel.call(self._kernel.reap)

    async def endpoints(self, *, owner: str = "", network: str = "") -> Sequence[Endpoint]:
        """Who is where."""
        wanted = self._segments.find(network).id if network else ""
        return [e for e in self._segments.endpoints.values() if owner in ("", e.owner) and wanted in ("", e.network)]

    async def rename(self, owner: str, *, aliases: Sequence[str]) -> None:
        """Change the names that DNS knows the owner by."""
        for endpoint in [e for e in self._segments.endpoints.values() if e.owner == owner]:
            self._segments.endpoints[endpoint.id] = msgspec.structs.replace(endpoint, aliases=tuple(aliases))
            await self._segments.announce(self._segments.networks[endpoint.network])
        await self._file.save()

    def _endpoint(self, owner: str, network_id: str) -> Endpoint | None:
        return next((e for e in self._segments.endpoints.values() if (e.owner, e.network) == (owner, network_id)), None)

    # --- ports

    async def publish(
        self, owner: str, address: str, ports: Sequence[PortMapping], *, name: str = ""
    ) -> Sequence[Published]:
        """Open ports on the host for an address of an end point, all or none. `name` is the instance's, for the sentence of
        a refusal."""
        if not ports:
            return []
        endpoint = self._at(address)
        network = self._segments.networks[endpoint.network]
        if network.internal or not self._segments.is_bridged(network):
            return []
        who = f"{name or owner[:12]} ({endpoint.id})"
        host_ip = network.options.get(options.HOST_BINDING, "")
        if host_ip:
            ports = [p if p.host_ip else msgspec.structs.replace(p, host_ip=host_ip) for p in ports]
        opened = await self._kernel.call(self._open_ports, owner, endpoint, ports, who)
        try:
            await self._file.save()
        except BaseException:
            await asyncio.shield(self._kernel.call(self._close_ports, opened))
            raise
        return opened

    def _at(self, address: str) -> Endpoint:
        found = next((e for e in self._segments.endpoints.values() if address and e.address == address), None)
        if found is None:
            raise NotFound(f"no end point has the address {address}", kind="endpoint", name=address)
        return found

    def _open_ports(
        self, owner: str, endpoint: Endpoint, ports: Sequence[PortMapping], who: str
    ) -> Sequence[Published]:
        network = self._segments.networks[endpoint.network]
        routed = {v: options.gateway_mode(network, v) == "routed" for v in (4, 6)}
        behind = msgspec.structs.replace(
            endpoint,
            address="" if routed[4] else endpoint.address,
            address6="" if routed[6] else endpoint.address6,
        )
        opened, new = self._ports.take(owner, behind, ports, who)
        direct = [a for v, a in ((4, endpoint.address), (6, endpoint.address6)) if a and routed[v]]
        new += (routed_ports := self._ports.open_routed(owner, direct, ports))
        opened = [*opened, *routed_ports]
        try:
            self._segments.apply_or_replace(firewall.add_ports(self._kernel.table, opened))
            self._kernel.forget_flows(new)
        except BaseException:
            self._ports.release(new)
            raise
        return opened

    async def unpublish(self, owner: str) -> None:
        """Close all ports of an owner. Repeatable."""
        if ports := self._ports.of(owner):
            await self._kernel.call(self._close_ports, ports)
            await self._file.save()

    def _close_ports(self, ports: Sequence[Published]) -> None:
        self._ports.release(ports)
        if ports:
            self._segments.apply_or_replace(firewall.delete_ports(self._kernel.table, ports))
            self._kernel.forget_flows(ports)

    async def published(self, owner: str) -> Sequence[Published]:
        """The open ports of an owner."""
        return self._ports.of(owner)

    # --- names, and the rest

    def set_zone(self, suffix: str, zone: Zone | None) -> None:
        """Answer DNS names at and below `suffix` on all segments with `zone`; None takes it away."""
        self._dns.set_zone(suffix, zone)

    async def probe(self) -> Sequence[str]:
        """What this host lacks or does that networks suffer from, as sentences for `insula doctor`."""
        return await self._kernel.call(probe.notes, self._kernel)

    async def _make_socket(self, family: int, kind: int) -> socket.socket:
        if not self._kernel.host_netns:
            return socket.socket(family, kind | socket.SOCK_CLOEXEC)
        return await self._kernel.call(socket.socket, family, kind | socket.SOCK_CLOEXEC)

    async def _save_durably(self) -> None:
        await self._file.save(durable=True)

    def _snapshot(self) -> Ledger:
        return Ledger(
            networks=list(self._segments.networks.values()),
            endpoints=list(self._segments.endpoints.values()),
            published=self._ports.all(),
            leases=self._leases.all(),
        )


def _seed(state_dir: Path) -> str:
    """What no other node shares: the machine's id where it has one (machine-id(5)), and the place of this Insula on it."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = socket.gethostname()
    return f"{machine} {state_dir}"


def _bind_fresh(fd: int, path: Path) -> None:
    namespaces.unbind(path)
    namespaces.bind(fd, path)
