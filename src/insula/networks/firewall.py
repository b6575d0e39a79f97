"""Insula's nftables table, as a pure function of the segments and the published ports.

The table is replaced whole, in one transaction, when a segment comes or goes (about 1 ms). Published ports are elements of
maps, so that one `publish` is one small transaction (about 0.2 ms), and all of its ports open at once. Everything that grows
with the number of segments or ports is a set or a map: a packet meets the same few rules whether there is one or a thousand.

    guard        raw prerouting   packets from a segment to 127/8 are dropped: `route_localnet`, which lets 127.0.0.1 reach
                                  a published port, must not open the host's loopback services (CVE-2020-8558)
    prerouting,  dstnat           connections to any address of the host: DNS of a segment, then published ports
    output
    postrouting  srcnat           masquerade what leaves a segment; hairpin and 127.0.0.1 connections take the gateway's
                                  address, or the answer would bypass the host
    forward      filter           a segment talks within itself and outwards; inwards only what was published, which also
                                  is the one way from segment to segment; an internal segment only within itself; a routed
                                  one is reached at its own addresses, at the ports that were published

Other tools' tables are left alone. A packet must pass every table's chains, so a `drop` elsewhere wins over an accept here:
Docker's FORWARD policy, ufw, firewalld. Where Docker's own chain for such cases, DOCKER-USER, is there, two accept rules for
our segments go into it (`foreign_accepts`); otherwise `insula doctor` names the chain and the command that opens it.

Sources: nft(8), nf_tables wiki, Docker's documentation "Packet filtering and firewalls".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from insula.networks.contract import Published

ANY = "0.0.0.0"  # noqa: S104 - a key of the map of ports open on every address, nothing listens here
ANY6 = "::"


class Side(Struct, frozen=True, kw_only=True):
    """What the firewall needs to know of one IP version of a bridge. `source`: what leaves takes this address of the host's.
    `routed`: published ports are open at the end points' own addresses. `open`: all their ports are."""

    subnet: str
    masquerade: bool = True
    source: str = ""
    routed: bool = False
    open: bool = False


class Segment(Struct, frozen=True, kw_only=True):
    """What the firewall needs to know of a bridge. `dns_udp`, `dns_tcp`: where its DNS server listens on the gateway, 0: none.
    `within`: end points may talk with each other."""

    bridge: str
    gateway: str
    ipv4: Side
    ipv6: Side | None = None
    internal: bool = False
    within: bool = True
    dns_udp: int = 0
    dns_tcp: int = 0


def table(name: str, segments: Sequence[Segment], published: Iterable[Published]) -> str:
    """The whole table, replacing any older one atomically."""
    ports = sorted(published, key=lambda p: (p.protocol, p.host_port, p.host_ip, p.address))
    lines = [
        f"add table inet {name}",
        f"delete table inet {name}",
        f"table inet {name} {{",
        *_set("segments", "ifname", (f'"{s.bridge}"' for s in segments)),
        *_set("internal", "ifname", (f'"{s.bridge}"' for s in segments if s.internal)),
        *_set("within", "ifname . ifname", (f'"{s.bridge}" . "{s.bridge}"' for s in segments if s.within)),
        *_map("dns", "ipv4_addr . inet_proto : ipv4_addr . inet_service", _dns(segments)),
        *_family(4, [(s.bridge, s.ipv4) for s in segments], ports),
        *_family(6, [(s.bridge, s.ipv6) for s in segments if s.ipv6], ports),
        *_chain("guard", "filter", "prerouting", "raw", ("iifname @segments ip daddr 127.0.0.0/8 drop",)),
        *_chain("prerouting", "nat", "prerouting", "dstnat", ("fib daddr type local jump publish",)),
        *_chain("output", "nat", "output", "-100", ("fib daddr type local jump publish",)),
        *_chain("publish", "", "", "", _PUBLISH),
        *_chain("postrouting", "nat", "postrouting", "srcnat", _POSTROUTING),
        *_chain("forward", "filter", "forward", "filter", _FORWARD),
        "}",
    ]
    return "\n".join(lines)


