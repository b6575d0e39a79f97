"""Label and field selectors: what they match, and what is no selector."""

from __future__ import annotations

import pytest

from insula.errors import Invalid
from insula.model.selector import from_object, label_name_fault, label_value_fault, parse_fields, parse_labels

LABELS = {"app": "web", "tier": "front", "n": "5", "example.com/x": ""}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("app=web", True),
        ("app==web,tier=front", True),
        ("app=db", False),
        ("app!=db", True),
        ("missing!=db", True),
        ("app in (web, db)", True),
        ("app notin (web,db)", False),
        ("missing notin (web)", True),
        ("app", True),
        ("missing", False),
        ("!missing", True),
        ("! app", False),
        ("n>4", True),
        ("n > 5", False),
        ("n<6,n>1", True),
        ("app>1", False),
        ("example.com/x=", True),
        ("example.com/x", True),
        ("app=web,", None),
        ("in=in", False),
        ("notin", False),
        ("  app  =  web  ", True),
        ("a==,b=", False),
    ],
)
def test_labels(text: str, matches: bool | None) -> None:
    if matches is None:
        with pytest.raises(Invalid):
            parse_labels(text)
    else:
        assert parse_labels(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    "text",
    [
        "=x",
        "app=(x)",
        "app in x",
        "app in (x",
        "a b",
        "app=we b",
        "x>y",
        "-a",
        "a/b/c",
        "app=-x",
        "app=$",
        "a=b=c",
        "(",
        "!",
    ],
)
def test_no_selectors(text: str) -> None:
    with pytest.raises(Invalid):
        parse_labels(text)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("metadata.name=a", True),
        ("metadata.name!=a", False),
        ("metadata.name==a,status.phase=Running", True),
        ("spec.nodeName=", True),
        ("spec.nodeName!=x", True),
        (r"note=a\,b\=c", True),
        ("", True),
    ],
)
def test_fields(text: str, matches: bool) -> None:
    fields = {"metadata.name": "a", "status.phase": "Running", "note": "a,b=c"}
    assert parse_fields(text).matches(fields) is matches


def test_no_field_selectors() -> None:
    with pytest.raises(Invalid):
        parse_fields("metadata.name")
    assert parse_fields("metadata.name=x").exact("metadata.name") == "x"
    assert parse_fields("metadata.name!=x").exact("metadata.name") is None


def test_selectors_of_objects() -> None:
    assert from_object(None) is None
    everything = from_object({})
    assert everything is not None and everything.matches({})
    found = from_object({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]})
    assert found is not None and found.matches({"app": "web"}) and not found.matches({"app": "web", "x": "1"})
    with pytest.raises(Invalid):
        from_object({"matchExpressions": [{"key": "x", "operator": "Sings"}]})


def test_names_and_values() -> None:
    assert label_name_fault("app.kubernetes.io/name") is None
    for bad in ("", "/x", "a/", "A.com/x", "x" * 64, "a b", "é"):
        assert label_name_fault(bad), bad
    assert label_value_fault("") is None and label_value_fault("a_b.C-1") is None
    for bad in ("-a", "a b", "x" * 64, "a\n"):
        assert label_value_fault(bad), bad
