"""DNS: names of a segment, packets, the host's resolvers."""

from __future__ import annotations

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.networks.contract import Endpoint, Network, Record
from insula.networks.dnspackets import answer, parse, question, refuse
from insula.networks.forward import _question_end, parse_resolvers
from insula.networks.names import Names

WEB = Network(id="n", name="Web", subnet="10.1.0.0/24", gateway="10.1.0.1")


def endpoint(address: str, *aliases: str, hostname: str = "") -> Endpoint:
    return Endpoint(
        id=address,
        network="n",
        owner=address,
        interface="eth0",
        host_interface="v",
        mac="",
        address=address,
        prefix=24,
        gateway="10.1.0.1",
        aliases=aliases,
        hostname=hostname,
    )


ENDPOINTS = [endpoint("10.1.0.2", "DB", "db", "all", hostname="h1"), endpoint("10.1.0.3", "all")]


def test_names_of_a_segment() -> None:
    names = Names(WEB, ENDPOINTS)
    assert names.lookup("db", "A") == [Record("db", "A", "10.1.0.2")]
    assert names.lookup("Db.wEB", "A") == [Record("Db.wEB", "A", "10.1.0.2")]
    assert names.lookup("h1", "ANY") == [Record("h1", "A", "10.1.0.2")]
    assert [r.value for r in names.lookup("all", "A") or ()] == ["10.1.0.2", "10.1.0.3"]
    assert names.lookup("db", "AAAA") == names.lookup("db", "MX") == []
    assert names.lookup("db.other", "A") is None and names.lookup("", "A") is None


def test_reverse_names() -> None:
    names = Names(WEB, ENDPOINTS)
    assert names.lookup("2.0.1.10.in-addr.arpa", "PTR") == [Record("2.0.1.10.in-addr.arpa", "PTR", "db.Web.")]
    assert names.lookup("2.0.1.10.in-addr.arpa", "A") == []
    for unknown in ("9.0.1.10.in-addr.arpa", "x.in-addr.arpa", "1.in-addr.arpa"):
        assert names.lookup(unknown, "PTR") is None


def test_the_default_network_has_no_names() -> None:
    default = Network(id="n", name="default", subnet="10.1.0.0/24", gateway="10.1.0.1", builtin=True)
    assert Names(default, ENDPOINTS).lookup("db", "A") is None


def query(name: str, kind: str = "A", *, size: int = 0) -> dnslib.DNSRecord:
    made = dnslib.DNSRecord.question(name, kind)
    if size:
        made.add_ar(dnslib.EDNS0(udp_len=size))
    parsed = parse(made.pack())
    assert parsed is not None
    return parsed


def test_an_answer_carries_the_question_and_the_records() -> None:
    reply = dnslib.DNSRecord.parse(answer(query("db"), [Record("db", "A", "10.1.0.2")], tcp=False))
    assert str(reply.q.qname) == "db." and str(reply.rr[0].rdata) == "10.1.0.2" and reply.rr[0].ttl == 5
    missing = dnslib.DNSRecord.parse(answer(query("x"), None, tcp=False))
    assert dnslib.RCODE[missing.header.rcode] == "NXDOMAIN"


def test_what_does_not_fit_is_truncated_and_asked_again_by_tcp() -> None:
    many = [Record("all", "A", f"10.1.0.{n}") for n in range(1, 100)]
    for asked, tcp, whole in (
        (query("all"), False, False),
        (query("all", size=4096), False, True),
        (query("all"), True, True),
    ):
        reply = dnslib.DNSRecord.parse(answer(asked, many, tcp=tcp))
        assert (len(reply.rr) == 99) is whole and bool(reply.header.tc) is not whole


@pytest.mark.parametrize("kind", ["A", "AAAA", "PTR", "SRV", "TXT", "CNAME"])
def test_record_types(kind: str) -> None:
    value = {"A": "10.0.0.1", "AAAA": "fd00::1", "SRV": "1 2 80 web.x."}.get(kind, "web.x.")
    reply = dnslib.DNSRecord.parse(answer(query("n", kind), [Record("n", kind, value)], tcp=False))
    assert dnslib.QTYPE[reply.rr[0].rtype] == kind


def test_unknown_types_have_a_word() -> None:
    packet = bytearray(dnslib.DNSRecord.question("x", "A").pack())
    packet[-4:-2] = (65399).to_bytes(2, "big")
    parsed = parse(bytes(packet))
    assert parsed is not None and question(parsed) == ("x", "TYPE65399")


def test_only_ordinary_queries_are_read() -> None:
    good = dnslib.DNSRecord.question("x").pack()
    assert parse(good) is not None
    assert parse(good[:2] + b"\x81\x80" + good[4:]) is None, "an answer"
    assert parse(good[:2] + b"\x28\x00" + good[4:]) is None, "an update"
    assert parse(b"\1\2\1\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c\0\1\0\1") is None, "a name that points to itself"
    assert refuse(good, 1) == good[:2] + b"\x81\x81" + b"\0" * 8


@given(st.binary(max_size=200))
def test_rubbish_never_raises(noise: bytes) -> None:
    parse(noise)
    if len(noise) >= 12:
        refuse(noise, 1)
        assert 12 < _question_end(noise + b"\0" * 5) <= len(noise) + 5


def test_resolvers() -> None:
    text = "# nameserver 1.1.1.1\nsearch x\nnameserver 10.0.0.1\n nameserver\t10.0.0.2 \nnameserver fe80::1%eth0\nnameserver\n"
    assert parse_resolvers(text) == ["10.0.0.1", "10.0.0.2"]
    assert len(parse_resolvers("nameserver 10.0.0.1\n" * 5)) == 3
