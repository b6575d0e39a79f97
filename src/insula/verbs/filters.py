"""Which objects a list, watch or delete-collection is about: namespace, labels, fields.

What selectors look at is read from a stored value once per revision and kept, for a watch asks about each change once per
watcher.
"""

from __future__ import annotations

from collections.abc import Mapping

from insula.errors import Invalid
from insula.kinds.kind import Kind
from insula.model.selector import FieldSelector, Selector, parse_fields, parse_labels
from insula.store.contract import Record
from insula.verbs.codec import Codec, labels_of

_ALWAYS = frozenset({"metadata.name", "metadata.namespace"})
_KEEP = 50_000


class Facts:
    """Labels and selectable fields of records, remembered by key and revision."""

    def __init__(self) -> None:
        self._fields: dict[tuple[str, str, int], Mapping[str, str]] = {}
        self._labels: dict[tuple[str, int], Mapping[str, str]] = {}

    def labels(self, record: Record) -> Mapping[str, str]:
        """The record's labels."""
        at = record.key, record.revision
        known = self._labels.get(at)
        if known is None:
            if len(self._labels) > _KEEP:
                self._labels.clear()
            known = self._labels[at] = labels_of(record)
        return known

    def fields(self, codec: Codec, record: Record) -> Mapping[str, str]:
        """The record's selectable fields besides name and namespace."""
        at = codec.kind.ref.version, record.key, record.revision
        known = self._fields.get(at)
        if known is None:
            if len(self._fields) > _KEEP:
                self._fields.clear()
            known = self._fields[at] = codec.kind.fields(codec.object(record))
        return known


class Filter:
    """A label and a field selector over one kind. Raises Invalid for a field that the kind does not offer."""

    def __init__(self, facts: Facts, codec: Codec, labels: str, fields: str) -> None:
        self._facts = facts
        self._codec = codec
        self.labels: Selector = parse_labels(labels)
        self.fields: FieldSelector = parse_fields(fields)
        self._deep = any(one.path not in _ALWAYS for one in self.fields.requirements)
        if self._deep:
            self._check(codec.kind)

    def _check(self, kind: Kind) -> None:
        offered = kind.fields({"metadata": {}})
        for one in self.fields.requirements:
            if one.path not in offered and one.path not in _ALWAYS:
                raise Invalid(f"field label not supported: {one.path}", field="fieldSelector")

    def __bool__(self) -> bool:
        return bool(self.labels or self.fields)

    def matches(self, record: Record) -> bool:
        """Whether the object is selected."""
        if self.labels and not self.labels.matches(self._facts.labels(record)):
            return False
        if not self.fields:
            return True
        address = self._codec.address(record.key)
        known = {"metadata.name": address.name, "metadata.namespace": address.namespace}
        if self._deep:
            known.update(self._facts.fields(self._codec, record))
        return self.fields.matches(known)

    def only(self, namespace: str) -> str | None:
        """The one key that can match, when the selector names an object whose namespace is known."""
        name = self.fields.exact("metadata.name")
        if name is None or (self._codec.kind.namespaced and not namespace):
            return None
        return self._codec.key(namespace, name)
