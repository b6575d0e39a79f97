"""Published ports: who has which, and the sockets that keep other programs of the host off them.

Packets to a published port never reach a socket, nftables sends them on before. The socket is there so that the kernel
refuses the port to everybody else and us a port that somebody has, as Docker's proxy processes do: for TCP it listens,
because a port that is merely bound with SO_REUSEADDR can be taken by another such socket, and without SO_REUSEADDR could
not be bound while old connections linger in TIME_WAIT. IPv6 has the second drawback, see `hold`.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from insula.errors import Conflict, HostFault, Invalid, Unavailable, Unsupported
from insula.model.instance import PortMapping
from insula.networks.contract import Endpoint, Published
from insula.networks.firewall import ANY, ANY6
from insula.networks.ipam import parse_address

Key = tuple[str, int, str]  # host address, port, protocol
Place = tuple[str, str]  # a host address, and the end point's address that a port of it leads to

_KINDS = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, 132)}
_FIRST_FREE, _LAST_FREE = 32768, 60999


def key_of(port: Published) -> Key:
    """What two published ports must not share; of a routed one its place inside."""
    if not port.host_port:
        return f"{port.address}/{port.container_port}", 0, port.protocol
    return port.host_ip, port.host_port, port.protocol


def _published(owner: str, places: Sequence[Place], mapping: PortMapping, port: int) -> list[Published]:
    return [
        Published(
            owner=owner,
            host_ip=host_ip,
            host_port=port,
            container_port=mapping.container_port,
            protocol=mapping.protocol,
            address=address,
        )
        for host_ip, address in places
    ]


def check_mapping(mapping: PortMapping) -> str:
    """The host address that a mapping means, empty for every address. Raises Invalid."""
    if not 1 <= mapping.container_port <= 65535:
        raise Invalid(f"invalid port {mapping.container_port}: ports are 1 to 65535", field="container_port")
    for port in (mapping.host_port, mapping.last_host_port):
        if not 0 <= port <= 65535:
            raise Invalid(f"invalid port {port}: ports are 1 to 65535, 0 for any", field="host_port")
    if mapping.protocol not in _KINDS:
        raise Invalid(f"invalid protocol {mapping.protocol}: tcp, udp or sctp", field="protocol")
    if not mapping.host_ip:
        return ""
    return str(parse_address(mapping.host_ip, field="host_ip"))


def places_of(host_ip: str, endpoint: Endpoint) -> list[Place]:
    """Where a port opens: on one address of the host, or on every one of each IP version that the end point has. Nowhere
    for one whose address is reached directly. Raises Unsupported for an IPv6 address of the host and an end point without one."""
    if not host_ip:
        every = ((ANY, endpoint.address), (ANY6, endpoint.address6))
        return [(host, address) for host, address in every if address]
    if ":" not in host_ip:
        return [(host_ip, endpoint.address)] if endpoint.address else []
    if ipaddress.ip_address(host_ip).is_loopback:
        raise Unsupported(
            f"a port cannot be published on {host_ip}: the kernel does not carry it to another interface",
            field="host_ip",
            hint="publish on 127.0.0.1",
        )
    if not endpoint.address6:
        raise Unsupported(
            f"a port cannot be published on the IPv6 address {host_ip}: the container has no IPv6 address to lead it to",
            field="host_ip",
            hint="put it on a network made with --ipv6",
        )
    return [(host_ip, endpoint.address6)]


def taken_by(published: Iterable[Published], host_ip: str, port: int, protocol: str) -> Published | None:
    """The published port that covers this one: same port and protocol, same address or either of them every address."""
    for other in published:
        if (other.host_port, other.protocol) != (port, protocol):
            continue
        if host_ip == other.host_ip or _every(host_ip) in (host_ip, other.host_ip):
            return other
    return None


def _every(host_ip: str) -> str:
    return ANY6 if ":" in host_ip else ANY


def refusal(who: str, host_ip: str, port: int, *, hint: str | None = None) -> Conflict:
    """Docker's sentence for a port that is taken. `who` is the end point's name and id."""
    sentence = (
        f"driver failed programming external connectivity on endpoint {who}: "
        f"Bind for {f'[{host_ip}]' if ':' in host_ip else host_ip}:{port} failed: port is already allocated"
    )
    return Conflict(sentence, field="host_port", hint=hint)


def hold(host_ip: str, port: int, protocol: str) -> socket.socket | None:
    """Take a port from the host (0: any). None where the kernel cannot hold ports of that protocol. Raises OSError. On IPv6
    nobody listens: connections to ::1 come to this socket, since the kernel does not carry them on, and are to be refused."""
    kind, number = _KINDS[protocol]
    listens = protocol != "udp" and ":" not in host_ip
    try:
        held = socket.socket(_family(host_ip), kind | socket.SOCK_CLOEXEC, number)
    except OSError as fault:
        if fault.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None
        raise
    try:
        if held.family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if listens:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host_ip, port))
        if listens:
            held.listen(1)
        return held
    except BaseException:
        held.close()
        raise


def _family(host_ip: str) -> int:
    return socket.AF_INET6 if ":" in host_ip else socket.AF_INET


class PortTable:
    """The published ports of one node. Methods block for microseconds and run on the kernel's thread, which makes choosing
    and taking a port one step."""

    def __init__(self) -> None:
        self._ports: dict[Key, Published] = {}
        self._held: dict[Key, socket.socket] = {}
        self._last = 0

    def all(self) -> list[Published]:
        """Every open port."""
        return list(self._ports.values())

    def of(self, owner: str, address: str = "") -> list[Published]:
        """The open ports of an owner, or of one of its addresses."""
        return [p for p in self.all() if p.owner == owner and address in ("", p.address)]

    def take(
        self, owner: str, endpoint: Endpoint, mappings: Sequence[PortMapping], who: str
    ) -> tuple[list[Published], list[Published]]:
        """Reserve all ports or none. A port that the owner has open to the same place already stays. Returns all, and those
        of them that are new. Raises Conflict, Invalid, Unsupported, Unavailable."""
        taken: list[Published] = []
        new: list[Published] = []
        try:
            for mapping in mappings:
                places = places_of(check_mapping(mapping), endpoint)
                same = self._same(owner, places, mapping)
                if not same and places:
                    same = self._take_one(owner, places, mapping, who)
                    new += same
                taken += same
            return taken, new
        except BaseException:
            self.release(new)
            raise

    def _same(self, owner: str, places: Sequence[Place], mapping: PortMapping) -> list[Published]:
        if not mapping.host_port or mapping.last_host_port:
            return []
        wanted = _published(owner, places, mapping, mapping.host_port)
        return wanted if all(self._ports.get(key_of(each)) == each for each in wanted) else []

    def _take_one(self, owner: str, places: Sequence[Place], mapping: PortMapping, who: str) -> list[Published]:
        """One port number for all places: with a choice of numbers the first that is free on each of them."""
        first, last = mapping.host_port, mapping.last_host_port
        candidates = range(first, last + 1) if last else (first,) if first else self._free()
        fault: Exception | None = None
        for port in candidates:
            wanted = _published(owner, places, mapping, port)
            busy = next((each for each in wanted if taken_by(self._ports.values(), *key_of(each))), None)
            if busy:
                fault = refusal(who, busy.host_ip, port)
                continue
            try:
                self._hold_all(wanted, who)
            except Conflict as raised:
                fault = raised
                continue
            self._last = self._last if first else port
            return wanted
        if fault is not None and first:
            raise fault
        raise Unavailable("No free port is left on this host to publish on.", field="host_port")

    def _hold_all(self, wanted: Sequence[Published], who: str) -> None:
        held: list[Published] = []
        for each in wanted:
            try:
                self._hold(each)
            except OSError as fault:
                self.release(held)
                raise _explain(fault, who, each.host_ip, each.host_port) from fault
            held.append(each)

    def open_routed(self, owner: str, addresses: Sequence[str], mappings: Sequence[PortMapping]) -> list[Published]:
        """Ports that are open at an end point's own addresses: nothing of the host's is taken for them."""
        opened = [
            Published(
                owner=owner, host_ip="", host_port=0, container_port=each.container_port, protocol=each.protocol,
                address=address,
            )
            for each in mappings
            for address in addresses
        ]  # fmt: skip
        self._ports.update({key_of(each): each for each in opened})
        return opened

    def _free(self) -> Iterable[int]:
        low, high = _FIRST_FREE, _LAST_FREE
        with contextlib.suppress(OSError, ValueError):
            low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        start = self._last + 1 if low <= self._last < high else low
        return (*range(start, high + 1), *range(low, start))

    def _hold(self, port: Published) -> None:
        if not port.host_port:
            self._ports[key_of(port)] = port
            return
        held = hold(port.host_ip, port.host_port, port.protocol)
        if held is not None:
            self._held[key_of(port)] = held
        self._ports[key_of(port)] = port

    def restore(self, ports: Iterable[Published]) -> list[Published]:
        """At start: take back what the ledger says. Returns those whose port another program took meanwhile; they stay
        published, since nftables decides before any socket does."""
        lost = []
        for port in ports:
            try:
                self._hold(port)
            except OSError:
                self._ports[key_of(port)] = port
                lost.append(port)
        return lost

    def release(self, ports: Iterable[Published]) -> None:
        """Give ports back. Unknown ones are fine."""
        for port in ports:
            self._ports.pop(key_of(port), None)
            if held := self._held.pop(key_of(port), None):
                held.close()

    def close(self) -> None:
        """Let go of the sockets; what nftables does stays."""
        while self._held:
            self._held.popitem()[1].close()


def _explain(fault: OSError, who: str, host_ip: str, port: int) -> Exception:
    if fault.errno == errno.EADDRINUSE:
        return refusal(who, host_ip, port, hint="another program of this host has it")
    if fault.errno == errno.EADDRNOTAVAIL:
        return Invalid(
            f"driver failed programming external connectivity on endpoint {who}: failed to bind host port "
            f"{host_ip}:{port}: this host has no address {host_ip}",
            field="host_ip",
        )
    return HostFault(f"Port {port} of {host_ip} cannot be taken: {fault.strerror}.", code=fault.errno)
