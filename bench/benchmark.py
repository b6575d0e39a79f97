"""What a benchmark is, what it yields, and how a result is judged. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from bench.context import Context


class Summary(Struct, frozen=True):
    """Repeated measurements of one quantity: the median, the 90th percentile and how many there were."""

    p50: float
    p90: float
    count: int


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` (0 to 1) of all values do not exceed. Raises ValueError for no values."""
    if not values:
        raise ValueError("a percentile needs at least one value")
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def summary(values: Sequence[float]) -> Summary:
    """Sum up measurements. Raises ValueError for none."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    p50 = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2 if ordered else math.nan
    return Summary(p50=p50, p90=percentile(ordered, 0.9), count=len(ordered))


class Budget(Struct, frozen=True):
    """What the median has to be: `at most` or `at least` a limit, itself or as a multiple (`times`) of the peer's."""

    sense: Literal["at most", "at least"]
    limit: float
    times: bool = False

    def __str__(self) -> str:
        sign = "≤" if self.sense == "at most" else "≥"
        return f"{sign} {self.limit:g} × peer" if self.times else f"{sign} {self.limit:g}"

    def met(self, ours: float, peers: float | None) -> bool | None:
        """Whether it is kept; None where that needs a peer that is absent."""
        if self.times and peers is None:
            return None
        limit = self.limit * peers if self.times and peers is not None else self.limit
        return ours <= limit if self.sense == "at most" else ours >= limit


class Row(Struct, frozen=True, kw_only=True):
    """One line of the result. `peer` is empty where there is nothing to compare with; `absent` says which peer is missing."""

    what: str
    unit: str
    insula: Summary
    peer: Summary | None = None
    peer_name: str = ""
    absent: str = ""
    budgets: tuple[Budget, ...] = ()
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Insula's median as a multiple of the peer's."""
        return self.insula.p50 / self.peer.p50 if self.peer and self.peer.p50 else None

    @property
    def met(self) -> bool | None:
        """Whether all budgets are kept; None without a budget, or where one could not be judged and none is missed."""
        peers = self.peer.p50 if self.peer else None
        verdicts = [budget.met(self.insula.p50, peers) for budget in self.budgets]
        if False in verdicts:
            return False
        return None if not verdicts or None in verdicts else True


class Benchmark(Struct, frozen=True):
    """One file of `suite/`. `run` measures and returns rows; it stops what it starts."""

    name: str
    about: str
    run: Callable[[Context], list[Row]]


AT_MOST: Literal["at most"] = "at most"
AT_LEAST: Literal["at least"] = "at least"
