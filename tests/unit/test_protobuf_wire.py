"""Messages as records against the wire format, golden bytes and round trips."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from insula.errors import Invalid
from insula.model.protobuf import decode, encode, put_varint


class Inner(Struct, frozen=True):
    path: Annotated[str, 1] = ""
    mode: Annotated[int, 2] = 0


class Outer(Struct, frozen=True):
    number: Annotated[int, 1] = 0
    flag: Annotated[bool, 2] = False
    inner: Annotated[Inner | None, 3] = None
    many: Annotated[tuple[Inner, ...], 4] = ()
    names: Annotated[tuple[str, ...], 5] = ()
    words: Annotated[Mapping[str, str], 16] = {}
    parts: Annotated[Mapping[str, Inner], 17] = {}
    data: Annotated[bytes, 18] = b""
    numbers: Annotated[tuple[int, ...], 19] = ()


class Deep(Struct, frozen=True):
    next: Annotated[Deep | None, 1] = None


def test_golden() -> None:
    message = Outer(number=300, flag=True, inner=Inner(path="a"), names=("x", ""), words={"k": "v"}, data=b"\0")
    assert encode(message) == bytes.fromhex(
        "08ac02 1001 1a030a0161 2a0178 2a00 82010 60a016b120176 92010100".replace(" ", "")
    )
    assert decode(encode(message), Outer) == message


def test_negative_numbers_are_ten_bytes() -> None:
    assert encode(Outer(number=-1)) == b"\x08" + b"\xff" * 9 + b"\x01"
    assert decode(b"\x08" + b"\xff" * 9 + b"\x01", Outer).number == -1


def test_an_empty_message_within_is_kept_apart_from_none() -> None:
    assert encode(Outer(inner=Inner())) == b"\x1a\x00"
    assert decode(b"\x1a\x00", Outer).inner == Inner()
    assert decode(b"", Outer).inner is None


def test_unknown_fields_and_packed_numbers() -> None:
    assert decode(bytes.fromhex("f80601 9a0103010203".replace(" ", "")), Outer).numbers == (1, 2, 3)


def test_an_entry_may_lack_its_value() -> None:
    assert decode(bytes.fromhex("820103 0a016b".replace(" ", "")), Outer).words == {"k": ""}


@pytest.mark.parametrize(
    "bad", ["08", "1a05", "0b", "02", "1a0408", "0a0161", "1801", "2a01ff", "08ffffffffffffffffffffff"]
)
def test_malformed(bad: str) -> None:
    with pytest.raises(Invalid):
        decode(bytes.fromhex(bad), Outer)


def test_nesting_is_bounded() -> None:
    data = b""
    for _ in range(80):
        data = b"\x0a" + put_varint(len(data)) + data
    with pytest.raises(Invalid, match="too deeply"):
        decode(data, Deep)


_inner = st.builds(Inner, path=st.text(), mode=st.integers(-(2**63), 2**63 - 1))


@given(
    st.builds(
        Outer,
        number=st.integers(-(2**63), 2**63 - 1),
        flag=st.booleans(),
        inner=st.none() | _inner,
        many=st.lists(_inner, max_size=3).map(tuple),
        names=st.lists(st.text(), max_size=3).map(tuple),
        words=st.dictionaries(st.text(), st.text(), max_size=3),
        parts=st.dictionaries(st.text(), _inner, max_size=3),
        data=st.binary(),
        numbers=st.lists(st.integers(0, 2**63 - 1), max_size=3).map(tuple),
    )
)
def test_round_trip(message: Outer) -> None:
    assert decode(encode(message), Outer) == message


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_message_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(Invalid):
        decode(data, Outer)
