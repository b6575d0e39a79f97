"""When the rules of the host are read by a child process first: after changes that were not ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from insula.errors import Unavailable
from insula.host import nft


class Watched(nft.Nft):
    """Without the library; the kernel's numbers come from a list, whose last one stays."""

    def __init__(self, numbers: list[int | None]) -> None:
        self._seen = None
        self._numbers = numbers

    def _generation(self) -> int | None:
        return self._numbers.pop(0) if len(self._numbers) > 1 else self._numbers[0]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    made: list[None] = []
    monkeypatch.setattr(nft, "_check_readable", lambda: made.append(None))
    yield made


@pytest.mark.parametrize(
    ("numbers", "checked"),
    [
        ([7], 1),  # new to us
        ([7, 8], 2),  # changed while it was checked
        ([7, 8, 9], 3),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 5),  # somebody never stops
        ([None], 1),  # the kernel does not tell
    ],
)
def test_what_changes_during_the_check_is_checked_again(
    checks: list[None], numbers: list[int | None], checked: int
) -> None:
    watched = Watched(numbers)
    watched._checked()
    assert len(checks) == checked


def test_what_is_known_is_not_checked(checks: list[None]) -> None:
    watched = Watched([7])
    assert watched._checked() == watched._checked() == 7
    assert len(checks) == 1


def test_what_cannot_be_read_is_asked_again_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise Unavailable("newer")

    monkeypatch.setattr(nft, "_check_readable", refuse)
    watched = Watched([7])
    for _ in range(2):
        with pytest.raises(Unavailable):
            watched._checked()
