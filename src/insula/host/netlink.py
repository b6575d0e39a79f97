"""rtnetlink, as much of it as the networks of one node need: links, addresses, routes.

Why not pyroute2: it takes 0.27 s and 16 MiB to import and 0.3 ms for every request (measured), a tenth of what the whole of
Insula may use. Here all steps of one end point are one `sendmsg`, answered by one acknowledgement each.

`Request`s are plain values made by pure functions; `Rtnl` is a blocking socket that carries them out. The kernel does the
work inside of `sendmsg`, up to some 15 ms for a deletion, so an `Rtnl` is used on a thread (`netns.NamespaceThread`), never
on the event loop. A socket talks to the network namespace in which it was opened.

Sources: netlink(7), rtnetlink(7), linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h, linux/if_tun.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Self

from msgspec import Struct

from insula.errors import HostFault

ACCEPT, EXCLUSIVE, REPLACE, CREATE = 0x1 | 0x4, 0x200, 0x100, 0x400  # ACCEPT: NLM_F_REQUEST | NLM_F_ACK
_DUMP = 0x1 | 0x300
_ERROR, _DONE, _OVERRUN = 2, 3, 4
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _GETADDR = 20, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NESTED = 0x8000
_IFF_UP = 1
_IFA_F_NODAD = 0x02
_DEADLINE_S = 10.0

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst, src, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")


class Request(Struct, frozen=True):
    """One message to the kernel. `command` is what a person would type for the same effect."""

    type: int
    flags: int
    body: bytes
    command: str


class Link(Struct, frozen=True, kw_only=True):
    """A network interface as the kernel tells it. `master` is the index of the bridge it is on, 0 for none."""

    index: int
    name: str
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    master: int = 0
    group: int = 0
    up: bool = False
    running: bool = False


class Route(Struct, frozen=True, kw_only=True):
    """A route; `destination` is a CIDR (0.0.0.0/0 or ::/0 for the default), `gateway` empty for one on the link."""

    destination: str
    gateway: str = ""
    index: int = 0
    table: int = 254
    metric: int = 0


# --- messages: pure --------------------------------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _mac(value: str) -> bytes:
    return attribute(1, bytes.fromhex(value.replace(":", "")))


def _kind(name: str, data: bytes = b"") -> bytes:
    info = _text(1, name)
    return attribute(18 | _NESTED, info + (attribute(2 | _NESTED, data) if data else b""))


def add_bridge(name: str, *, mac: str, mtu: int) -> Request:
    """A bridge that is up from the start. EEXIST when the name is taken."""
    body = _LINK.pack(0, 0, 0, _IFF_UP, _IFF_UP) + _text(3, name) + _mac(mac) + _u32(4, mtu) + _kind("bridge")
    return Request(_NEWLINK, ACCEPT | CREATE | EXCLUSIVE, body, f"ip link add {name} address {mac} type bridge")


def add_veth(name: str, *, mac: str, mtu: int, peer: str, peer_mac: str, peer_netns_fd: int) -> Request:
    """A veth pair, down, whose other end appears inside of a namespace under its final name."""
    other = _LINK.pack(0, 0, 0, 0, 0) + _text(3, peer) + _mac(peer_mac) + _u32(4, mtu) + _u32(28, peer_netns_fd)
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name) + _mac(mac) + _u32(4, mtu)
    body += _kind("veth", attribute(1 | _NESTED, other))
    return Request(
        _NEWLINK, ACCEPT | CREATE | EXCLUSIVE, body, f"ip link add {name} type veth peer name {peer} netns ..."
    )


def set_link(
    name: str,
    *,
    up: bool | None = None,
    master: int | None = None,
    mac: str = "",
    mtu: int = 0,
    group: int | None = None,
    no_ipv6: bool = False,
) -> Request:
    """Change an interface found by its name. `no_ipv6` keeps the kernel from giving it a link-local address."""
    flags, change = (_IFF_UP if up else 0), (0 if up is None else _IFF_UP)
    words: list[str] = []
    body = _LINK.pack(0, 0, 0, flags, change) + _text(3, name)
    if master is not None:
        body, words = body + _u32(10, master), [*words, f"master #{master}" if master else "nomaster"]
    if mac:
        body, words = body + _mac(mac), [*words, f"address {mac}"]
    if mtu:
        body, words = body + _u32(4, mtu), [*words, f"mtu {mtu}"]
    if group is not None:
        body, words = body + _u32(27, group), [*words, f"group {group}"]
    if no_ipv6:
        mode = attribute(8, b"\1")  # IFLA_INET6_ADDR_GEN_MODE: none
        body += attribute(26 | _NESTED, attribute(socket.AF_INET6 | _NESTED, mode))
        words.append("addrgenmode none")
    if up is not None:
        words.append("up" if up else "down")
    return Request(_NEWLINK, ACCEPT, body, f"ip link set {name} {' '.join(words)}")


def set_bridge_port(name: str, *, isolated: bool = False) -> Request:
    """Let a bridge port get back what it sent: a container that asks for its own published port, where br_netfilter has the
    bridge itself translate the address. An isolated one exchanges nothing with other isolated ones, only with the bridge.
    The port must be on its bridge already."""
    told = attribute(4, b"\1") + attribute(33, b"\1" if isolated else b"\0")  # IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED
    slave = _text(4, "bridge") + attribute(5 | _NESTED, told)
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name) + attribute(18 | _NESTED, slave)
    words = f"hairpin on isolated {'on' if isolated else 'off'}"
    return Request(_NEWLINK, ACCEPT, body, f"ip link set {name} type bridge_slave {words}")


def delete_link(name: str) -> Request:
    """Remove an interface; a veth takes its other end with it."""
    return Request(_DELLINK, ACCEPT, _LINK.pack(0, 0, 0, 0, 0) + _text(3, name), f"ip link del {name}")


def delete_group(group: int) -> Request:
    """Remove all interfaces of a group at the price of one: each removal waits for the kernel's readers, a group waits once."""
    return Request(_DELLINK, ACCEPT, _LINK.pack(0, 0, 0, 0, 0) + _u32(27, group), f"ip link del group {group}")


