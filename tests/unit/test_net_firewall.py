"""The nftables table as text, and what is read from other tools' tables."""

from __future__ import annotations

import msgspec

from insula.networks import firewall
from insula.networks.contract import Published
from insula.networks.firewall import Segment, Side

DEFAULT = Segment(
    bridge="ins0",
    gateway="10.88.0.1",
    ipv4=Side(subnet="10.88.0.0/16"),
    ipv6=Side(subnet="fd00:1::/64"),
    dns_udp=4001,
    dns_tcp=4002,
)
VAULT = Segment(
    bridge="insb0000000a", gateway="10.89.0.1", internal=True, ipv4=Side(subnet="10.89.0.0/22", masquerade=False)
)


def port(host_port: int, host_ip: str = "0.0.0.0", protocol: str = "tcp") -> Published:
    return Published(
        owner="a", host_ip=host_ip, host_port=host_port, container_port=80, protocol=protocol, address="10.88.0.2"
    )


GOLDEN = """\
add table inet insula
delete table inet insula
table inet insula {
  set segments {
    type ifname
    elements = { "ins0", "insb0000000a" }
  }
  set internal {
    type ifname
    elements = { "insb0000000a" }
  }
  set within {
    type ifname . ifname
    elements = { "ins0" . "ins0", "insb0000000a" . "insb0000000a" }
  }
  map dns {
    type ipv4_addr . inet_proto : ipv4_addr . inet_service
    elements = { 10.88.0.1 . udp : 10.88.0.1 . 4001, 10.88.0.1 . tcp : 10.88.0.1 . 4002 }
  }
  map publish_any {
    type inet_proto . inet_service : ipv4_addr . inet_service
    elements = { tcp . 8080 : 10.88.0.2 . 80, udp . 53 : 10.88.0.2 . 80 }
  }
  map publish_at {
    type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
    elements = { 127.0.0.1 . tcp . 8081 : 10.88.0.2 . 80 }
  }
  set routed {
    type ipv4_addr . inet_proto . inet_service
  }
  set inside {
    type ipv4_addr . ifname
    flags interval
    elements = { 10.88.0.0/16 . "ins0", 10.89.0.0/22 . "insb0000000a" }
  }
  set behind {
    type ipv4_addr
    flags interval
    elements = { 10.88.0.0/16 }
  }
  map source {
    type ipv4_addr : ipv4_addr
    flags interval
  }
  set ping {
    type ifname
  }
  set open {
    type ifname
  }
  map publish_any6 {
    type inet_proto . inet_service : ipv6_addr . inet_service
  }
  map publish_at6 {
    type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service
  }
  set routed6 {
    type ipv6_addr . inet_proto . inet_service
  }
  set inside6 {
    type ipv6_addr . ifname
    flags interval
    elements = { fd00:1::/64 . "ins0" }
  }
  set behind6 {
    type ipv6_addr
    flags interval
    elements = { fd00:1::/64 }
  }
  map source6 {
    type ipv6_addr : ipv6_addr
    flags interval
  }
  set ping6 {
    type ifname
  }
  set open6 {
    type ifname
  }
  chain guard {
    type filter hook prerouting priority raw; policy accept;
    iifname @segments ip daddr 127.0.0.0/8 drop
  }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump publish
  }
  chain output {
    type nat hook output priority -100; policy accept;
    fib daddr type local jump publish
  }
  chain publish {
    th dport 53 dnat ip to ip daddr . meta l4proto map @dns
    dnat ip to ip daddr . meta l4proto . th dport map @publish_at
    dnat ip to meta l4proto . th dport map @publish_any
    ip6 daddr ::1 return
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @publish_at6
    dnat ip6 to meta l4proto . th dport map @publish_any6
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat ip saddr 127.0.0.0/8 oifname @segments masquerade
    ct status dnat ip saddr . oifname @inside masquerade
    ct status dnat ip6 saddr . oifname @inside6 masquerade
    ip saddr . oifname @inside return
    ip6 saddr . oifname @inside6 return
    snat ip to ip saddr map @source
    snat ip6 to ip6 saddr map @source6
    ip saddr @behind masquerade
    ip6 saddr @behind6 masquerade
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    iifname . oifname @within accept
    iifname @internal drop
    oifname @internal drop
    oifname @segments ct status dnat accept
    oifname @segments ip daddr . meta l4proto . th dport @routed accept
    oifname @segments ip6 daddr . meta l4proto . th dport @routed6 accept
    oifname @ping meta l4proto icmp accept
    oifname @ping6 meta l4proto icmpv6 accept
    iifname != @segments oifname @open meta nfproto ipv4 accept
    iifname != @segments oifname @open6 meta nfproto ipv6 accept
    oifname @segments drop
  }
}"""


