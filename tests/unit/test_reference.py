"""References: Docker's normalization, and names from strangers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.errors import Invalid
from insula.images.reference import id_prefix, parse, parse_name

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "tagged", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox", "busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox", "busybox:latest", "busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox:latest", "busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox", "busybox:latest", "busybox:latest"),
        ("insula/busybox", "docker.io/insula/busybox", "insula/busybox:latest", "insula/busybox:latest"),
        ("localhost/a", "localhost/a", "localhost/a:latest", "localhost/a:latest"),
        ("localhost:5000/a/b:t", "localhost:5000/a/b", "localhost:5000/a/b:t", "localhost:5000/a/b:t"),
        ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
        (
            "quay.example/a__b/c-d.e:v1.0_x",
            "quay.example/a__b/c-d.e",
            "quay.example/a__b/c-d.e:v1.0_x",
            "quay.example/a__b/c-d.e:v1.0_x",
        ),
        ("Upper/name", "Upper/name", "Upper/name:latest", "Upper/name:latest"),
        (f"busybox@{DIGEST}", "docker.io/library/busybox", "busybox:latest", f"busybox@{DIGEST}"),
        (f"busybox:1@{DIGEST}", "docker.io/library/busybox", "busybox:1", f"busybox:1@{DIGEST}"),
    ],
)
def test_normalizes_as_docker_does(text: str, full: str, tagged: str, familiar: str) -> None:
    reference = parse(text)
    assert (reference.full_name, reference.tagged, reference.familiar) == (full, tagged, familiar)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "@", "/", "a//b", "../a", "a/..", "./a", "a/", "/a", "a b", "a\n", "a\0b", "a:", "a:b:c", "a:-x", "a@sha256:123",
        "a@sha1:" + "b" * 40, "-a", "a-", "a..b", "a___b", "a:" + "t" * 129, "host:port/a", "é", "a:ü", "a;rm", "$(x)",
        "x" * 300, DIGEST, "f" * 64, "ho_st.example/a", "[::g]/a",
    ],
)  # fmt: skip
def test_refuses_hostile_names(text: str) -> None:
    if text == DIGEST:  # reads as the repository `sha256` with a tag, as Docker does
        assert parse(text).tag == "a" * 64
        return
    with pytest.raises(Invalid, match=r"invalid reference format|invalid repository name"):
        parse(text)


def test_upper_case_gets_its_own_sentence() -> None:
    with pytest.raises(Invalid, match=r"repository name \(library/Busybox\) must be lowercase"):
        parse("Busybox")


def test_a_name_may_not_carry_a_digest() -> None:
    with pytest.raises(Invalid, match="refusing to create a tag with a digest reference"):
        parse_name(f"a@{DIGEST}")


def test_id_prefixes() -> None:
    assert id_prefix("abc") == "abc"
    assert id_prefix("sha256:abc") == "abc"
    assert id_prefix("abcg") == id_prefix("a/b") == id_prefix("") == ""


@given(st.text(max_size=40))
def test_whatever_is_accepted_is_stable(text: str) -> None:
    try:
        reference = parse(text)
    except Invalid:
        return
    assert parse(reference.tagged).tagged == reference.tagged
    assert "/.." not in reference.full_name and "\0" not in reference.full_name
