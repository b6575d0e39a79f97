"""Insula's nftables table, as a pure function of the segments and the published ports.

The table is replaced whole, in one transaction, when a segment comes or goes (about 1 ms). Published ports are elements of
two maps, so that one `publish` is one small transaction (about 0.2 ms), and all of its ports open at once.

    guard        raw prerouting   packets from a segment to 127/8 are dropped: `route_localnet`, which lets 127.0.0.1 reach
                                  a published port, must not open the host's loopback services (CVE-2020-8558)
    prerouting,  dstnat           connections to any address of the host: DNS of a segment, then published ports
    output
    postrouting  srcnat           masquerade what leaves a segment; hairpin and 127.0.0.1 connections take the gateway's
                                  address, or the answer would bypass the host
    forward      filter           a segment talks within itself and outwards; inwards only what was published, which also
                                  is the one way from segment to segment; an internal segment only within itself

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


class Segment(Struct, frozen=True, kw_only=True):
    """What the firewall needs to know of a bridge. `dns_udp`, `dns_tcp`: where its DNS server listens on the gateway, 0: none."""

    bridge: str
    subnet: str
    gateway: str
    internal: bool = False
    masquerade: bool = True
    dns_udp: int = 0
    dns_tcp: int = 0


def table(name: str, segments: Sequence[Segment], published: Iterable[Published]) -> str:
    """The whole table, replacing any older one atomically."""
    ports = sorted(published, key=lambda p: (p.protocol, p.host_port, p.host_ip))
    lines = [
        f"add table inet {name}",
        f"delete table inet {name}",
        f"table inet {name} {{",
        *_set("segments", "ifname", (f'"{s.bridge}"' for s in segments)),
        *_map("dns", "ipv4_addr . inet_proto : ipv4_addr . inet_service", _dns(segments)),
        *_map(
            "publish_any",
            "inet_proto . inet_service : ipv4_addr . inet_service",
            (_element(p) for p in ports if p.host_ip == ANY),
        ),
        *_map(
            "publish_at",
            "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
            (_element(p) for p in ports if p.host_ip != ANY),
        ),
        *_chain("guard", "filter", "prerouting", "raw", ("iifname @segments ip daddr 127.0.0.0/8 drop",)),
        *_chain("prerouting", "nat", "prerouting", "dstnat", ("fib daddr type local jump publish",)),
        *_chain("output", "nat", "output", "-100", ("fib daddr type local jump publish",)),
        *_chain("publish", "", "", "", _PUBLISH),
        *_chain("postrouting", "nat", "postrouting", "srcnat", _leaving(segments)),
        *_chain("forward", "filter", "forward", "filter", _crossing(segments)),
        "}",
    ]
    return "\n".join(lines)


_PUBLISH = (
    "th dport 53 dnat ip to ip daddr . meta l4proto map @dns",
    "dnat ip to ip daddr . meta l4proto . th dport map @publish_at",
    "dnat ip to meta l4proto . th dport map @publish_any",
)


def _set(name: str, type_: str, elements: Iterable[str]) -> list[str]:
    return _collection("set", name, type_, elements)


def _map(name: str, type_: str, elements: Iterable[str]) -> list[str]:
    return _collection("map", name, type_, elements)


def _collection(what: str, name: str, type_: str, elements: Iterable[str]) -> list[str]:
    listed = ", ".join(elements)
    return [
        f"  {what} {name} {{",
        f"    type {type_}",
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


def _leaving(segments: Sequence[Segment]) -> list[str]:
    rules = ["ct status dnat ip saddr 127.0.0.0/8 oifname @segments masquerade"]
    for s in segments:
        rules.append(f'ip saddr {s.subnet} oifname "{s.bridge}" ct status dnat masquerade')
        if s.masquerade and not s.internal:
            rules.append(f'ip saddr {s.subnet} oifname != "{s.bridge}" masquerade')
    return rules


def _crossing(segments: Sequence[Segment]) -> list[str]:
    rules = [f'iifname "{s.bridge}" oifname "{s.bridge}" accept' for s in segments]
    for s in segments:
        if s.internal:
            rules += [f'iifname "{s.bridge}" drop', f'oifname "{s.bridge}" drop']
    return [
        *rules,
        "ct state established,related accept",
        "oifname @segments ct status dnat accept",
        "oifname @segments drop",
    ]


def _element(port: Published) -> str:
    at = "" if port.host_ip == ANY else f"{port.host_ip} . "
    return f"{at}{port.protocol} . {port.host_port} : {port.address} . {port.container_port}"


def _changes(verb: str, name: str, ports: Iterable[Published], *, keys_only: bool) -> str:
    lines = []
    for port in ports:
        element = _element(port)
        if keys_only:
            element = element.partition(" : ")[0]
        where = "publish_any" if port.host_ip == ANY else "publish_at"
        lines.append(f"{verb} element inet {name} {where} {{ {element} }}")
    return "\n".join(lines)


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
