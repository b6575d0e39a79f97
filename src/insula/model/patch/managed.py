"""metadata.managedFields: which manager owns which fields, and what each kind of write does to that.

    an update    takes the fields that it changed from all others, silently
    an apply     owns exactly what its configuration names; to change what another owns is a conflict, unless forced

Source: Kubernetes' server-side apply documentation and `apimachinery/pkg/util/managedfields`; the sentences are kubectl's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from insula.errors import Cause, Conflict
from insula.model.patch import apply as typed
from insula.model.patch import fieldset
from insula.model.patch.fieldset import Node
from insula.model.schema import Schema

_MAX_UPDATERS = 10
_ANCIENT = "ancient-changes"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

_META = ("name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields", "resourceVersion")
UNOWNED: Node = {
    "f:apiVersion": {},
    "f:kind": {},
    "f:metadata": {f"f:{name}": {} for name in _META}
    | {"f:deletionTimestamp": {}, "f:deletionGracePeriodSeconds": {}, "f:generateName": {}},
}
"""What nobody owns because the server alone writes it or it names the object."""


class Manager(Struct, frozen=True):
    """One row of managedFields: the same name may appear once per operation, version and subresource."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""

    def __str__(self) -> str:
        shown = f'"{self.name}"'
        if self.subresource:
            shown += f' with subresource "{self.subresource}"'
        return shown if self.operation == "Apply" else f"{shown} using {self.api_version}"

    @property
    def applies(self) -> bool:
        """Whether this row came from server-side apply."""
        return self.operation == "Apply"


class Owned(Struct, frozen=True):
    """A manager's fields and when they last changed (RFC 3339)."""

    fields: Node
    time: str = ""


Owners = dict[Manager, Owned]


def read(entries: Any) -> Owners:
    """The rows as a mapping; rows that are not understood are left out."""
    owners: Owners = {}
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, Mapping) or not isinstance(fields := entry.get("fieldsV1"), dict):
            continue
        manager = Manager(
            str(entry.get("manager", "")),
            str(entry.get("operation", "")),
            str(entry.get("apiVersion", "")),
            str(entry.get("subresource") or ""),
        )
        owners[manager] = Owned(fields, str(entry.get("time") or ""))
    return owners


def write(owners: Owners) -> list[dict[str, Any]]:
    """The rows, appliers first, then by age."""

    def order(item: tuple[Manager, Owned]) -> tuple[str, str, str, str, str]:
        manager, owned = item
        return manager.operation, owned.time, manager.name, manager.api_version, manager.subresource

    rows = []
    for manager, owned in sorted(owners.items(), key=order):
        row: dict[str, Any] = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.api_version,
            "time": owned.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": owned.fields,
        }
        if manager.subresource:
            row["subresource"] = manager.subresource
        rows.append(row)
    return rows


def _taken(owners: Owners, changed: Node, removed: Node, but: Manager) -> Owners:
    """The owners after others lost what was changed or removed."""
    gone = fieldset.union(changed, removed)
    left: Owners = {}
    for manager, owned in owners.items():
        if manager == but:
            left[manager] = owned
        elif fields := fieldset.minus(owned.fields, gone):
            left[manager] = Owned(fields, owned.time)
    return left


def updated(owners: Owners, manager: Manager, old: Node, new: Node, schema: Schema | None, time: str) -> Owners:
    """The owners after `manager` changed an object from `old` to `new` by other means than apply."""
    found = fieldset.difference(old, new, schema)
    written, removed = (fieldset.without(each, UNOWNED) for each in (found.written, found.removed))
    if not written and not removed:
        return owners
    after = _taken(owners, written, removed, manager)
    have = after.pop(manager, None)
    mine = fieldset.union(fieldset.minus(have.fields, removed) if have else {}, written)
    if mine:
        after[manager] = Owned(mine, time if written or have is None else have.time)
    return _capped(after)


_SPREAD = ("metadata", "spec", "status")


def of_new(manager: Manager, new: Node, schema: Schema | None, hidden: Node, time: str) -> Owners:
    """The owners of an object that `manager` has made by other means than apply: what `updated` finds for one that came from
    nothing, but for the `hidden` fields."""
    fields: Node = {}
    for name, child in new.items():
        label, inner = fieldset.element(schema, name)
        if child is None or label in hidden or UNOWNED.get(label) == {}:
            continue
        if name in _SPREAD and fieldset.is_granular(inner, child):
            below = fieldset.inside(child, inner)
            for unowned in UNOWNED.get(label, ()):
                below.pop(unowned, None)
            if below:
                fields[label] = below
        else:
            fields[label] = fieldset.everything(child, inner)
    return {manager: Owned(fields, time)} if fields else {}


