"""One decision: filter all nodes, score all that are left, choose the best. Pure; ties go to the emptiest row order."""

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
    mask = columns.live.copy()
    for accepts, _ in FILTERS:
        mask &= accepts(columns, needs)
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
    """Say per filter how many nodes it refused, each node counted at its first refusal."""
    left = columns.live.copy()
    total = int(left.sum())
    refusals = []
    for accepts, sentence in FILTERS:
        kept = left & accepts(columns, needs)
        refused = int(left.sum() - kept.sum())
        if refused:
            refusals.append(f"{refused} {sentence}")
        left = kept
    detail = ", ".join(refusals) if refusals else "no nodes registered"
    return f"0/{total} nodes are available: {detail}."
