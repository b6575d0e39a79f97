"""Filters: which nodes can take a workload. Each is a pure function; `FILTERS` is the visible order.

The sentences are those of upstream's scheduler, because people search for them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from insula.scheduler.columns import UNSCHEDULABLE, Columns, Mask
from insula.scheduler.needs import AffinityTerm, Needs, matches

Filter = Callable[[Columns, Needs], Mask]


def node_name(columns: Columns, needs: Needs) -> Mask:
    """The node that the workload names, if it names one."""
    if not needs.node_name:
        return columns.live
    mask = np.zeros(len(columns.live), bool)
    if needs.node_name in columns.rows:
        mask[columns.rows[needs.node_name]] = True
    return mask


def cordoned(columns: Columns, needs: Needs) -> Mask:
    """Nodes that take new workloads at all."""
    mask = columns.taints.get(UNSCHEDULABLE)
    if mask is None or any(t.covers(*UNSCHEDULABLE) for t in needs.tolerations):
        return columns.live
    return ~mask


def taints(columns: Columns, needs: Needs) -> Mask:
    """Nodes without a taint that is not tolerated."""
    mask = columns.live.copy()
    for taint, where in columns.taints.items():
        repels = taint[2] in ("NoSchedule", "NoExecute") and taint != UNSCHEDULABLE
        if repels and not any(toleration.covers(*taint) for toleration in needs.tolerations):
            mask &= ~where
    return mask


def node_affinity(columns: Columns, needs: Needs) -> Mask:
    """Nodes that meet nodeSelector and required node affinity."""
    mask = columns.where(needs.selector) if needs.selector else columns.live
    if needs.any_of:
        terms = np.zeros(len(columns.live), bool)
        for term in needs.any_of:
            terms |= columns.where(term)
        mask = mask & terms
    return mask


def host_ports(columns: Columns, needs: Needs) -> Mask:
    """Nodes where the host ports are free."""
    mask = columns.live
    for port in needs.ports:
        mask = mask & ~columns.taken_port(*port)
    return mask


def _fits(name: str, amount: int) -> Filter:
    def fits(columns: Columns, needs: Needs) -> Mask:
        allocatable, used = columns.amounts(name)
        mask: Mask = used + amount <= allocatable
        return mask

    return fits


def pods(columns: Columns, needs: Needs) -> Mask:
    """Nodes that may take one more."""
    return _fits("pods", 1)(columns, needs)


def cpu(columns: Columns, needs: Needs) -> Mask:
    """Nodes with enough CPU left."""
    return _fits("cpu", needs.milli_cpu)(columns, needs) if needs.milli_cpu else columns.live


def memory(columns: Columns, needs: Needs) -> Mask:
    """Nodes with enough memory left."""
    return _fits("memory", needs.memory)(columns, needs) if needs.memory else columns.live


def ephemeral(columns: Columns, needs: Needs) -> Mask:
    """Nodes with enough local disk left."""
    return _fits("ephemeral", needs.ephemeral)(columns, needs) if needs.ephemeral else columns.live


def extended(columns: Columns, needs: Needs) -> Mask:
    """Nodes with enough of every extended resource (GPUs and the like)."""
    mask = columns.live
    for name, amount in needs.extended:
        mask = mask & _fits(name, amount)(columns, needs)
    return mask


def nodes_near(columns: Columns, term: AffinityTerm) -> Mask:
    """Nodes that share a topology value with a placed workload that the term matches."""
    labels = columns.label(term.topology_key)
    rows = [
        row
        for row, other in columns.placed.values()
        if other.namespace in term.namespaces and matches(term.selector, dict(other.labels))
    ]
    values = np.unique(labels[rows]) if rows else np.empty(0, np.int32)
    mask: Mask = np.isin(labels, values[values >= 0])
    return mask


def _matches_itself(term: AffinityTerm, needs: Needs) -> bool:
    return needs.namespace in term.namespaces and matches(term.selector, dict(needs.labels))


def pod_affinity(columns: Columns, needs: Needs) -> Mask:
    """Nodes near the workloads that this one must be near. The first of a group, which only matches itself, may go anywhere."""
    mask = columns.live
    for term in needs.affinity:
        near = nodes_near(columns, term)
        if not near.any() and _matches_itself(term, needs):
            near = columns.label(term.topology_key) >= 0
        mask = mask & near
    return mask


def pod_anti_affinity(columns: Columns, needs: Needs) -> Mask:
    """Nodes away from what this one must not be near, and from what must not be near this one."""
    mask = columns.live
    for term in needs.anti_affinity:
        mask = mask & ~nodes_near(columns, term)
    for uid in columns.repelling:
        row, other = columns.placed[uid]
        for term in other.anti_affinity:
            if _matches_itself(term, needs):
                labels = columns.label(term.topology_key)
                mask = mask & ~((labels == labels[row]) & (labels >= 0))
    return mask


def topology_spread(columns: Columns, needs: Needs) -> Mask:
    """Nodes where one more keeps every hard spread constraint."""
    mask = columns.live
    for constraint in needs.spread:
        if constraint.hard:
            labels = columns.label(constraint.topology_key)
            counts = spread_counts(columns, needs, constraint.topology_key, constraint.selector)
            domains = labels[columns.live & (labels >= 0) & node_affinity(columns, needs)]
            least = int(counts[np.unique(domains)].min()) if len(domains) else 0
            mask = mask & (labels >= 0) & (counts[labels] + 1 - least <= constraint.max_skew)
    return mask


def spread_counts(columns: Columns, needs: Needs, topology_key: str, selector: tuple) -> np.ndarray:  # type: ignore[type-arg]
    """How many matching workloads of the same namespace each topology value has, by value number."""
    labels = columns.label(topology_key)
    counts = np.zeros(max(int(labels.max(initial=-1)) + 1, 1) + 1, np.int64)
    for row, other in columns.placed.values():
        if labels[row] >= 0 and other.namespace == needs.namespace and matches(selector, dict(other.labels)):
            counts[labels[row]] += 1
    return counts


FILTERS: tuple[tuple[Filter, str], ...] = (
    (node_name, "node(s) didn't match the requested node name"),
    (cordoned, "node(s) were unschedulable"),
    (taints, "node(s) had untolerated taint(s)"),
    (node_affinity, "node(s) didn't match Pod's node affinity/selector"),
    (host_ports, "node(s) didn't have free ports for the requested pod ports"),
    (pods, "Too many pods"),
    (cpu, "Insufficient cpu"),
    (memory, "Insufficient memory"),
    (ephemeral, "Insufficient ephemeral-storage"),
    (extended, "Insufficient extended resources"),
    (pod_affinity, "node(s) didn't match pod affinity rules"),
    (pod_anti_affinity, "node(s) didn't match pod anti-affinity rules"),
    (topology_spread, "node(s) didn't match pod topology spread constraints"),
)