def _family(version: int, sides: Sequence[tuple[str, Side]], ports: Sequence[Published]) -> list[str]:
    """The sets and maps of one IP version; those of IPv6 have a 6 behind their names."""
    end, address = ("6", "ipv6_addr") if version == 6 else ("", "ipv4_addr")
    mine = [(_where(port), _element(port)) for port in ports if _version(port) == version]
    to = f"{address} . inet_service"
    return [
        *_map(f"publish_any{end}", f"inet_proto . inet_service : {to}", _of(mine, f"publish_any{end}")),
        *_map(f"publish_at{end}", f"{address} . inet_proto . inet_service : {to}", _of(mine, f"publish_at{end}")),
        *_set(f"routed{end}", f"{address} . inet_proto . inet_service", _of(mine, f"routed{end}")),
        *_set(f"inside{end}", f"{address} . ifname", (f'{s.subnet} . "{b}"' for b, s in sides), "flags interval"),
        *_set(f"behind{end}", address, (s.subnet for _, s in sides if s.masquerade and not s.source), "flags interval"),
        *_map(
            f"source{end}",
            f"{address} : {address}",
            (f"{s.subnet} : {s.source}" for _, s in sides if s.masquerade and s.source),
            "flags interval",
        ),
        *_set(f"ping{end}", "ifname", (f'"{b}"' for b, s in sides if s.routed)),
        *_set(f"open{end}", "ifname", (f'"{b}"' for b, s in sides if s.open)),
    ]


def _of(mine: Iterable[tuple[str, str]], where: str) -> list[str]:
    return [element for place, element in mine if place == where]


_PUBLISH = (
    "th dport 53 dnat ip to ip daddr . meta l4proto map @dns",
    "dnat ip to ip daddr . meta l4proto . th dport map @publish_at",
    "dnat ip to meta l4proto . th dport map @publish_any",
    "ip6 daddr ::1 return",  # the kernel does not carry ::1 to another interface; a refusal makes clients try 127.0.0.1
    "dnat ip6 to ip6 daddr . meta l4proto . th dport map @publish_at6",
    "dnat ip6 to meta l4proto . th dport map @publish_any6",
)
_POSTROUTING = (
    "ct status dnat ip saddr 127.0.0.0/8 oifname @segments masquerade",
    "ct status dnat ip saddr . oifname @inside masquerade",
    "ct status dnat ip6 saddr . oifname @inside6 masquerade",
    "ip saddr . oifname @inside return",
    "ip6 saddr . oifname @inside6 return",
    "snat ip to ip saddr map @source",
    "snat ip6 to ip6 saddr map @source6",
    "ip saddr @behind masquerade",
    "ip6 saddr @behind6 masquerade",
)
_FORWARD = (
    "ct state established,related accept",
    "iifname . oifname @within accept",
    "iifname @internal drop",
    "oifname @internal drop",
    "oifname @segments ct status dnat accept",
    "oifname @segments ip daddr . meta l4proto . th dport @routed accept",
    "oifname @segments ip6 daddr . meta l4proto . th dport @routed6 accept",
    "oifname @ping meta l4proto icmp accept",
    "oifname @ping6 meta l4proto icmpv6 accept",
    "iifname != @segments oifname @open meta nfproto ipv4 accept",
    "iifname != @segments oifname @open6 meta nfproto ipv6 accept",
    "oifname @segments drop",
)


def _set(name: str, type_: str, elements: Iterable[str], *more: str) -> list[str]:
    return _collection("set", name, type_, elements, more)


def _map(name: str, type_: str, elements: Iterable[str], *more: str) -> list[str]:
    return _collection("map", name, type_, elements, more)


def _collection(what: str, name: str, type_: str, elements: Iterable[str], more: Iterable[str]) -> list[str]:
    listed = ", ".join(elements)
    return [
        f"  {what} {name} {{",
        f"    type {type_}",
        *(f"    {line}" for line in more),
        *([f"    elements = {{ {listed} }}"] if listed else []),
        "  }",
    ]


def _chain(name: str, type_: str, hook: str, priority: str, rules: Iterable[str]) -> list[str]:
    head = [f"    type {type_} hook {hook} priority {priority}; policy accept;"] if type_ else []
    return [f"  chain {name} {{", *head, *(f"    {rule}" for rule in rules), "  }"]


