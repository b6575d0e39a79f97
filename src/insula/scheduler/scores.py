"""Scores: how good a node is for a workload, 0 to 100 points each. Each is a pure function; `SCORES` carries the weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from insula.scheduler.columns import Columns, Mask
from insula.scheduler.filters import eligible_for, near_counts, spread_counts
from insula.scheduler.needs import Needs

Points = NDArray[np.float64]
Score = Callable[[Columns, Needs, Mask], Points | None]
MIN_IMAGE, MAX_IMAGE = 23 * 1024 * 1024, 1000 * 1024 * 1024


def _used_fractions(columns: Columns, needs: Needs) -> tuple[Points, Points]:
    parts = []
    for name, more in (("cpu", needs.score_milli_cpu), ("memory", needs.score_memory)):
        allocatable = np.maximum(columns.allocatable[name], 1)
        parts.append(np.minimum((columns.scored[name] + more) / allocatable, 1.0))
    return parts[0], parts[1]


def resources(columns: Columns, needs: Needs, _: Mask) -> Points:
    """Half for how much stays free (least allocated), half for CPU and memory being used evenly (balanced allocation)."""
    cpu, memory = _used_fractions(columns, needs)
    free: Points = (2.0 - cpu - memory) * 25
    balance: Points = (1.0 - np.abs(cpu - memory) / 2) * 50
    return free + balance


def preferred_nodes(columns: Columns, needs: Needs, mask: Mask) -> Points | None:
    """Preferred node affinity."""
    if not needs.preferred:
        return None
    points = np.zeros(len(mask))
    for weight, term in needs.preferred:
        points += weight * columns.where(term)
    return _normal(points, mask)


def soft_taints(columns: Columns, needs: Needs, mask: Mask) -> Points | None:
    """Fewer PreferNoSchedule taints are better."""
    counts = np.zeros(len(mask))
    seen = False
    for taint, where in columns.taints.items():
        if taint[2] == "PreferNoSchedule" and not any(t.covers(*taint) for t in needs.tolerations):
            counts += where
            seen = True
    return 100 - _normal(counts, mask) if seen else None


def near_and_far(columns: Columns, needs: Needs, mask: Mask) -> Points | None:
    """Preferred pod affinity and anti-affinity."""
    if not needs.preferred_affinity:
        return None
    points = np.zeros(len(mask))
    for term in needs.preferred_affinity:
        points += term.weight * near_counts(columns, term)
    return _normal(points - points[mask].min(), mask)


def spread(columns: Columns, needs: Needs, mask: Mask) -> Points | None:
    """Soft spread constraints: domains with fewer matching workloads are better, nodes outside of every domain worst."""
    soft = [constraint for constraint in needs.spread if not constraint.hard]
    if not soft:
        return None
    counts = np.zeros(len(mask))
    for constraint in soft:
        key, eligible = constraint.topology_key, eligible_for(columns, needs, constraint)
        per_value = spread_counts(columns, needs.namespace, key, constraint.selector, eligible)
        labels = columns.label(key)
        counts += np.where(labels >= 0, per_value[labels], int(per_value.sum()) + 1)
    return 100 - _normal(counts, mask)


def image_locality(columns: Columns, needs: Needs, mask: Mask) -> Points | None:
    """Nodes that already have the images, weighted by their size. An image that few nodes have counts for less, so that one
    node does not draw everything to itself."""
    total = np.zeros(len(mask))
    nodes = max(int(columns.live.sum()), 1)
    for image in needs.images:
        column = columns.image_bytes(image)
        if column is not None:
            total += column * (np.count_nonzero(column) / nodes)
    if not total.any():
        return None
    most = MAX_IMAGE * max(len(needs.images), 1)
    points: Points = (np.clip(total, MIN_IMAGE, most) - MIN_IMAGE) * 100 / (most - MIN_IMAGE)
    return points


def _normal(points: Points, mask: Mask) -> Points:
    top = points[mask].max(initial=0)
    result: Points = points * 100 / top if top > 0 else points * 0
    return result


SCORES: tuple[tuple[Score, int], ...] = (
    (resources, 2),
    (preferred_nodes, 2),
    (soft_taints, 3),
    (near_and_far, 2),
    (spread, 2),
    (image_locality, 1),
)
