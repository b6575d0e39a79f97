"""All that the networks do to the kernel, on one thread that lives in the host's network namespace.

Every method blocks and is run by `Kernel.call`; the thread carries them out one after the other, which costs nothing: the
kernel takes one lock for all of these anyway. Names of interfaces: PREFIX0 is the default bridge, PREFIX + b, v or t + 8
hex digits a bridge, veth or tap; nothing else in the system is touched.
"""

from __future__ import annotations

import contextlib
import errno
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from insula.errors import Conflict, HostFault, Unavailable
from insula.host import netlink, netns
from insula.host.netlink import Link, Route, Rtnl
from insula.host.nft import Nft
from insula.networks import firewall
from insula.networks.contract import Endpoint, Network, Published

P = ParamSpec("P")
T = TypeVar("T")

_DYING = 0x494E53  # the link group in which interfaces wait for their removal
_IPV6 = Path("/proc/sys/net/ipv6")


def host_mac() -> str:
    """A random MAC for the host's end of a pair; fe: keeps it above every other one."""
    return "fe:" + secrets.token_bytes(5).hex(":")


class Kernel:
    """The host's network namespace as one node's networks use it. `host_netns` is a path, empty for the process's own."""

    def __init__(self, prefix: str, table: str, host_netns: str = "") -> None:
        self.prefix, self.table = prefix, table
        self.host_netns = host_netns
        self._thread = netns.NamespaceThread(f"insula-net-{prefix}", host_netns)
        self._own = re.compile(re.escape(prefix) + r"(0|[bvt][0-9a-f]{8})")
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
        return [route for route in self.rtnl.routes() if route.index not in own]

    def own_links(self) -> list[Link]:
        """Interfaces that carry one of our names."""
        return [link for link in self.rtnl.links() if self._own.fullmatch(link.name)]

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
        """Make a segment's bridge with its gateway address, or mend one that is there."""
        name, prefix = network.bridge, int(network.subnet.partition("/")[2])
        link = self.rtnl.link(name)
        if link and link.kind != "bridge":
            raise Conflict(f"The host has an interface {name} already and it is not a bridge.", field="bridge")
        if not link:
            mac = "02:42:" + secrets.token_bytes(4).hex(":")
            self.rtnl.run(netlink.add_bridge(name, mac=mac, mtu=mtu), ignore=(errno.EEXIST,))
        for setting in (f"ipv6/conf/{name}/disable_ipv6", f"ipv4/conf/{name}/route_localnet"):
            if not setting.startswith("ipv6") or _IPV6.exists():
                netns.sysctl(setting, "1")
        index = self.bridge_index(name)
        alive = netlink.set_link(name, up=True, group=0)  # a killed removal may have marked it
        self.rtnl.run(alive, netlink.add_address(index, network.gateway, prefix))

    def has_interface(self, name: str) -> bool:
        """Whether the host has an interface of this name."""
        return self.rtnl.link(name) is not None

    def remove_links(self, names: Iterable[str]) -> None:
        """Remove interfaces, all at the price of one. Missing ones are fine."""
        dying = [netlink.set_link(name, up=False, group=_DYING) for name in names]
        if dying:
            self.rtnl.run(*dying, ignore=(errno.ENODEV,))
            self.reap()

    def bridge_index(self, name: str) -> int:
        """Raises HostFault when somebody removed it."""
        link = self.rtnl.link(name)
        if link is None:
            message = f"The bridge {name} has disappeared from the host; restart Insula to have it made again."
            raise HostFault(message, command=f"ip link show {name}", code=errno.ENODEV)
        return link.index

    # --- end points

    def attach_veth(self, endpoint: Endpoint, bridge: str, mtu: int) -> None:
        """Put an end point into its namespace: pair, bridge port, MAC, address, route. On failure nothing is left."""
        with contextlib.ExitStack() as undo:
            namespace = undo.enter_context(open(endpoint.netns, "rb", buffering=0))
            master = self.bridge_index(bridge)
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
            self.rtnl.run(pair, *self._veth_port(endpoint.host_interface, master))
            self._settle_inside(endpoint, namespace.fileno())
            cleanup.pop_all()

    def _port(self, name: str, master: int) -> netlink.Request:
        return netlink.set_link(name, master=master, group=0, up=True, no_ipv6=_IPV6.exists())

    def _veth_port(self, name: str, master: int) -> tuple[netlink.Request, ...]:
        return self._port(name, master), netlink.set_hairpin(name)

    def _settle_inside(self, endpoint: Endpoint, namespace: int) -> None:
        """Address and routes. Each of an owner's interfaces gets a default route, eth0's with the best metric, so that the
        next one takes over when its network is disconnected."""
        with netns.inside(namespace), Rtnl() as inner:
            link = inner.link(endpoint.interface)
            if link is None:
                raise HostFault(f"{endpoint.interface} has disappeared from {endpoint.netns}.")
            requests = [
                netlink.set_link(endpoint.interface, up=True),
                netlink.add_address(link.index, endpoint.address, endpoint.prefix),
            ]
            if endpoint.gateway:
                metric = int(endpoint.interface.removeprefix("eth"))
                requests.append(netlink.add_default_route(link.index, endpoint.gateway, metric=metric))
            inner.run(*requests)

    def attach_tap(self, tap: str, bridge: str, mtu: int) -> None:
        """Make a machine's tap, or keep the one that a running machine holds, and put it on the bridge."""
        with contextlib.ExitStack() as undo:
            if self.rtnl.link(tap) is None:
                undo.callback(self._remove_quietly, tap)
                netlink.add_tap(tap)
            master = self.bridge_index(bridge)
            self.rtnl.run(netlink.set_link(tap, mtu=mtu), self._port(tap, master))
            undo.pop_all()

    def mend_veth(self, endpoint: Endpoint, bridge: str, mtu: int) -> None:
        """After a restart: keep the pair when both ends are there, else make it again. Raises NotFound without namespace."""
        link = self.rtnl.link(endpoint.host_interface)
        with netns.inside(endpoint.netns), Rtnl() as inner:
            whole = link is not None and inner.link(endpoint.interface) is not None
        if not whole:
            self.remove_links([endpoint.host_interface])
            self.attach_veth(endpoint, bridge, mtu)
            return
        self.rtnl.run(*self._veth_port(endpoint.host_interface, self.bridge_index(bridge)))
        with open(endpoint.netns, "rb", buffering=0) as namespace:
            self._settle_inside(endpoint, namespace.fileno())

    def detach(self, names: Sequence[str]) -> None:
        """Cut interfaces off at once; `reap` removes them."""
        if names:
            cut = [netlink.set_link(name, up=False, master=0, group=_DYING) for name in names]
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
