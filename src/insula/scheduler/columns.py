"""All nodes as numpy columns, so that one decision over 5,000 nodes is a handful of vector operations.

A row is a node. Rows of removed nodes are reused. Labels are kept as one integer column per label key (the value's number,
-1 for absent), taints as one boolean column per distinct taint.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.model.quantity import parse_quantity
from insula.model.resource import Resource
from insula.scheduler.needs import AffinityTerm, Expression, Needs

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]
Group = tuple[str, tuple[tuple[str, str], ...]]  # namespace and labels: what selectors see of a workload
_WHOLE = re.compile(r"[-+]?[0-9]{1,19}\Z", re.ASCII)
UNSCHEDULABLE = ("node.kubernetes.io/unschedulable", "", "NoSchedule")


class Columns:
    """The scheduler's view of the nodes and of what is placed on them. Not shared between tasks."""

    def __init__(self, capacity: int = 64) -> None:
        self.rows: dict[str, int] = {}
        self.names: list[str] = [""] * capacity
        self._free = list(range(capacity - 1, -1, -1))
        self.live: Mask = np.zeros(capacity, bool)
        self.allocatable: dict[str, Numbers] = {
            n: np.zeros(capacity, np.int64) for n in ("cpu", "memory", "ephemeral", "pods")
        }
        self.used: dict[str, Numbers] = {
            n: np.zeros(capacity, np.int64) for n in ("cpu", "memory", "ephemeral", "pods")
        }
        self.scored: dict[str, Numbers] = {n: np.zeros(capacity, np.int64) for n in ("cpu", "memory")}
        self.taints: dict[tuple[str, str, str], Mask] = {}
        self._labels: dict[str, NDArray[np.int32]] = {}
        self._values: dict[str, dict[str, int]] = {}
        self._ports: dict[tuple[str, str, int], Numbers] = {}
        self._images: dict[str, Numbers] = {}
        self.placed: dict[str, tuple[int, Needs]] = {}  # workload uid -> row, needs
        self.groups: dict[Group, Counter[int]] = {}  # how many workloads of each group sit on which rows
        self.repelling: dict[AffinityTerm, Counter[int]] = {}  # required anti-affinity of what is placed, by row

    # nodes

    def set_node(self, node: Resource) -> int:
        """Add or change a node."""
        name = node["metadata"]["name"]
        row = self.rows.get(name)
        if row is None:
            if not self._free:
                self._grow()
            row = self.rows[name] = self._free.pop()
            self.names[row] = name
            self.live[row] = True
        self._set_amounts(row, (node.get("status") or {}).get("allocatable") or {})
        self._set_labels(row, {"metadata.name": name, **(node["metadata"].get("labels") or {})})
        self._set_taints(row, node.get("spec") or {})
        self._set_images(row, (node.get("status") or {}).get("images") or ())
        return row

    def remove_node(self, name: str) -> None:
        """Forget a node; what was placed there is forgotten when its own removal is seen."""
        row = self.rows.pop(name, None)
        if row is None:
            return
        self.live[row] = False
        self.names[row] = ""
        for uid in [uid for uid, (where, _) in self.placed.items() if where == row]:
            self.take_away(uid)
        for column in (*self.allocatable.values(), *self.used.values(), *self.scored.values(), *self._images.values()):
            column[row] = 0
        for values in self._labels.values():
            values[row] = -1
        for mask in self.taints.values():
            mask[row] = False
        self._free.append(row)

    def _set_amounts(self, row: int, allocatable: dict[str, Any]) -> None:
        for column in self.allocatable.values():
            column[row] = 0
        for name, value in allocatable.items():
            key = {"ephemeral-storage": "ephemeral"}.get(name, name)
            amount = parse_quantity(value)
            self._numbers(self.allocatable, key)[row] = int(amount * 1000) if name == "cpu" else int(amount)

    def _set_labels(self, row: int, labels: dict[str, str]) -> None:
        for key in labels:
            if key not in self._labels:
                self._labels[key] = np.full(len(self.live), -1, np.int32)
                self._values[key] = {}
        for key, column in self._labels.items():
            value = labels.get(key)
            numbers = self._values[key]
            column[row] = -1 if value is None else numbers.setdefault(value, len(numbers))

    def _set_taints(self, row: int, spec: dict[str, Any]) -> None:
        present = {(t["key"], t.get("value", ""), t["effect"]) for t in spec.get("taints") or ()}
        if spec.get("unschedulable"):
            present.add(UNSCHEDULABLE)
        for taint in present:
            if taint not in self.taints:
                self.taints[taint] = np.zeros(len(self.live), bool)
        for taint, mask in self.taints.items():
            mask[row] = taint in present

    def _set_images(self, row: int, images: Any) -> None:
        for column in self._images.values():
            column[row] = 0
        for image in images:
            for name in image.get("names") or ():
                self._numbers(self._images, name)[row] = int(image.get("sizeBytes", 0))

    # workloads

    def put(self, uid: str, row: int, needs: Needs) -> None:
        """Count a workload on a node. Repeating it moves it."""
        if self.placed.get(uid) == (row, needs):
            return
        self.take_away(uid)
        self.placed[uid] = (row, needs)
        self._count(row, needs, 1)

    def take_away(self, uid: str) -> None:
        """Stop counting a workload."""
        found = self.placed.pop(uid, None)
        if found is not None:
            self._count(*found, -1)

    def _count(self, row: int, needs: Needs, sign: int) -> None:
        amounts = {"cpu": needs.milli_cpu, "memory": needs.memory, "ephemeral": needs.ephemeral, "pods": 1}
        for name, amount in (*amounts.items(), *needs.extended):
            self._numbers(self.used, name)[row] += sign * amount
        self.scored["cpu"][row] += sign * needs.score_milli_cpu
        self.scored["memory"][row] += sign * needs.score_memory
        for port in needs.ports:
            self._numbers(self._ports, port)[row] += sign
        _tally(self.groups, (needs.namespace, needs.labels), row, sign)
        for term in needs.anti_affinity:
            _tally(self.repelling, term, row, sign)

    # reading

    def amounts(self, name: str) -> tuple[Numbers, Numbers]:
        """(allocatable, used) of a resource; zeros for one that no node has."""
        return self._numbers(self.allocatable, name), self._numbers(self.used, name)

    def taken_port(self, host_ip: str, protocol: str, port: int) -> Mask:
        """Nodes where the host port is taken; an empty or 0.0.0.0 address takes it on every address."""
        mask = np.zeros(len(self.live), bool)
        for (ip, proto, number), count in self._ports.items():
            if proto == protocol and number == port and (_any(ip) or _any(host_ip) or ip == host_ip):
                mask |= count > 0
        return mask

    def image_bytes(self, image: str) -> Numbers | None:
        """Size of an image where a node has it."""
        return self._images.get(image)

    def label(self, key: str) -> NDArray[np.int32]:
        """Value numbers of a label; -1 where absent."""
        column = self._labels.get(key)
        return column if column is not None else np.full(len(self.live), -1, np.int32)

    def where(self, expressions: tuple[Expression, ...]) -> Mask:
        """Nodes whose labels meet all expressions. No expression matches no node, as in a node selector term."""
        if not expressions:
            return np.zeros(len(self.live), bool)
        mask = np.ones(len(self.live), bool)
        for expression in expressions:
            mask &= self._where(expression)
        return mask

    def _where(self, expression: Expression) -> Mask:
        column, numbers = self.label(expression.key), self._values.get(expression.key, {})
        match expression.operator:
            case "Exists":
                return column >= 0
            case "DoesNotExist":
                return column < 0
            case "In" | "NotIn":
                wanted = [numbers[value] for value in expression.values if value in numbers]
                found = np.isin(column, wanted)
                return found if expression.operator == "In" else ~found
            case "Gt" | "Lt":
                return self._compare(column, numbers, expression)
            case _:
                return np.zeros(len(self.live), bool)

    def _compare(self, column: NDArray[np.int32], numbers: dict[str, int], expression: Expression) -> Mask:
        if len(expression.values) != 1 or not _is_int(expression.values[0]):
            return np.zeros(len(self.live), bool)  # no number to compare with: no node, as kube-scheduler has it
        limit = int(expression.values[0])
        greater = expression.operator == "Gt"
        wanted = [
            n
            for value, n in numbers.items()
            if _is_int(value) and (int(value) > limit if greater else int(value) < limit)
        ]
        return np.isin(column, wanted)

    # growing

    def _numbers(self, columns: dict[Any, Numbers], key: Any) -> Numbers:
        if key not in columns:
            columns[key] = np.zeros(len(self.live), np.int64)
        return columns[key]

    def _grow(self) -> None:
        old = len(self.live)
        self.names += [""] * old
        self._free = list(range(2 * old - 1, old - 1, -1))
        self.live = np.concatenate([self.live, np.zeros(old, bool)])
        for columns in (self.allocatable, self.used, self.scored, self._ports, self._images):
            _double(columns, 0)
        _double(self._labels, -1)
        _double(self.taints, False)


def _tally(tallies: dict[Any, Counter[int]], key: Any, row: int, sign: int) -> None:
    rows = tallies.setdefault(key, Counter())
    rows[row] += sign
    if not rows[row]:
        del rows[row]
    if not rows:
        del tallies[key]


def _double(columns: dict[Any, Any], fill: Any) -> None:
    for key, column in columns.items():
        columns[key] = np.concatenate([column, np.full(len(column), fill, column.dtype)])


def _any(ip: str) -> bool:
    return ip in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound


def _is_int(text: str) -> bool:
    return _WHOLE.match(text) is not None
