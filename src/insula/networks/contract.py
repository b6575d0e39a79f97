"""What the rest of the node tower needs of networks: segments, end points on them, published ports, names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct, field

from insula.model.instance import PortMapping


class AddressRange(Struct, frozen=True, kw_only=True):
    """One subnet of a network, IPv4 or IPv6. Addresses are given from `ip_range` where it is set; `reserved` ones, each with
    the name of what has it, are never given. `chosen` says that nobody asked for this subnet."""

    subnet: str  # CIDR
    gateway: str = ""
    ip_range: str = ""
    reserved: dict[str, str] = field(default_factory=dict)
    chosen: bool = False


class Network(Struct, frozen=True, kw_only=True):
    """A segment: one layer-2 domain with its addresses. `driver` names the file of its type (bridge, host, none, macvlan,
    ipvlan). `ranges` are all its subnets; the first IPv4 one is `subnet`, `gateway` and `ip_range` too. One that is
    `config_only` has no segment: it lends its settings to others, which name it in `config_from`."""

    id: str
    name: str
    driver: str = "bridge"
    subnet: str = ""  # CIDR
    gateway: str = ""
    ip_range: str = ""
    bridge: str = ""  # interface name on the host, 15 characters at most
    internal: bool = False
    attachable: bool = True
    ipv6: bool = False
    created: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    builtin: bool = False
    ranges: tuple[AddressRange, ...] = ()
    ipam_options: dict[str, str] = field(default_factory=dict)
    config_only: bool = False
    config_from: str = ""


class Endpoint(Struct, frozen=True, kw_only=True):
    """One instance's (or sandbox's) place on a segment. `tap` is set for machines, else `interface` lives in `netns`.
    `resolvers` are asked for names that no network of the owner knows, instead of the host's. The end point with the highest
    `priority` has the owner's default route, which is kept by `metric`; it goes straight onto the link with `on_link`."""

    id: str
    network: str  # network id
    owner: str  # instance or sandbox id
    interface: str  # eth0 inside
    host_interface: str
    mac: str
    address: str  # without prefix length
    prefix: int
    gateway: str
    aliases: tuple[str, ...] = ()
    tap: str = ""
    hostname: str = ""
    netns: str = ""  # path of the namespace, empty for a tap
    address6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    resolvers: tuple[str, ...] = ()
    priority: int = 0
    metric: int = 0
    on_link: bool = False
    options: dict[str, str] = field(default_factory=dict)  # `com.docker.network.endpoint.*`


class Published(Struct, frozen=True, kw_only=True):
    """A port that is open on the host now; `host_port` is the one chosen, 0 where the network is routed and the port is open
    on the end point's own address."""

    owner: str
    host_ip: str
    host_port: int
    container_port: int
    protocol: str
    address: str


class Record(Struct, frozen=True):
    """One DNS record. `value` is written as in a zone file: `10.0.0.1`, `web.example.`, `0 0 80 web.example.` (SRV)."""

    name: str
    type: str
    value: str
    ttl: int = 5


# A DNS zone: (name without the last dot, type) to records; [] for a name without such records, None for no such name.
Zone = Callable[[str, str], Awaitable[Sequence[Record] | None]]


class Networks(Protocol):
    """The networks of one node. The built-in ones are `default` (Docker calls it bridge), `host` and `none`. State lives
    in the node's ledger folder; the kernel is made to agree with it by `recover`."""

    async def get(self, name_or_id: str) -> Network:
        """By name, id or unique prefix. Raises NotFound."""
        ...

    async def list(self) -> Sequence[Network]:
        """All, built-in first."""
        ...

    async def create(self, network: Network) -> Network:
        """Make it; empty subnet, gateway, id, bridge are chosen. Raises AlreadyExists, Invalid (overlap)."""
        ...

    async def remove(self, name_or_id: str) -> None:
        """Raises Conflict while end points are on it, Forbidden for a built-in one."""
        ...

    async def make_namespace(self, owner: str) -> str:
        """A fresh network namespace with loopback up (from a pool kept ready), bound to a path. Returns the path."""
        ...

    async def drop_namespace(self, owner: str) -> None:
        """Unbind it. Repeatable."""
        ...

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
        """Put an interface on the segment into the namespace, with addresses and default route. `resolvers`, `priority` and
        `options` as in `Endpoint`. Raises Invalid for an address outside, Conflict for a taken one, Unavailable when none is
        free."""
        ...

    async def connect_tap(
        self, network: str, owner: str, *, mac: str = "", address: str = "", hostname: str = ""
    ) -> Endpoint:
        """Make a tap on the bridge for a machine and a DHCP lease for its MAC."""
        ...

    async def disconnect(self, owner: str, network: str = "") -> None:
        """Take the owner off one network or all: interface, address, names, published ports. Repeatable."""
        ...

    async def endpoints(self, *, owner: str = "", network: str = "") -> Sequence[Endpoint]:
        """Who is where."""
        ...

    async def publish(
        self, owner: str, address: str, ports: Sequence[PortMapping], *, name: str = ""
    ) -> Sequence[Published]:
        """Open ports on the host for the end point of an address; none where its network has no way in (internal, macvlan).
        All or none. Raises Conflict naming the port that is taken, with Docker's sentence, in which `name` is the
        instance's."""
        ...

    async def unpublish(self, owner: str) -> None:
        """Close all ports of an owner. Repeatable."""
        ...

    async def published(self, owner: str) -> Sequence[Published]:
        """The open ports of an owner."""
        ...

    async def rename(self, owner: str, *, aliases: Sequence[str]) -> None:
        """Change the names that DNS knows the owner by."""
        ...

    def set_zone(self, suffix: str, zone: Zone | None) -> None:
        """Answer DNS names at and below `suffix` on all segments with `zone`; None takes it away."""
        ...

    async def probe(self) -> Sequence[str]:
        """What this host lacks, as sentences for `insula doctor`."""
        ...

    async def recover(self, owners: Sequence[str]) -> None:
        """At start: make bridges, addresses, firewall and names agree with the ledger; drop what belongs to no `owners`."""
        ...

    async def close(self) -> None:
        """Stop DNS and DHCP; leave the kernel's state, workloads use it."""
        ...

    async def destroy(self) -> None:
        """Remove everything from the kernel: bridges, namespaces, the nftables table."""
        ...
