"""Variables, quotes and patterns of Dockerfiles."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.errors import Invalid
from insula.images.dockerfile.globs import Glob
from insula.images.dockerfile.ignore import Matcher, read_patterns
from insula.images.dockerfile.words import expand, expand_text, expand_words

VARIABLES = {"a": "x y", "v": "foobarbar", "empty": "", "n": "1", "path": "/usr/local/bin"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("$a", "x y"),
        ("${a}z", "x yz"),
        ("$az", ""),
        ("${unset:-d}", "d"),
        ("${empty:-d}", "d"),
        ("${empty-d}", ""),
        ("${a:+b}", "b"),
        ("${unset+b}", ""),
        ("${empty+b}", "b"),
        ("${empty:+b}", ""),
        ("${unset:-${a}}", "x y"),
        ("${unset:-${unset:-$n}}", "1"),
        ("${v#foo}", "barbar"),
        ("${v#*b}", "arbar"),
        ("${v##*b}", "ar"),
        ("${v%bar}", "foobar"),
        ("${v%b*}", "foobar"),
        ("${v%%b*}", "foo"),
        ("${v#nope}", "foobarbar"),
        ("${v/bar/X}", "fooXbar"),
        ("${v//bar/X}", "fooXX"),
        ("${v/b?r/}", "foobar"),
        ("${path##*/}", "bin"),
        ("'$a'", "$a"),
        ('"$a"', "x y"),
        ("\\$a", "$a"),
        ('"\\$a \\" \\n"', '$a " \\n'),
        ("a\\ b", "a b"),
        ("$", "$"),
        ("a$", "a$"),
        ("$1", ""),
        ("", ""),
        ("''\"\"", ""),
        ("${a:?no}", "x y"),
    ],
)
def test_expands(text: str, value: str) -> None:
    assert expand(text, VARIABLES) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("${a", "missing '}'"),
        ("${}", "bad substitution"),
        ("${:x}", "bad substitution"),
        ("${a!b}", "unsupported modifier (!)"),
        ("${a:#b}", "unsupported modifier (:#)"),
        ("${unset:?needed}", "unset: needed"),
        ("${unset?}", "is not allowed to be unset"),
        ("'a", "single-quote"),
        ('"a', "double-quote"),
        ('"a\\', "double-quote"),
        ("${a:-" * 60 + "}" * 60, "nested too deep"),
    ],
)
def test_refuses(text: str, sentence: str) -> None:
    with pytest.raises(Invalid, match=re.escape(sentence)):
        expand(text, VARIABLES)


def test_another_escape_character() -> None:
    assert expand("a` b`$n\\n", VARIABLES, escape="`") == "a b$n\\n"


def test_words() -> None:
    assert expand_words('$a "$a" z', VARIABLES) == ["x", "y", "x y", "z"]
    assert expand_words("$empty", VARIABLES) == []
    assert expand_words('""', VARIABLES) == [""]
    assert expand_words("80 $n", VARIABLES) == ["80", "1"]


def test_a_here_document_keeps_quotes() -> None:
    assert expand_text("\"$n\" '$n' \\$n \\n", VARIABLES) == "\"1\" '1' $n \\n"


@given(st.text(max_size=40))
def test_never_fails_otherwise(text: str) -> None:
    try:
        expand(text, VARIABLES)
        expand_words(text, VARIABLES)
    except Invalid:
        pass


@given(st.text(alphabet="abc$ {}'\"", max_size=30))
def test_quoting_protects(text: str) -> None:
    quoted = "'" + text.replace("'", "") + "'"
    assert expand(quoted, VARIABLES) == text.replace("'", "")


def test_hostile_patterns_take_no_time() -> None:
    began = time.monotonic()
    value = {"v": "a" * 4000}
    assert expand("${v#" + "*a" * 200 + "b}", value) == value["v"]
    assert expand("${v//" + "*a" * 5 + "b/x}", value) == value["v"]
    assert not Glob("*a" * 200 + "b").matches("a" * 4000)
    assert not Glob("**/" * 200 + "b").matches("a/" * 2000)
    assert time.monotonic() - began < 5
    with pytest.raises(Invalid, match="longer than"):
        expand("${v/a/b}", {"v": "a" * 5000})


# --- patterns of paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.go", "a.go", True),
        ("*.go", "x/a.go", False),
        ("**/*.go", "x/y/a.go", True),
        ("**/*.go", "a.go", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("a**c", "a/b/c", True),
        ("**", "x/y", True),
        ("a/*/c", "a/b/c", True),
        ("a/*/c", "a/b/b/c", False),
        ("[a-c]?", "bz", True),
        ("[a-c]?", "b/", False),
        ("[^a]x", "bx", True),
        ("[^a]x", "ax", False),
        ("[]a]", "]", False),
        ("a\\*b", "a*b", True),
        ("a\\*b", "axb", False),
        ("plain", "plain", True),
        ("ümläut*", "ümläuts", True),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    if pattern == "[]a]":
        with pytest.raises(Invalid):
            Glob("[]")
        return
    assert Glob(pattern).matches(path) is matches


@pytest.mark.parametrize("pattern", ["[", "[a", "[a-", "[^", "[\\"])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(Invalid, match="syntax error in pattern"):
        Glob(pattern)


@pytest.mark.parametrize(
    ("text", "path", "out"),
    [
        ("*.txt", "a.txt", True),
        ("*.txt", "sub/a.txt", False),
        ("**/*.txt", "sub/a.txt", True),
        ("sub", "sub/deep/a", True),
        ("/sub/", "sub/a", True),
        ("./sub/../other", "other/x", True),
        ("# comment\n\n a \n", "a", True),
        ("*\n!keep", "keep", False),
        ("*\n!keep", "keep/inner", False),
        ("*\n!keep\nkeep/secret", "keep/secret", True),
        ("sub\n!sub/keep", "sub/keep", False),
        ("sub\n!sub/keep", "sub/other", True),
        ("!a", "a", False),
    ],
)
def test_dockerignore(text: str, path: str, out: bool) -> None:
    assert Matcher(read_patterns(text)).ignores(path) is out


def test_dockerignore_refuses() -> None:
    with pytest.raises(Invalid, match="illegal exclusion"):
        read_patterns("!")
    with pytest.raises(Invalid, match="more than"):
        read_patterns("a\n" * 10_001)
