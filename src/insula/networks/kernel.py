"""All that the networks do to the kernel, on one thread that lives in the host's network namespace.

Every method blocks and is run by `Kernel.call`; the thread carries them out one after the other, which costs nothing: the
kernel takes one lock for all of these anyway. Names of interfaces: PREFIX0 is the default bridge, PREFIX + b, v or t + 8
hex digits a bridge, veth or tap; what is made under another name (a VLAN of a macvlan network) is put into a link group of
our own. Nothing else in the system is touched.
"""

from __future__ import annotations

import contextlib
import errno
import re
import secrets
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from insula.errors import Conflict, HostFault, NotFound, Unavailable
from insula.host import netlink, netns
from insula.host.netlink import Link, Route, Rtnl
from insula.host.nft import Nft, run_once
from insula.networks import firewall, options
from insula.networks.contract import Endpoint, Network, Published
from insula.networks.ranges import ranges_of, version_of

P = ParamSpec("P")
T = TypeVar("T")

_DYING = 0x494E53  # the link group in which interfaces wait for their removal
_IPV6 = Path("/proc/sys/net/ipv6")


def host_mac() -> str:
    """A random MAC for the host's end of a pair; fe: keeps it above every other one."""
    return "fe:" + secrets.token_bytes(5).hex(":")


def _default_routes(endpoint: Endpoint, index: int) -> list[netlink.Request]:
    found = []
    if endpoint.gateway or endpoint.on_link:
        found.append(netlink.add_default_route(index, endpoint.gateway, metric=endpoint.metric))
    if endpoint.gateway6:
        found.append(netlink.add_default_route(index, endpoint.gateway6, metric=endpoint.metric))
    return found