def test_the_whole_table() -> None:
    ports = [port(53, protocol="udp"), port(8081, "127.0.0.1"), port(8080)]
    assert firewall.table("insula", [DEFAULT, VAULT], ports) == GOLDEN


def test_a_node_without_segments_has_empty_sets() -> None:
    text = firewall.table("t", [], [])
    assert "elements =" not in text and "masquerade" in text


def test_masquerade_can_be_off() -> None:
    def behind(side: Side) -> list[str]:
        text = firewall.table("t", [Segment(bridge="b", gateway="10.1.0.1", ipv4=side)], [])
        return [line.strip() for line in text.split("set behind {")[1].split("}", 1)[0].splitlines()]

    assert "elements = { 10.1.0.0/24" in behind(Side(subnet="10.1.0.0/24"))
    assert not any("elements" in line for line in behind(Side(subnet="10.1.0.0/24", masquerade=False)))
    assert not any("elements" in line for line in behind(Side(subnet="10.1.0.0/24", source="192.0.2.1")))


def test_the_rules_do_not_grow() -> None:
    """A packet meets the same few rules, however many segments and ports there are."""

    def rules(count: int) -> list[str]:
        segments = [
            Segment(bridge=f"b{n}", gateway=f"10.{n}.0.1", ipv4=Side(subnet=f"10.{n}.0.0/24", routed=bool(n % 2)))
            for n in range(count)
        ]
        text = firewall.table("t", segments, [port(9000 + n) for n in range(count)])
        return text[text.index("chain guard") :].splitlines()

    assert rules(1) == rules(200)


def test_ports_of_both_versions_and_of_routed_networks() -> None:
    six = Published(owner="a", host_ip="::", host_port=80, container_port=80, protocol="tcp", address="fd00::2")
    at = msgspec.structs.replace(six, host_ip="fd01::1", host_port=81)
    routed = msgspec.structs.replace(six, host_ip="", host_port=0)
    assert firewall.add_ports("t", [six, at, routed]).splitlines() == [
        "add element inet t publish_any6 { tcp . 80 : fd00::2 . 80 }",
        "add element inet t publish_at6 { fd01::1 . tcp . 81 : fd00::2 . 80 }",
        "add element inet t routed6 { fd00::2 . tcp . 80 }",
    ]
    assert firewall.delete_ports("t", [routed]) == "delete element inet t routed6 { fd00::2 . tcp . 80 }"


def test_ports_are_one_transaction() -> None:
    ports = [port(8080), port(8081, "127.0.0.1")]
    assert firewall.add_ports("t", ports).splitlines() == [
        "add element inet t publish_any { tcp . 8080 : 10.88.0.2 . 80 }",
        "add element inet t publish_at { 127.0.0.1 . tcp . 8081 : 10.88.0.2 . 80 }",
    ]
    assert firewall.delete_ports("t", ports).splitlines() == [
        "delete element inet t publish_any { tcp . 8080 }",
        "delete element inet t publish_at { 127.0.0.1 . tcp . 8081 }",
    ]


def test_chains_that_drop_what_is_forwarded() -> None:
    def chain(table: str, **more: str) -> dict[str, object]:
        return {
            "chain": {"family": "ip", "table": table, "name": "FORWARD", "hook": "forward", "policy": "drop"} | more
        }

    chains = [
        chain("filter"),
        chain("own"),
        chain("fw", family="inet", name="f"),
        chain("x", family="ip6"),
        chain("y", policy="accept"),
        chain("z", hook="input"),
        {"chain": {"family": "ip", "table": "nat", "name": "plain"}},
        {"metainfo": {}},
    ]
    assert firewall.hostile_chains(chains, "own") == ["ip filter FORWARD", "inet fw f"]


def test_only_rules_with_our_comment_are_ours() -> None:
    rules = [{"rule": {"handle": n, "comment": c}} for n, c in enumerate(("insula t", "insula t2", "x"))]
    assert firewall.foreign_rules([*rules, {"chain": {}}, {"rule": {"handle": 9}}], "insula t") == [0]
    text = firewall.foreign_accepts("ins", comment="insula t")
    assert text.splitlines()[0] == (
        'insert rule ip filter DOCKER-USER iifname "ins*" counter accept comment "insula t"'
    )
