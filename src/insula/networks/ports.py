"""Published ports: who has which, and the sockets that keep other programs of the host off them.

Packets to a published port never reach a socket, nftables sends them on before. The socket is there so that the kernel
refuses the port to everybody else and us a port that somebody has, as Docker's proxy processes do: for TCP it listens,
because a port that is merely bound with SO_REUSEADDR can be taken by another such socket, and without SO_REUSEADDR could
not be bound while old connections linger in TIME_WAIT.
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
from insula.networks.contract import Published
from insula.networks.firewall import ANY

Key = tuple[str, int, str]  # host address, port, protocol

_KINDS = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, 132)}
_FIRST_FREE, _LAST_FREE = 32768, 60999


def key_of(port: Published) -> Key:
    """What two published ports must not share."""
    return port.host_ip, port.host_port, port.protocol


def check_mapping(mapping: PortMapping) -> str:
    """The host address that a mapping means. Raises Invalid, Unsupported (IPv6)."""
    if not 1 <= mapping.container_port <= 65535:
        raise Invalid(f"invalid port {mapping.container_port}: ports are 1 to 65535", field="container_port")
    if not 0 <= mapping.host_port <= 65535:
        raise Invalid(f"invalid port {mapping.host_port}: ports are 1 to 65535, 0 for any", field="host_port")
    if mapping.protocol not in _KINDS:
        raise Invalid(f"invalid protocol {mapping.protocol}: tcp, udp or sctp", field="protocol")
    if not mapping.host_ip:
        return ANY
    if ":" in mapping.host_ip:
        raise Unsupported(f"Ports cannot be published on the IPv6 address {mapping.host_ip} yet.", field="host_ip")
    try:
        return str(ipaddress.IPv4Address(mapping.host_ip))
    except ValueError:
        raise Invalid(f"invalid IP address {mapping.host_ip}", field="host_ip") from None


def taken_by(published: Iterable[Published], host_ip: str, port: int, protocol: str) -> Published | None:
    """The published port that covers this one: same port and protocol, same address or either of them every address."""
    for other in published:
        if (other.host_port, other.protocol) != (port, protocol):
            continue
        if host_ip == other.host_ip or ANY in (host_ip, other.host_ip):
            return other
    return None


def refusal(who: str, host_ip: str, port: int, *, hint: str | None = None) -> Conflict:
    """Docker's sentence for a port that is taken. `who` is the end point's name and id."""
    sentence = (
        f"driver failed programming external connectivity on endpoint {who}: "
        f"Bind for {host_ip}:{port} failed: port is already allocated"
    )
    return Conflict(sentence, field="host_port", hint=hint)


def hold(host_ip: str, port: int, protocol: str) -> socket.socket | None:
    """Take a port from the host (0: any). None where the kernel cannot hold ports of that protocol. Raises OSError."""
    kind, number = _KINDS[protocol]
    try:
        held = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC, number)
    except OSError as fault:
        if fault.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None
        raise
    try:
        if protocol != "udp":
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host_ip, port))
        if protocol != "udp":
            held.listen(1)
        return held
    except BaseException:
        held.close()
        raise


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
        self, owner: str, address: str, mappings: Sequence[PortMapping], who: str
    ) -> tuple[list[Published], list[Published]]:
        """Reserve all ports or none. A port that the owner has open to the same place already stays. Returns all, and those
        of them that are new. Raises Conflict, Invalid, Unsupported, Unavailable."""
        taken: list[Published] = []
        new: list[Published] = []
        try:
            for mapping in mappings:
                host_ip = check_mapping(mapping)
                if (same := self._same(owner, address, host_ip, mapping)) is None:
                    same = self._take_one(owner, address, host_ip, mapping, who)
                    new.append(same)
                taken.append(same)
            return taken, new
        except BaseException:
            self.release(new)
            raise

    def _same(self, owner: str, address: str, host_ip: str, mapping: PortMapping) -> Published | None:
        there = self._ports.get((host_ip, mapping.host_port, mapping.protocol))
        wanted = (owner, address, mapping.container_port)
        return there if there and (there.owner, there.address, there.container_port) == wanted else None

    def _take_one(self, owner: str, address: str, host_ip: str, mapping: PortMapping, who: str) -> Published:
        candidates = (mapping.host_port,) if mapping.host_port else self._free()
        for port in candidates:
            published = Published(
                owner=owner,
                host_ip=host_ip,
                host_port=port,
                container_port=mapping.container_port,
                protocol=mapping.protocol,
                address=address,
            )
            if taken_by(self._ports.values(), host_ip, port, mapping.protocol):
                if mapping.host_port:
                    raise refusal(who, host_ip, port)
                continue
            try:
                self._hold(published)
            except OSError as fault:
                if not mapping.host_port and fault.errno == errno.EADDRINUSE:
                    continue
                raise _explain(fault, who, host_ip, port) from fault
            if not mapping.host_port:
                self._last = port
            return published
        raise Unavailable("No free port is left on this host to publish on.", field="host_port")

    def _free(self) -> Iterable[int]:
        low, high = _FIRST_FREE, _LAST_FREE
        with contextlib.suppress(OSError, ValueError):
            low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        start = self._last + 1 if low <= self._last < high else low
        return (*range(start, high + 1), *range(low, start))

    def _hold(self, port: Published) -> None:
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
