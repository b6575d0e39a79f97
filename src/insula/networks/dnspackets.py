"""DNS packets: questions read, answers written. Pure. Apart from the server, for dnslib is slow to load and nobody asks in the
first moments. Sources: RFC 1035, RFC 6891 (answer sizes)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import dnslib

from insula.networks.contract import Record

_PLAIN_SIZE = 512  # bytes of a UDP answer when the asker names no size


def parse(query: bytes) -> dnslib.DNSRecord | None:
    """A query with exactly one question; None for anything else, whatever the bytes are."""
    try:
        record = dnslib.DNSRecord.parse(query)
    except Exception:  # a parser of hostile bytes may fail in any way, RecursionError included
        return None
    ordinary = record.header.qr == 0 and record.header.opcode == 0 and len(record.questions) == 1
    return record if ordinary else None


def question(query: dnslib.DNSRecord) -> tuple[str, str]:
    """(name without the last dot, type as a word)."""
    try:
        kind = dnslib.QTYPE[query.q.qtype]
    except dnslib.DNSError:
        kind = f"TYPE{query.q.qtype}"
    return str(query.q.qname).rstrip("."), kind


def answer(query: dnslib.DNSRecord, records: Sequence[Record] | None, *, tcp: bool) -> bytes:
    """The packet that carries records: NXDOMAIN for None, truncated when it does not fit the asker's datagram. Several
    addresses come in random order, so that their load spreads."""
    reply = query.reply(ra=1, aa=1)
    if records is None:
        reply.header.rcode = dnslib.RCODE.NXDOMAIN
    for record in random.sample(records, len(records)) if records else ():
        kind = getattr(dnslib.QTYPE, record.type)
        reply.add_answer(dnslib.RR(record.name, kind, rdata=_rdata(record), ttl=record.ttl))
    packed: bytes = reply.pack()
    if tcp or len(packed) <= _room(query):
        return packed
    reply.rr, reply.header.tc = [], 1
    return bytes(reply.pack())


def _rdata(record: Record) -> Any:
    if record.type == "SRV":
        priority, weight, port, target = record.value.split()
        return dnslib.SRV(int(priority), int(weight), int(port), target)
    return getattr(dnslib, record.type)(record.value)


def _room(query: dnslib.DNSRecord) -> int:
    sizes = [int(extra.rclass) for extra in query.ar if extra.rtype == dnslib.QTYPE.OPT]
    return max(_PLAIN_SIZE, min(max(sizes, default=0), 4096))


def refuse(query: bytes, code: int) -> bytes:
    """An answer without records to a query that may be malformed: FORMERR 1, SERVFAIL 2, REFUSED 5."""
    return query[:2] + bytes((0x80 | (query[2] & 0x79), 0x80 | code)) + b"\0" * 8
