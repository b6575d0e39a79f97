"""DHCP packets: reading, writing, answering."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.networks.dhcp_packet import LEASE_S, Lease, Message, Option, Packet, decode, encode, reply

MAC = "02:42:0a:58:00:02"
LEASE = Lease(
    mac=MAC,
    address="10.88.0.2",
    prefix=16,
    server="10.88.0.1",
    router="10.88.0.1",
    dns="10.88.0.1",
    hostname="vm",
    mtu=1400,
)
OURS, ADDRESS, OTHER = b"\x0a\x58\x00\x01", b"\x0a\x58\x00\x02", b"\x0a\x58\x00\x63"


def ask(message: Message, *, ciaddr: str = "0.0.0.0", giaddr: str = "0.0.0.0", **options: bytes) -> Packet:
    told: dict[int, bytes] = {Option.MESSAGE: bytes((message,))}
    told |= {Option[name.upper()]: value for name, value in options.items()}
    return Packet(op=1, xid=7, mac=MAC, ciaddr=ciaddr, giaddr=giaddr, options=told)


def test_discover_is_offered_everything() -> None:
    offer = reply(ask(Message.DISCOVER, client_id=b"\1abcdef"), LEASE)
    assert offer is not None
    assert (offer.op, offer.xid, offer.message, offer.yiaddr) == (2, 7, Message.OFFER, "10.88.0.2")
    assert offer.options[Option.MASK] == b"\xff\xff\0\0"
    assert offer.options[Option.ROUTER] == offer.options[Option.DNS] == offer.options[Option.SERVER] == OURS
    assert offer.options[Option.HOSTNAME] == b"vm" and offer.options[Option.MTU] == (1400).to_bytes(2, "big")
    assert offer.options[Option.BROADCAST] == b"\x0a\x58\xff\xff"
    assert offer.options[Option.LEASE_S] == LEASE_S.to_bytes(4, "big")
    assert offer.options[Option.CLIENT_ID] == b"\1abcdef"


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (ask(Message.REQUEST, server=OURS, address=ADDRESS), Message.ACK),  # selecting
        (ask(Message.REQUEST, server=OTHER, address=ADDRESS), None),  # another server's offer
        (ask(Message.REQUEST, address=ADDRESS), Message.ACK),  # after a reboot of the client
        (ask(Message.REQUEST, address=OTHER), Message.NAK),
        (ask(Message.REQUEST, ciaddr="10.88.0.2"), Message.ACK),  # renewing
        (ask(Message.REQUEST, ciaddr="10.88.0.9"), Message.NAK),
        (ask(Message.INFORM, ciaddr="10.88.0.2"), Message.ACK),
        (ask(Message.RELEASE, ciaddr="10.88.0.2"), None),
        (ask(Message.DECLINE, address=ADDRESS), None),
        (ask(Message.DISCOVER, giaddr="10.88.0.7"), None),  # relayed
        (msgspec.structs.replace(ask(Message.DISCOVER), op=2), None),  # an answer, not a request
        (Packet(op=1, xid=7, mac=MAC), None),  # plain BOOTP
    ],
)
def test_answers(request_: Packet, answer: Message | None) -> None:
    got = reply(request_, LEASE)
    assert (got.message if got else None) == answer


def test_a_refusal_names_no_address() -> None:
    nak = reply(ask(Message.REQUEST, address=OTHER), LEASE)
    assert nak is not None and nak.yiaddr == "0.0.0.0" and Option.MASK not in nak.options and nak.flags & 0x8000


def test_inform_gives_settings_without_a_lease() -> None:
    ack = reply(ask(Message.INFORM, ciaddr="10.88.0.2"), LEASE)
    assert ack is not None and ack.yiaddr == "0.0.0.0" and Option.LEASE_S not in ack.options


def test_a_segment_that_leads_nowhere_has_no_router() -> None:
    offer = reply(ask(Message.DISCOVER), msgspec.structs.replace(LEASE, router="", hostname=""))
    assert offer is not None and Option.ROUTER not in offer.options and Option.HOSTNAME not in offer.options


def test_there_and_back() -> None:
    offer = reply(ask(Message.DISCOVER), LEASE)
    assert offer is not None
    wire = encode(offer)
    assert len(wire) >= 300 and decode(wire) == offer


def test_long_options_come_in_parts() -> None:
    head = encode(Packet(op=1, xid=1, mac=MAC))[:240]
    told = decode(head + bytes((12, 2)) + b"ab" + bytes((0, 12, 1)) + b"c" + b"\xff")
    assert told is not None and told.options == {12: b"abc"}


@given(st.binary(max_size=400), st.integers(0, 240))
def test_rubbish_is_read_or_refused(noise: bytes, keep: int) -> None:
    good = encode(Packet(op=1, xid=1, mac=MAC))
    decode(noise)
    packet = decode(good[:keep] + noise)
    if packet is not None:
        reply(packet, LEASE)
