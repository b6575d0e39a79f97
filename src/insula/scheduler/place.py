"""One decision: filter all nodes, score all that are left, choose the best. Pure; the first row wins a tie."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from insula.scheduler.columns import Columns, Mask
from insula.scheduler.filters import FILTERS
from insula.scheduler.needs import Needs
from insula.scheduler.scores import SCORES


class Placement(Struct, frozen=True):
    """The node chosen, or why there is none, in upstream's words (`0/3 nodes are available: ...`)."""

    node: str = ""
    row: int = -1
    reason: str = ""


def place(columns: Columns, needs: Needs) -> Placement:
    """Choose a node for a workload among all."""
    mask = columns.live
    for accepts, _ in FILTERS:
        mask = mask & accepts(columns, needs)
    if not mask.any():
        return Placement(reason=explain(columns, needs))
    row = _best(columns, needs, mask)
    return Placement(columns.names[row], row)


def _best(columns: Columns, needs: Needs, mask: Mask) -> int:
    points = np.zeros(len(mask))
    for score, weight in SCORES:
        part = score(columns, needs, mask)
        if part is not None:
            points += weight * part
    points[~mask] = -1
    return int(points.argmax())


def explain(columns: Columns, needs: Needs) -> str:
    """Say per reason how many nodes it refused, each node counted at the first filter that refuses it."""
    left = columns.live
    total = int(left.sum())
    if not total:
        return "no nodes available to schedule pods"
    refusals = []
    for accepts, says in FILTERS:
        kept = left & accepts(columns, needs)
        if (left & ~kept).any():
            refusals += [f"{count} {sentence}" for count, sentence in says(columns, needs, left) if count]
        left = kept
    return f"0/{total} nodes are available: {', '.join(sorted(refusals))}."