def add_address(index: int, address: str, prefix: int) -> Request:
    """Give an address to an interface; having it already is fine. An IPv6 one is used at once, without asking the neighbours
    for duplicates first: whoever chose it knows that it is free."""
    packed = ipaddress.ip_address(address).packed
    if ":" in address:
        body = _ADDRESS.pack(socket.AF_INET6, prefix, _IFA_F_NODAD, 0, index) + attribute(1, packed)
    else:
        broadcast = ipaddress.IPv4Interface(f"{address}/{prefix}").network.broadcast_address.packed
        body = _ADDRESS.pack(socket.AF_INET, prefix, 0, 0, index)
        body += attribute(2, packed) + attribute(1, packed) + attribute(4, broadcast)
    return Request(_NEWADDR, ACCEPT | CREATE | REPLACE, body, f"ip addr replace {address}/{prefix} dev #{index}")


def add_default_route(index: int, gateway: str, *, metric: int = 0, ipv6: bool = False) -> Request:
    """The default route through a gateway, or straight onto the link for an empty one; a lower metric wins, 0 is the lowest
    (for IPv6 the kernel takes 0 for 1024, so they begin with 1)."""
    ipv6 = ipv6 or ":" in gateway
    metric += 1 if ipv6 else 0
    scope = 0 if gateway else 253  # RT_SCOPE_LINK
    body = _ROUTE.pack(socket.AF_INET6 if ipv6 else socket.AF_INET, 0, 0, 0, 254, 3, 0 if ipv6 else scope, 1, 0)
    body += attribute(5, ipaddress.ip_address(gateway).packed) if gateway else b""
    body += _u32(4, index) + (_u32(6, metric) if metric else b"")
    via = f"via {gateway} " if gateway else ""
    command = f"ip {'-6 ' if ipv6 else ''}route replace default {via}dev #{index} metric {metric}"
    return Request(_NEWROUTE, ACCEPT | CREATE | REPLACE, body, command)


def delete_default_route(index: int, metric: int, *, ipv6: bool = False) -> Request:
    """Take away one default route of an interface. ESRCH when there is none."""
    body = _ROUTE.pack(socket.AF_INET6 if ipv6 else socket.AF_INET, 0, 0, 0, 254, 0, 255, 1, 0)
    body += _u32(4, index) + (_u32(6, metric) if metric else b"")
    return Request(_DELROUTE, ACCEPT, body, f"ip route del default dev #{index} metric {metric}")


