"""The nftables table as text, and what is read from other tools' tables."""

from __future__ import annotations

from insula.networks import firewall
from insula.networks.contract import Published
from insula.networks.firewall import Segment

DEFAULT = Segment(bridge="ins0", subnet="10.88.0.0/16", gateway="10.88.0.1", dns_udp=4001, dns_tcp=4002)
VAULT = Segment(bridge="insb0000000a", subnet="10.89.0.0/22", gateway="10.89.0.1", internal=True)


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
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat ip saddr 127.0.0.0/8 oifname @segments masquerade
    ip saddr 10.88.0.0/16 oifname "ins0" ct status dnat masquerade
    ip saddr 10.88.0.0/16 oifname != "ins0" masquerade
    ip saddr 10.89.0.0/22 oifname "insb0000000a" ct status dnat masquerade
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname "ins0" oifname "ins0" accept
    iifname "insb0000000a" oifname "insb0000000a" accept
    iifname "insb0000000a" drop
    oifname "insb0000000a" drop
    ct state established,related accept
    oifname @segments ct status dnat accept
    oifname @segments drop
  }
}"""


def test_the_whole_table() -> None:
    ports = [port(53, protocol="udp"), port(8081, "127.0.0.1"), port(8080)]
    assert firewall.table("insula", [DEFAULT, VAULT], ports) == GOLDEN


def test_a_node_without_segments_has_empty_sets() -> None:
    text = firewall.table("t", [], [])
    assert "elements" not in text and "masquerade" in text


def test_masquerade_can_be_off() -> None:
    bare = Segment(bridge="b", subnet="10.1.0.0/24", gateway="10.1.0.1", masquerade=False)
    assert 'oifname != "b"' not in firewall.table("t", [bare], [])


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
