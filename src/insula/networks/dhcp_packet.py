"""DHCPv4 packets and what to answer to them: pure (RFC 2131, options of RFC 2132)."""

from __future__ import annotations

import ipaddress
import struct
from enum import IntEnum

from msgspec import Struct, field

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s192x4s")
_COOKIE = b"\x63\x82\x53\x63"
_SMALLEST = 300  # some clients drop shorter ones, as BOOTP allowed
LEASE_S = 365 * 24 * 3600


class Message(IntEnum):
    """Option 53."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(IntEnum):
    """The options that we read or write."""

    MASK = 1
    ROUTER = 3
    DNS = 6
    HOSTNAME = 12
    MTU = 26
    BROADCAST = 28
    ADDRESS = 50
    LEASE_S = 51
    MESSAGE = 53
    SERVER = 54
    CLIENT_ID = 61


class Packet(Struct, frozen=True, kw_only=True):
    """One packet. Addresses as text, `mac` with colons."""

    op: int
    xid: int
    mac: str
    flags: int = 0
    ciaddr: str = "0.0.0.0"  # noqa: S104 - the protocol's "none yet"
    yiaddr: str = "0.0.0.0"  # noqa: S104
    siaddr: str = "0.0.0.0"  # noqa: S104
    giaddr: str = "0.0.0.0"  # noqa: S104
    options: dict[int, bytes] = field(default_factory=dict)

    @property
    def message(self) -> int:
        """Option 53, 0 when it is missing."""
        told = self.options.get(Option.MESSAGE, b"")
        return told[0] if len(told) == 1 else 0


class Lease(Struct, frozen=True, kw_only=True):
    """What a MAC is told. `router` empty for a segment that leads nowhere."""

    mac: str
    address: str
    prefix: int
    server: str
    router: str = ""
    dns: str = ""
    hostname: str = ""
    mtu: int = 1500


def decode(data: bytes) -> Packet | None:
    """A packet from the wire, None for anything that is not DHCP over Ethernet."""
    if len(data) < _FIXED.size:
        return None
    op, htype, hlen, _, xid, _, flags, *addresses, chaddr, cookie = _FIXED.unpack_from(data)
    if htype != 1 or hlen != 6 or cookie != _COOKIE:
        return None
    ciaddr, yiaddr, siaddr, giaddr = (str(ipaddress.IPv4Address(a)) for a in addresses)
    return Packet(
        op=op,
        xid=xid,
        mac=chaddr[:6].hex(":"),
        flags=flags,
        ciaddr=ciaddr,
        yiaddr=yiaddr,
        siaddr=siaddr,
        giaddr=giaddr,
        options=_options(data[_FIXED.size :]),
    )


def _options(data: bytes) -> dict[int, bytes]:
    """Options in order; one that comes twice is one value in two parts (RFC 3396). Stops at what does not fit."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        if at + 1 >= len(data) or at + 2 + data[at + 1] > len(data):
            break
        found[data[at]] = found.get(data[at], b"") + data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return found


def encode(packet: Packet) -> bytes:
    """A packet for the wire. Option values are at most 255 bytes."""
    addresses = (ipaddress.IPv4Address(a).packed for a in (packet.ciaddr, packet.yiaddr, packet.siaddr, packet.giaddr))
    chaddr = bytes.fromhex(packet.mac.replace(":", ""))
    fixed = _FIXED.pack(packet.op, 1, 6, 0, packet.xid, 0, packet.flags, *addresses, chaddr, _COOKIE)
    options = b"".join(bytes((kind, len(value))) + value for kind, value in packet.options.items())
    return (fixed + options + b"\xff").ljust(_SMALLEST, b"\0")


def reply(request: Packet, lease: Lease) -> Packet | None:
    """What a server answers to the client of a lease, None for silence. The address is fixed, so a client that asks for
    another one is told no at once and starts again."""
    if request.op != 1 or request.giaddr != "0.0.0.0":  # noqa: S104 - relayed packets are not for us
        return None
    if request.message == Message.DISCOVER:
        return _answer(request, Message.OFFER, lease)
    if request.message == Message.INFORM:
        return _answer(request, Message.ACK, lease, inform=True)
    if request.message != Message.REQUEST:
        return None
    chosen = request.options.get(Option.SERVER)
    if chosen is not None and chosen != _packed(lease.server):
        return None  # the client took another server's offer
    asked = request.options.get(Option.ADDRESS) or _packed(request.ciaddr)
    return _answer(request, Message.ACK if asked == _packed(lease.address) else Message.NAK, lease)


def _packed(address: str) -> bytes:
    return ipaddress.IPv4Address(address).packed


def _answer(request: Packet, message: Message, lease: Lease, *, inform: bool = False) -> Packet:
    options: dict[int, bytes] = {Option.MESSAGE: bytes((message,)), Option.SERVER: _packed(lease.server)}
    if client_id := request.options.get(Option.CLIENT_ID):
        options[Option.CLIENT_ID] = client_id[:255]  # RFC 6842
    refused = message == Message.NAK
    if not refused:
        options |= _settings(lease)
    if not refused and not inform:
        options[Option.LEASE_S] = LEASE_S.to_bytes(4, "big")
    return Packet(
        op=2,
        xid=request.xid,
        mac=request.mac,
        flags=request.flags | (0x8000 if refused else 0),
        ciaddr="0.0.0.0" if refused else request.ciaddr,  # noqa: S104
        yiaddr="0.0.0.0" if refused or inform else lease.address,  # noqa: S104
        siaddr="0.0.0.0" if refused else lease.server,  # noqa: S104
        options=options,
    )


def _settings(lease: Lease) -> dict[int, bytes]:
    network = ipaddress.IPv4Interface(f"{lease.address}/{lease.prefix}").network
    options: dict[int, bytes] = {
        Option.MASK: network.netmask.packed,
        Option.BROADCAST: network.broadcast_address.packed,
        Option.MTU: lease.mtu.to_bytes(2, "big"),
    }
    if lease.router:
        options[Option.ROUTER] = _packed(lease.router)
    if lease.dns:
        options[Option.DNS] = _packed(lease.dns)
    if lease.hostname:
        options[Option.HOSTNAME] = lease.hostname.encode()[:255]
    return options