def add_child(
    kind: str,
    name: str,
    *,
    parent: int,
    data: bytes = b"",
    mac: str = "",
    mtu: int = 0,
    group: int = 0,
    netns_fd: int | None = None,
) -> Request:
    """An interface on top of another one (`macvlan`, `ipvlan`, `vlan`), down; with `netns_fd` it appears in that namespace.
    `data` is what its kind wants to know: `macvlan_data` and its neighbours. EOPNOTSUPP where the kernel lacks the kind."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name) + _u32(5, parent)
    body += (_mac(mac) if mac else b"") + (_u32(4, mtu) if mtu else b"") + _kind(kind, data)
    body += (_u32(27, group) if group else b"") + (_u32(28, netns_fd) if netns_fd is not None else b"")
    return Request(_NEWLINK, ACCEPT | CREATE | EXCLUSIVE, body, f"ip link add link #{parent} name {name} type {kind}")


def add_pair(name: str, *, mtu: int, peer: str, group: int) -> Request:
    """A veth pair, down, with both ends here."""
    other = _LINK.pack(0, 0, 0, 0, 0) + _text(3, peer) + _u32(4, mtu) + _u32(27, group)
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name) + _u32(4, mtu) + _u32(27, group)
    body += _kind("veth", attribute(1 | _NESTED, other))
    return Request(_NEWLINK, ACCEPT | CREATE | EXCLUSIVE, body, f"ip link add {name} type veth peer name {peer}")


def macvlan_data(mode: str) -> bytes:
    """IFLA_MACVLAN_MODE by its name in ip-link(8)."""
    return _u32(1, {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}[mode])


def ipvlan_data(mode: str, flag: str) -> bytes:
    """IFLA_IPVLAN_MODE and IFLA_IPVLAN_FLAGS by their names in ip-link(8)."""
    number = {"l2": 0, "l3": 1, "l3s": 2}[mode]
    flags = {"bridge": 0, "private": 1, "vepa": 2}[flag]
    return attribute(1, struct.pack("=H", number)) + attribute(2, struct.pack("=H", flags))


def vlan_data(number: int) -> bytes:
    """IFLA_VLAN_ID."""
    return attribute(1, struct.pack("=H", number))


# --- answers: pure ---------------------------------------------------------------------------------------------


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in a message's body; of several of one kind the last."""
    found, at = {}, 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def _string(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


def _number(data: bytes | None) -> int:
    return int(struct.unpack("=I", data)[0]) if data else 0


def parse_link(body: bytes) -> Link:
    """An RTM_NEWLINK body."""
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = attributes(body[_LINK.size :])
    return Link(
        index=index,
        name=_string(found.get(3)),
        kind=_string(attributes(found.get(18, b"")).get(1)),
        mac=found.get(1, b"").hex(":"),
        mtu=_number(found.get(4)),
        master=_number(found.get(10)),
        group=_number(found.get(27)),
        up=bool(flags & _IFF_UP),
        running=bool(flags & 0x40),
    )


def parse_route(body: bytes) -> Route:
    """An RTM_NEWROUTE body of IPv4 or IPv6."""
    family, prefix, _, _, table, *_ = _ROUTE.unpack_from(body)
    found = attributes(body[_ROUTE.size :])
    read = ipaddress.IPv6Address if family == socket.AF_INET6 else ipaddress.IPv4Address
    destination = read(found[1]) if 1 in found else read(0)
    return Route(
        destination=f"{destination}/{prefix}",
        gateway=str(read(found[5])) if 5 in found else "",
        index=_number(found.get(4)),
        table=_number(found.get(15)) or table,
        metric=_number(found.get(6)),
    )


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _refusal(request: Request, body: bytes) -> HostFault | None:
    """What an acknowledgement says: None for success, else the errno with the kernel's own sentence where it gave one."""
    code = -int(struct.unpack_from("=i", body)[0])
    if not code:
        return None
    told = attributes(body[4 + _HEADER.size :]) if len(body) > 4 + _HEADER.size else {}
    sentence = _string(told.get(1)) or os.strerror(code)
    return HostFault(f"The kernel refused a network change: {sentence}.", command=request.command, code=code)


class Netlink:
    """A blocking netlink socket of the namespace it is opened in. One thread at a time."""

    protocol = 0  # NETLINK_ROUTE

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self.protocol)
        self._socket.setsockopt(270, 10, 1)  # SOL_NETLINK, NETLINK_CAP_ACK: acknowledgements do not echo the request
        self._socket.setsockopt(270, 11, 1)  # NETLINK_EXT_ACK: errors carry a sentence
        self._socket.settimeout(_DEADLINE_S)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *requests: Request, ignore: Sequence[int] = ()) -> None:
        """Carry out requests in order as one message. The kernel goes on after a failed one; the first failure whose errno
        is not in `ignore` is raised as HostFault when all were tried."""
        first = self._sequence + 1
        packed = bytearray()
        for request in requests:
            packed += self._pack(request, request.flags)
        self._socket.send(packed)
        faults: list[HostFault] = []
        left = len(requests)
        while left:
            for kind, sequence, body in _messages(self._receive()):
                if kind != _ERROR or not first <= sequence < first + len(requests):
                    continue
                left -= 1
                fault = _refusal(requests[sequence - first], body)
                if fault and fault.code not in ignore:
                    faults.append(fault)
        if faults:
            raise faults[0]

    def _pack(self, request: Request, flags: int) -> bytes:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(request.body), request.type, flags, self._sequence, 0)
        return header + request.body + b"\0" * (-len(request.body) % 4)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 18)
        except TimeoutError:
            raise HostFault(f"The kernel did not answer a netlink request within {_DEADLINE_S:.0f} s.") from None

    def _ask(self, request: Request) -> list[bytes]:
        """The bodies of the answers to a question: many for a dump, one otherwise."""
        self._socket.send(self._pack(request, request.flags))
        bodies: list[bytes] = []
        while True:
            for kind, sequence, body in _messages(self._receive()):
                if sequence != self._sequence:
                    continue
                if kind == _DONE:
                    return bodies
                if kind == _ERROR:
                    if fault := _refusal(request, body):
                        raise fault
                    return bodies
                if kind != _OVERRUN:
                    bodies.append(body)