class Kernel:
    """The host's network namespace as one node's networks use it. `host_netns` is a path, empty for the process's own."""

    def __init__(self, prefix: str, table: str, host_netns: str = "") -> None:
        self.prefix, self.table = prefix, table
        self.host_netns = host_netns
        self._thread = netns.NamespaceThread(f"insula-net-{prefix}", host_netns)
        self._own = re.compile(re.escape(prefix) + r"(0|[bvt][0-9a-f]{8})")
        self.group = zlib.crc32(f"insula {prefix}".encode()) | 1  # of interfaces that do not carry our prefix
        self._rtnl: Rtnl | None = None
        self._nft: Nft | None = None

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one of the blocking methods below."""
        return await self._thread.call(work, *args, **kwargs)

    async def close(self) -> None:
        """Let go of sockets and thread."""
        await self.call(self._release)
        self._thread.close()

    def _release(self) -> None:
        if self._rtnl:
            self._rtnl.close()
        if self._nft:
            self._nft.close()

    @property
    def rtnl(self) -> Rtnl:
        """Opened at first use, on the thread."""
        if self._rtnl is None:
            self._rtnl = Rtnl()
        return self._rtnl

    @property
    def nft(self) -> Nft:
        """Opened at first use, on the thread."""
        if self._nft is None:
            self._nft = Nft()
        return self._nft

    # --- the host

    def prepare_host(self) -> None:
        """Let the host route between its interfaces, as every container engine does. Raises HostFault."""
        netns.sysctl("ipv4/ip_forward", "1")

    def prepare_ipv6(self) -> None:
        """The same for IPv6. Forwarding makes the kernel deaf to router advertisements, which uplinks may have their own
        address and default route from: those that listened go on listening. Raises HostFault."""
        if Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text().strip() == "1":
            return
        for setting in Path("/proc/sys/net/ipv6/conf").glob("*/accept_ra"):
            if setting.read_text().strip() == "1":
                netns.sysctl(f"ipv6/conf/{setting.parent.name}/accept_ra", "2")
        netns.sysctl("ipv6/conf/all/forwarding", "1")

    def default_mtu(self) -> int:
        """The MTU of the interface that the default route uses, so that nothing is fragmented on its way out; else 1500."""
        links = {link.index: link for link in self.rtnl.links()}
        for route in self.rtnl.routes():
            if route.destination == "0.0.0.0/0" and route.index in links:
                return min(max(links[route.index].mtu, 576), 9000)
        return 1500

    def foreign_routes(self) -> list[Route]:
        """The host's routes besides those over our own bridges."""
        own = {link.index for link in self.own_links()}
        routes = [*self.rtnl.routes(), *(self.rtnl.routes(ipv6=True) if _IPV6.exists() else ())]
        return [route for route in routes if route.index not in own]

    def own_links(self) -> list[Link]:
        """Interfaces that carry one of our names, or our group."""
        return [link for link in self.rtnl.links() if self._own.fullmatch(link.name) or link.group == self.group]

    def lock_subnets(self, deadline_s: float = 10.0) -> socket.socket:
        """Hold the right to choose a subnet on this host until the socket is closed: an abstract Unix socket, which lives in
        the network namespace and ends with its holder. Raises Unavailable."""
        until = time.monotonic() + deadline_s
        while True:
            lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                lock.bind("\0insula/subnets")
                return lock
            except OSError:
                lock.close()
            if time.monotonic() > until:
                raise Unavailable("Another Insula on this host has been choosing subnets for too long.")
            time.sleep(0.01)

    # --- segments

    def ensure_bridge(self, network: Network, mtu: int) -> None:
        """Make a segment's bridge with its gateway addresses, or mend one that is there."""
        name = network.bridge
        link = self.rtnl.link(name)
        if link and link.kind != "bridge":
            raise Conflict(f"The host has an interface {name} already and it is not a bridge.", field="bridge")
        if not link:
            mac = "02:42:" + secrets.token_bytes(4).hex(":")
            self.rtnl.run(netlink.add_bridge(name, mac=mac, mtu=mtu), ignore=(errno.EEXIST,))
        self._settle_bridge(network)
        index = self.bridge_index(name)
        alive = netlink.set_link(name, up=True, group=0)  # a killed removal may have marked it
        addresses = [
            netlink.add_address(index, each.gateway, int(each.subnet.partition("/")[2]))
            for each in ranges_of(network)
            if each.gateway and options.has_gateway(network, version_of(each.subnet))
        ]
        self.rtnl.run(alive, *addresses)

    def _settle_bridge(self, network: Network) -> None:
        netns.sysctl(f"ipv4/conf/{network.bridge}/route_localnet", "1")
        if not _IPV6.exists():
            return
        if network.ipv6:
            self.prepare_ipv6()
            netns.sysctl(f"ipv6/conf/{network.bridge}/accept_ra", "0")
        netns.sysctl(f"ipv6/conf/{network.bridge}/disable_ipv6", "0" if network.ipv6 else "1")

    def has_interface(self, name: str) -> bool:
        """Whether the host has an interface of this name."""
        return self.rtnl.link(name) is not None

    def remove_links(self, names: Iterable[str]) -> None:
        """Remove interfaces, all at the price of one. Missing ones are fine."""
        dying = [netlink.set_link(name, up=False, group=_DYING) for name in names if name]
        if dying:
            self.rtnl.run(*dying, ignore=(errno.ENODEV,))
            self.reap()

    def bridge_index(self, name: str) -> int:
        """The index of a bridge, or of another interface that end points hang on. Raises HostFault when somebody removed it."""
        link = self.rtnl.link(name)
        if link is None:
            message = f"The interface {name} has disappeared from the host; restart Insula to have it made again."
            raise HostFault(message, command=f"ip link show {name}", code=errno.ENODEV)
        return link.index

    # --- end points

    def attach_veth(self, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """Put an end point into its namespace: pair, bridge port, MAC, addresses, routes. On failure nothing is left."""
        with contextlib.ExitStack() as undo:
            namespace = undo.enter_context(open(endpoint.netns, "rb", buffering=0))
            master = self.bridge_index(network.bridge)
            cleanup = undo.enter_context(contextlib.ExitStack())
            pair = netlink.add_veth(
                endpoint.host_interface,
                mac=host_mac(),
                mtu=mtu,
                peer=endpoint.interface,
                peer_mac=endpoint.mac,
                peer_netns_fd=namespace.fileno(),
            )
            cleanup.callback(self._remove_quietly, endpoint.host_interface)
            self.rtnl.run(pair, *self._ports(endpoint.host_interface, master, network))
            self.settle_inside(endpoint, namespace.fileno())
            cleanup.pop_all()

    def _port(self, name: str, master: int) -> netlink.Request:
        return netlink.set_link(name, master=master, group=0, up=True, no_ipv6=_IPV6.exists())

    def _ports(self, name: str, master: int, network: Network) -> tuple[netlink.Request, ...]:
        isolated = not options.flag(network.options, options.ICC, default=True)
        return self._port(name, master), netlink.set_bridge_port(name, isolated=isolated)

    def settle_inside(self, endpoint: Endpoint, namespace: int) -> None:
        """Settings, addresses and the default route of an end point's interface, which is in its namespace already."""
        with netns.inside(namespace), Rtnl() as inner:
            link = inner.link(endpoint.interface)
            if link is None:
                raise HostFault(f"{endpoint.interface} has disappeared from {endpoint.netns}.")
            if endpoint.address6:
                for name, value in (("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")):
                    netns.sysctl(f"ipv6/conf/{endpoint.interface}/{name}", value)
            for name, value in options.sysctls(endpoint.options):
                netns.sysctl(name.removeprefix("net.").replace(".", "/").replace("IFNAME", endpoint.interface), value)
            requests = [netlink.set_link(endpoint.interface, up=True)]
            if endpoint.address:
                requests.append(netlink.add_address(link.index, endpoint.address, endpoint.prefix))
            if endpoint.address6:
                requests.append(netlink.add_address(link.index, endpoint.address6, endpoint.prefix6))
            inner.run(*requests, *_default_routes(endpoint, link.index))

    def point_resolver(self, endpoint: Endpoint, gateway: str, *, fresh: bool) -> None:
        """Let 127.0.0.11 inside of a namespace stand for the DNS server of a segment. A kernel that cannot goes without: the
        server is also known by its own address."""
        with netns.inside(endpoint.netns), contextlib.suppress(HostFault, Unavailable):
            run_once(firewall.resolver(gateway, fresh=fresh))
            netns.sysctl(f"ipv4/conf/{endpoint.interface}/route_localnet", "1")

    def reroute(self, before: Sequence[Endpoint], after: Sequence[Endpoint]) -> None:
        """Change which end point of a namespace has the default route: the new metrics are set before the old ones go."""
        with netns.inside(after[0].netns), Rtnl() as inner:
            index = {link.name: link.index for link in inner.links()}
            present = [(old, new, index[old.interface]) for old, new in zip(before, after, strict=True)
                       if old.interface in index]  # fmt: skip
            inner.run(*(request for _, new, at in present for request in _default_routes(new, at)))
            stale = [
                netlink.delete_default_route(at, old.metric + ipv6, ipv6=bool(ipv6))
                for old, _, at in present
                for ipv6, there in ((0, old.gateway or old.on_link), (1, old.gateway6))
                if there
            ]
            if stale:
                inner.run(*stale, ignore=(errno.ESRCH,))

    def attach_tap(self, tap: str, network: Network, mtu: int) -> None:
        """Make a machine's tap, or keep the one that a running machine holds, and put it on the bridge."""
        with contextlib.ExitStack() as undo:
            if self.rtnl.link(tap) is None:
                undo.callback(self._remove_quietly, tap)
                netlink.add_tap(tap)
            master = self.bridge_index(network.bridge)
            self.rtnl.run(netlink.set_link(tap, mtu=mtu), *self._ports(tap, master, network))
            undo.pop_all()

    def mend_veth(self, endpoint: Endpoint, network: Network, mtu: int) -> None:
        """After a restart: keep the pair when both ends are there, else make it again. Raises NotFound without namespace."""
        if self.rtnl.link(endpoint.host_interface) is None or not self.is_inside(endpoint):
            self.remove_links([endpoint.host_interface])
            self.attach_veth(endpoint, network, mtu)
            return
        self.rtnl.run(*self._ports(endpoint.host_interface, self.bridge_index(network.bridge), network))
        with open(endpoint.netns, "rb", buffering=0) as namespace:
            self.settle_inside(endpoint, namespace.fileno())

    def is_inside(self, endpoint: Endpoint) -> bool:
        """Whether an end point's interface is in its namespace. Raises NotFound without namespace."""
        with netns.inside(endpoint.netns), Rtnl() as inner:
            return inner.link(endpoint.interface) is not None

    def attach_child(self, endpoint: Endpoint, kind: str, parent: str, data: bytes, mtu: int) -> None:
        """Put an interface on top of a host's one into the end point's namespace. On failure nothing is left."""
        with open(endpoint.netns, "rb", buffering=0) as namespace, contextlib.ExitStack() as cleanup:
            child = netlink.add_child(
                kind, endpoint.interface, parent=self.bridge_index(parent), data=data, mac=endpoint.mac, mtu=mtu,
                netns_fd=namespace.fileno(),
            )  # fmt: skip
            cleanup.callback(self.remove_inside, endpoint)
            self.add_child(child, kind)
            self.settle_inside(endpoint, namespace.fileno())
            cleanup.pop_all()

    def add_child(self, child: netlink.Request, module: str) -> None:
        """Make an interface of a kind that a kernel may lack. Raises HostFault naming the module."""
        try:
            self.rtnl.run(child)
        except HostFault as fault:
            if fault.code != errno.EOPNOTSUPP:
                raise
            raise HostFault(
                f"The kernel lacks what this network needs: load the module {module}.",
                command=f"modprobe {module}; {child.command}",
                code=fault.code,
            ) from fault

    def remove_inside(self, endpoint: Endpoint) -> None:
        """Remove an end point's interface from its namespace. Neither being there is fine."""
        with contextlib.suppress(NotFound, HostFault), netns.inside(endpoint.netns), Rtnl() as inner:
            inner.run(netlink.delete_link(endpoint.interface), ignore=(errno.ENODEV,))

    def detach(self, names: Sequence[str]) -> None:
        """Cut interfaces off at once; `reap` removes them."""
        cut = [netlink.set_link(name, up=False, master=0, group=_DYING) for name in names if name]
        if cut:
            self.rtnl.run(*cut, ignore=(errno.ENODEV,))

    def reap(self) -> None:
        """Remove what was detached. Takes some 15 ms however many there are."""
        self.rtnl.run(netlink.delete_group(_DYING), ignore=(errno.ENODEV,))

    def _remove_quietly(self, name: str) -> None:
        with contextlib.suppress(HostFault):
            self.rtnl.run(netlink.delete_link(name))

    # --- firewall

    def forget_flows(self, ports: Iterable[Published]) -> None:
        """Let running UDP flows to published ports see that the ports changed. A kernel without the conntrack interface does
        without: such a flow then changes when it has been silent for 30 s."""
        numbers = {port.host_port for port in ports if port.protocol == "udp"}
        if numbers:
            with contextlib.suppress(OSError, HostFault), netlink.Conntrack() as conntrack:
                conntrack.forget_udp(numbers)

    def apply(self, commands: str) -> None:
        """One nftables transaction."""
        self.nft.run(commands)

    def hostile_chains(self, hook: str) -> list[str]:
        """Chains of other tools that drop packets by policy at a hook."""
        return firewall.hostile_chains(self.nft.list("chains"), self.table, hook)

    def open_docker_user(self) -> bool:
        """Let our segments through Docker's forward policy, where Docker keeps its chain for that. True when it is done."""
        if not self.has_docker_user():
            return False
        if not self._own_docker_rules():
            self.nft.run(firewall.foreign_accepts(self.prefix, comment=self._comment))
        return True

    def close_docker_user(self) -> None:
        """Take our rules out of Docker's chain again."""
        for handle in self._own_docker_rules() if self.has_docker_user() else ():
            self.nft.run(f"delete rule ip filter DOCKER-USER handle {handle}")

    @property
    def _comment(self) -> str:
        return f"insula {self.table}"

    def has_docker_user(self) -> bool:
        """Whether Docker's chain is there."""
        wanted = ("ip", "filter", "DOCKER-USER")
        told = (entry.get("chain", {}) for entry in self.nft.list("chains"))
        return any((c.get("family"), c.get("table"), c.get("name")) == wanted for c in told)

    def _own_docker_rules(self) -> list[int]:
        return firewall.foreign_rules(self.nft.list("chain ip filter DOCKER-USER"), self._comment)
