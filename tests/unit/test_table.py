"""Tables: where Name and Age stand, how ages are written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from insula.api.kube.table import Layout, human_duration, table
from insula.kinds.kind import Column, Kind
from insula.kinds.printing import Since, Span
from insula.model.resource import Ref

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KIND = Kind(ref=Ref("example.com", "v1", "things"), kind="Thing", singular="thing", namespaced=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (599, "9m59s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 61, "3h1m"),
        (8 * 3600, "8h"),
        (48 * 3600 - 1, "47h"),
        (48 * 3600, "2d"),
        (50 * 3600, "2d2h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (730 * 86400, "2y"),
        (800 * 86400, "2y70d"),
        (3000 * 86400, "8y"),
    ],
)
def test_ages_are_written_as_kubectl_does(seconds: int, text: str) -> None:
    assert human_duration(seconds) == text


def _thing(**more: object) -> dict[str, object]:
    return {"metadata": {"name": "x", "creationTimestamp": "2026-01-02T03:03:05Z"}, **more}


def test_name_and_age_are_added() -> None:
    kind = replace(
        KIND,
        columns=(Column(name="Size", type="integer"), Column(name="Where", priority=1)),
        row=lambda obj: (obj["size"], "there"),
    )
    made = table(Layout(kind), [_thing(size=3)], NOW)
    assert [each["name"] for each in made["columnDefinitions"]] == ["Name", "Size", "Age", "Where"]
    assert made["rows"][0]["cells"] == ["x", 3, "60s", "there"]
    assert made["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


def test_cells_with_time() -> None:
    kind = replace(
        KIND,
        columns=(
            Column(name="When", type="date"),
            Column(name="Restarts"),
            Column(name="Never"),
            Column(name="Took"),
            Column(name="Runs"),
        ),
        row=lambda obj: (
            "2026-01-02T01:04:05Z",
            Since("2026-01-02T03:04:00Z", "3 ({} ago)"),
            Since("", never="<none>"),
            Span("2026-01-02T03:00:00Z", "2026-01-02T03:00:09Z"),
            Span("2026-01-02T03:04:04Z"),
        ),
    )
    made = table(Layout(kind), [_thing()], NOW + timedelta(0))
    assert made["rows"][0]["cells"] == ["x", "120m", "3 (5s ago)", "<none>", "9s", "1s", "60s"]


def test_how_much_of_the_object_comes_along() -> None:
    layout = Layout(KIND)
    assert "object" not in table(layout, [_thing()], NOW, include="None")["rows"][0]
    assert table(layout, [_thing(spec=1)], NOW, include="Object")["rows"][0]["object"]["spec"] == 1
    assert table(layout, [_thing()], NOW, headings=False)["columnDefinitions"] == []


def test_a_broken_time_is_unknown() -> None:
    assert table(Layout(KIND), [{"metadata": {"name": "x", "creationTimestamp": "?"}}], NOW)["rows"][0]["cells"] == [
        "x",
        "<unknown>",
    ]