class Rtnl(Netlink):
    """rtnetlink: links, addresses, routes."""

    def links(self) -> list[Link]:
        """All interfaces of the namespace."""
        return [parse_link(b) for b in self._ask(Request(_GETLINK, _DUMP, _LINK.pack(0, 0, 0, 0, 0), "ip link"))]

    def link(self, name: str) -> Link | None:
        """One interface by name, None when there is none."""
        question = Request(_GETLINK, ACCEPT, _LINK.pack(0, 0, 0, 0, 0) + _text(3, name), f"ip link show {name}")
        try:
            return parse_link(self._ask(question)[0])
        except HostFault as fault:
            if fault.code == errno.ENODEV:
                return None
            raise

    def routes(self, *, ipv6: bool = False) -> list[Route]:
        """All routes of one family, of all tables but the kernel's own `local` one."""
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        question = Request(_GETROUTE, _DUMP, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "ip route show table all")
        return [route for b in self._ask(question) if (route := parse_route(b)).table != 255]

    def addresses(self, *, ipv6: bool = False) -> list[tuple[int, str]]:
        """(interface index, address with prefix length) of every address of one family."""
        family, read = (socket.AF_INET6, ipaddress.IPv6Address) if ipv6 else (socket.AF_INET, ipaddress.IPv4Address)
        question = Request(_GETADDR, _DUMP, _ADDRESS.pack(family, 0, 0, 0, 0), "ip addr")
        found = []
        for body in self._ask(question):
            _, prefix, _, _, index = _ADDRESS.unpack_from(body)
            told = attributes(body[_ADDRESS.size :])
            found.append((index, f"{read(told.get(2) or told[1])}/{prefix}"))
        return found


class Conntrack(Netlink):
    """The connections that the kernel tracks, as far as published UDP ports need it. nfnetlink_conntrack.h."""

    protocol = 12  # NETLINK_NETFILTER

    def forget_udp(self, ports: Collection[int]) -> int:
        """Make the kernel decide anew about UDP flows that were first sent to one of these ports. A flow keeps the
        translation that it began with, also none, for as long as it goes on; so a port that opens, closes or moves to
        another end point would stay as it was for those who keep sending. Returns how many there were."""
        family = struct.pack("=BBH", socket.AF_INET, 0, 0)
        flows = self._ask(Request(0x101, _DUMP, family, "conntrack -L -p udp"))
        doomed = [
            Request(0x102, ACCEPT, family + attribute(1 | _NESTED, flow), "conntrack -D -p udp")
            for body in flows
            if (flow := attributes(body[4:]).get(1)) and _udp_port(flow) in ports
        ]
        for at in range(0, len(doomed), 64):
            self.run(*doomed[at : at + 64], ignore=(errno.ENOENT,))
        return len(doomed)


def _udp_port(flow: bytes) -> int:
    """The port that a tuple of UDP goes to, 0 for other protocols."""
    told = attributes(attributes(flow).get(2, b""))
    return int.from_bytes(told.get(3, b""), "big") if told.get(1) == b"\x11" else 0


def add_tap(name: str) -> None:
    """Make a tap device that stays when nobody holds it, for QEMU to open by its name. Repeatable. One queue and the
    virtio-net header, as QEMU asks for them."""
    tun, persist, flags = 0x400454CA, 0x400454CB, 0x0002 | 0x1000 | 0x4000  # IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fd = -1
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, tun, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, persist, 1)
    except OSError as fault:
        if fault.errno == errno.EBUSY:
            return  # a running machine holds it: it is there and persistent
        message = f"The tap device {name} cannot be made: {fault.strerror}."
        raise HostFault(message, command=f"ip tuntap add {name} mode tap", code=fault.errno) from fault
    finally:
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