def _capped(owners: Owners) -> Owners:
    """At most ten updaters; the oldest are thrown together."""
    updaters = sorted((m for m in owners if not m.applies), key=lambda m: owners[m].time)
    excess = len(updaters) - _MAX_UPDATERS
    if excess <= 0:
        return owners
    after = dict(owners)
    for manager in updaters[: excess + 1]:
        owned = after.pop(manager)
        ancient = Manager(_ANCIENT, "Update", manager.api_version)
        have = after.get(ancient)
        after[ancient] = Owned(fieldset.union(have.fields, owned.fields) if have else owned.fields, owned.time)
    return after


class Apply(Struct, frozen=True):
    """A configuration to apply. `beyond` are fields that this (sub)resource does not write: they are neither taken over
    nor owned."""

    manager: Manager
    config: Node
    beyond: Node
    force: bool
    time: str

    def own(self, schema: Schema | None) -> Node:
        """The fields that the configuration claims."""
        return fieldset.without(fieldset.without(fieldset.of_object(self.config, schema), UNOWNED), self.beyond)


def applied(owners: Owners, live: Node, ask: Apply, schema: Schema | None) -> tuple[Node, Owners]:
    """The object after an apply and its owners. Raises Conflict with one cause per field."""
    claimed = ask.own(schema)
    merged = typed.merge(live, ask.config, schema)
    before = owners.get(ask.manager)
    others: Node = {}
    for manager, owned in owners.items():
        if manager != ask.manager:
            others = fieldset.union(others, owned.fields)
    if before is not None:
        kept = fieldset.union(fieldset.union(others, claimed), UNOWNED)
        merged = typed.prune(merged, schema, before.fields, kept)
    found = fieldset.difference(live, merged, schema)
    written, removed = (fieldset.without(each, UNOWNED) for each in (found.written, found.removed))
    conflicts = _conflicts(owners, ask.manager, written)
    if conflicts and not ask.force:
        conflicts = _without_client_side(conflicts, live, ask, schema)
        if conflicts:
            raise conflict(conflicts)
    after = _taken(owners, written, removed, ask.manager)
    same = before is not None and before.fields == claimed
    after.pop(ask.manager, None)
    if claimed:
        after[ask.manager] = Owned(claimed, before.time if same and before else ask.time)
    return merged, after


def _conflicts(owners: Owners, but: Manager, written: Node) -> list[tuple[Manager, str]]:
    return [
        (manager, path)
        for manager, owned in sorted(owners.items(), key=lambda item: str(item[0]))
        if manager != but
        for path in fieldset.paths(fieldset.both(owned.fields, written))
    ]


def _without_client_side(
    conflicts: list[tuple[Manager, str]], live: Node, ask: Apply, schema: Schema | None
) -> list[tuple[Manager, str]]:
    """kubectl may take over what its own client-side apply wrote before, as remembered in the object's annotation."""
    if ask.manager.name != "kubectl":
        return conflicts
    remembered = _last_applied(live)
    if remembered is None:
        return conflicts
    claimed = fieldset.of_object(remembered, schema)
    changed = fieldset.difference(remembered, live, schema)
    kept = fieldset.minus(fieldset.minus(claimed, changed.modified), changed.removed)
    allowed = set(fieldset.paths(kept)) | {f".metadata.annotations.{LAST_APPLIED}"}
    return [one for one in conflicts if one[1] not in allowed]


def _last_applied(live: Node) -> Node | None:
    text = ((live.get("metadata") or {}).get("annotations") or {}).get(LAST_APPLIED)
    try:
        found = msgspec.json.decode(text) if isinstance(text, str) else None
    except msgspec.DecodeError:
        return None
    return found if isinstance(found, dict) else None


def conflict(conflicts: Sequence[tuple[Manager, str]]) -> Conflict:
    """The refusal, in the words that kubectl shows."""
    causes = [Cause(path, "FieldManagerConflict", f"conflict with {manager}") for manager, path in conflicts]
    if len(conflicts) == 1:
        manager, path = conflicts[0]
        return Conflict(f"Apply failed with 1 conflict: conflict with {manager}: {path}", causes=causes)
    by_manager: dict[str, list[str]] = {}
    for manager, path in conflicts:
        by_manager.setdefault(str(manager), []).append(f"- {path}")
    told = [f"conflicts with {manager}:\n" + "\n".join(by_manager[manager]) for manager in sorted(by_manager)]
    return Conflict(f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(told), causes=causes)