def _dns(segments: Sequence[Segment]) -> list[str]:
    return [
        f"{s.gateway} . {protocol} : {s.gateway} . {port}"
        for s in segments
        for protocol, port in (("udp", s.dns_udp), ("tcp", s.dns_tcp))
        if port
    ]


def _version(port: Published) -> int:
    return 6 if ":" in port.address else 4


def _where(port: Published) -> str:
    """The set or map that a port is an element of."""
    end = "6" if _version(port) == 6 else ""
    if not port.host_port:
        return f"routed{end}"
    return f"publish_any{end}" if port.host_ip in (ANY, ANY6) else f"publish_at{end}"


def _element(port: Published) -> str:
    if not port.host_port:
        return f"{port.address} . {port.protocol} . {port.container_port}"
    at = "" if port.host_ip in (ANY, ANY6) else f"{port.host_ip} . "
    return f"{at}{port.protocol} . {port.host_port} : {port.address} . {port.container_port}"


def _changes(verb: str, name: str, ports: Iterable[Published], *, keys_only: bool) -> str:
    lines = []
    for port in ports:
        element = _element(port)
        if keys_only:
            element = element.partition(" : ")[0]
        lines.append(f"{verb} element inet {name} {_where(port)} {{ {element} }}")
    return "\n".join(lines)


def resolver(gateway: str, *, fresh: bool) -> str:
    """The table inside of an instance's own namespace that leads 127.0.0.11, where programs made for Docker look for a DNS
    server, to the one at the gateway. The way back needs `route_localnet`, which must not open the loopback to neighbours. In a
    `fresh` namespace there is none to replace, which saves 8 ms: the kernel waits for its readers before it deletes."""
    replace = () if fresh else ("add table ip insula_dns", "delete table ip insula_dns")
    return "\n".join(
        (
            *replace,
            "table ip insula_dns {",
            *_chain("guard", "filter", "prerouting", "raw", ('iifname != "lo" ip daddr 127.0.0.0/8 drop',)),
            *_chain(
                "output",
                "nat",
                "output",
                "-100",
                (f"ip daddr 127.0.0.11 meta l4proto {{ tcp, udp }} th dport 53 dnat to {gateway}",),
            ),
            *_chain(
                "postrouting", "nat", "postrouting", "srcnat", (f"ip saddr 127.0.0.0/8 ip daddr {gateway} masquerade",)
            ),
            "}",
        )
    )


def add_ports(name: str, ports: Iterable[Published]) -> str:
    """Open ports: one transaction."""
    return _changes("add", name, ports, keys_only=False)


def delete_ports(name: str, ports: Iterable[Published]) -> str:
    """Close ports: one transaction."""
    return _changes("delete", name, ports, keys_only=True)


def drop(name: str) -> str:
    """Remove the table, whether or not it is there. nft 1.0.6 has no `destroy`."""
    return f"add table inet {name}\ndelete table inet {name}"


# --- other tools' tables ---------------------------------------------------------------------------------------


def hostile_chains(chains: Iterable[Mapping[str, Any]], own: str, hook: str = "forward") -> list[str]:
    """From `nft -j list chains`: `family table chain` of others' base chains of a hook that drop IPv4 by policy."""
    found = []
    for entry in chains:
        chain = entry.get("chain", {})
        if chain.get("hook") != hook or chain.get("policy") != "drop" or chain.get("table") == own:
            continue
        if chain.get("family") in ("ip", "inet"):
            found.append(f"{chain['family']} {chain['table']} {chain['name']}")
    return found


def foreign_accepts(prefix: str, *, comment: str) -> str:
    """Two rules at the head of Docker's DOCKER-USER, which Docker keeps for administrators and never empties itself. They
    hold only counters and interface names, so that iptables-nft still can show the table."""
    return "\n".join(
        f'insert rule ip filter DOCKER-USER {side} "{prefix}*" counter accept comment "{comment}"'
        for side in ("iifname", "oifname")
    )


def foreign_rules(rules: Iterable[Mapping[str, Any]], comment: str) -> list[int]:
    """From `nft -j list chain ip filter DOCKER-USER`: handles of the rules that are ours."""
    return [
        entry["rule"]["handle"]
        for entry in rules
        if re.fullmatch(re.escape(comment), str(entry.get("rule", {}).get("comment", "")))
    ]
