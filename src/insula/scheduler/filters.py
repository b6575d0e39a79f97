"""Filters: which nodes can take a workload. Each is a pure function; `FILTERS` is the visible order.

The sentences are those of upstream's scheduler, because people search for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from insula.scheduler.columns import UNSCHEDULABLE, Columns, Group, Mask, Numbers
from insula.scheduler.needs import AffinityTerm, Expression, Needs, Spread, matches

Filter = Callable[[Columns, Needs], Mask]
Explain = Callable[[Columns, Needs, Mask], list[tuple[int, str]]]


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
    mask = columns.live
    for taint, where in columns.taints.items():
        repels = taint[2] in ("NoSchedule", "NoExecute") and taint != UNSCHEDULABLE
        if repels and not any(toleration.covers(*taint) for toleration in needs.tolerations):
            mask = mask & ~where
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


# --- resources --------------------------------------------------------------------------------------------------

_SENTENCES = {"pods": "Too many pods", "ephemeral": "Insufficient ephemeral-storage"}


def _amounts(needs: Needs) -> Iterator[tuple[str, int]]:
    """What is asked of each resource; a resource of which nothing is asked is left out."""
    yield "pods", 1
    named = (("cpu", needs.milli_cpu), ("memory", needs.memory), ("ephemeral", needs.ephemeral), *needs.extended)
    yield from ((name, amount) for name, amount in named if amount)


def _fits(columns: Columns, name: str, amount: int) -> Mask:
    allocatable, used = columns.amounts(name)
    mask: Mask = used + amount <= allocatable
    return mask


def resources(columns: Columns, needs: Needs) -> Mask:
    """Nodes with enough left of everything: places for pods, CPU, memory, local disk, extended resources (GPUs and the like)."""
    mask = columns.live
    for name, amount in _amounts(needs):
        mask = mask & _fits(columns, name, amount)
    return mask


def lacking(columns: Columns, needs: Needs, left: Mask) -> list[tuple[int, str]]:
    """Per resource, how many nodes have too little of it. A node may lack several."""
    found = []
    for name, amount in _amounts(needs):
        short = int((left & ~_fits(columns, name, amount)).sum())
        found.append((short, _SENTENCES.get(name, f"Insufficient {name}")))
    return found


# --- other workloads --------------------------------------------------------------------------------------------


def _selects(term: AffinityTerm, group: Group) -> bool:
    namespace, labels = group
    return (term.namespaces is None or namespace in term.namespaces) and matches(term.selector, dict(labels))


def _rows_of(columns: Columns, *terms: AffinityTerm) -> list[int]:
    """Rows with a workload that all terms match."""
    found = (rows for group, rows in columns.groups.items() if all(_selects(term, group) for term in terms))
    return sorted({row for rows in found for row in rows})


def _near(columns: Columns, topology_key: str, rows: list[int]) -> Mask:
    """Nodes that share a topology value with one of the rows."""
    labels = columns.label(topology_key)
    values = np.unique(labels[rows]) if rows else np.empty(0, np.int32)
    mask: Mask = np.isin(labels, values[values >= 0])
    return mask


def near_counts(columns: Columns, term: AffinityTerm) -> Numbers:
    """Per node, how many workloads that the term matches are in its topology domain."""
    labels = columns.label(term.topology_key)
    counts = np.zeros(int(labels.max(initial=-1)) + 2, np.int64)
    for group, rows in columns.groups.items():
        if _selects(term, group):
            for row, count in rows.items():
                counts[labels[row]] += count
    counts[-1] = 0  # where the label is absent
    per_node: Numbers = counts[labels]
    return per_node


def pod_affinity(columns: Columns, needs: Needs) -> Mask:
    """Nodes near workloads that match all terms. The first of a group, which only matches itself, may go anywhere where the
    topologies are known."""
    mask = columns.live
    if not needs.affinity:
        return mask
    rows = _rows_of(columns, *needs.affinity)
    first = not rows and all(_selects(term, (needs.namespace, needs.labels)) for term in needs.affinity)
    for term in needs.affinity:
        where = columns.label(term.topology_key) >= 0 if first else _near(columns, term.topology_key, rows)
        mask = mask & where
    return mask


def pod_anti_affinity(columns: Columns, needs: Needs) -> Mask:
    """Nodes away from what this one must not be near, and from what must not be near this one."""
    mask = columns.live
    for term in needs.anti_affinity:
        mask = mask & ~_near(columns, term.topology_key, _rows_of(columns, term))
    for term, rows in columns.repelling.items():
        if _selects(term, (needs.namespace, needs.labels)):
            mask = mask & ~_near(columns, term.topology_key, list(rows))
    return mask


def topology_spread(columns: Columns, needs: Needs) -> Mask:
    """Nodes where one more keeps every hard spread constraint. Nodes that lack a topology label do not count."""
    mask = columns.live
    hard = [constraint for constraint in needs.spread if constraint.hard]
    for constraint in hard:
        mask = mask & (columns.label(constraint.topology_key) >= 0)
    keyed = mask
    for constraint in hard:
        labels, eligible = columns.label(constraint.topology_key), keyed & eligible_for(columns, needs, constraint)
        counts = spread_counts(columns, needs.namespace, constraint.topology_key, constraint.selector, eligible)
        domains = np.unique(labels[eligible])
        enough = len(domains) and len(domains) >= constraint.min_domains
        least = int(counts[domains].min()) if enough else 0
        itself = int(matches(constraint.selector, dict(needs.labels)))
        mask = mask & (counts[labels] + itself - least <= constraint.max_skew)
    return mask


def eligible_for(columns: Columns, needs: Needs, constraint: Spread) -> Mask:
    """The nodes whose workloads a constraint counts."""
    mask = columns.live
    if constraint.honor_affinity:
        mask = mask & node_affinity(columns, needs)
    if constraint.honor_taints:
        mask = mask & taints(columns, needs) & cordoned(columns, needs)
    return mask


def spread_counts(
    columns: Columns, namespace: str, topology_key: str, selector: tuple[Expression, ...], eligible: Mask
) -> Numbers:
    """How many matching workloads of a namespace each topology value has on eligible nodes, by value number; the last entry is
    for nodes without the label."""
    labels = columns.label(topology_key)
    counts = np.zeros(int(labels.max(initial=-1)) + 2, np.int64)
    for (where, words), rows in columns.groups.items():
        if where == namespace and matches(selector, dict(words)):
            for row, count in rows.items():
                if eligible[row] and labels[row] >= 0:
                    counts[labels[row]] += count
    return counts


def _says(accepts: Filter, sentence: str) -> tuple[Filter, Explain]:
    def explain(columns: Columns, needs: Needs, left: Mask) -> list[tuple[int, str]]:
        return [(int((left & ~accepts(columns, needs)).sum()), sentence)]

    return accepts, explain


FILTERS: tuple[tuple[Filter, Explain], ...] = (
    _says(node_name, "node(s) didn't match the requested node name"),
    _says(cordoned, "node(s) were unschedulable"),
    _says(taints, "node(s) had untolerated taint(s)"),
    _says(node_affinity, "node(s) didn't match Pod's node affinity/selector"),
    _says(host_ports, "node(s) didn't have free ports for the requested pod ports"),
    (resources, lacking),
    _says(pod_affinity, "node(s) didn't match pod affinity rules"),
    _says(pod_anti_affinity, "node(s) didn't match pod anti-affinity rules"),
    _says(topology_spread, "node(s) didn't match pod topology spread constraints"),
)
