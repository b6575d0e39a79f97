"""How an object becomes a stored value, and a stored value JSON text or an object again.

A value is the object's JSON with `apiVersion`, `kind` and `metadata` in front and without its resourceVersion, which is the
record's revision. So the text that a client gets is made by putting the number behind a known head: no decoding, no encoding.
"""

from __future__ import annotations

from typing import Any

import msgspec

from insula.errors import HostFault
from insula.kinds.kind import Kind
from insula.kinds.registry import Registry
from insula.model.resource import Key, Ref, Resource
from insula.store.contract import Record

encode_json = msgspec.json.Encoder().encode
decode_json = msgspec.json.Decoder().decode


def copy(obj: Any) -> Any:
    """A deep copy of plain JSON data; turns tuples to lists and mappings to dictionaries."""
    return decode_json(encode_json(obj))


class _Meta(msgspec.Struct):
    labels: dict[str, str] | None = None


class _Peek(msgspec.Struct):
    metadata: _Meta


_peek = msgspec.json.Decoder(_Peek).decode
_NO_LABELS: dict[str, str] = {}


def labels_of(record: Record) -> dict[str, str]:
    """An object's labels, read without building the rest of it."""
    return _peek(record.value).metadata.labels or _NO_LABELS


def bucket(ref: Ref) -> str:
    """The first path segment of a type's keys."""
    return f"{ref.plural}.{ref.group}" if ref.group else ref.plural


def head_of(api_version: str, kind: str) -> bytes:
    """How the text of every object of a kind begins, up to the first field of its metadata."""
    return encode_json({"apiVersion": api_version, "kind": kind, "metadata": {}})[:-2]


class Codec:
    """One kind's way in and out of the store."""

    def __init__(self, kind: Kind, registry: Registry) -> None:
        self.kind = kind
        stored = kind
        if kind.stored_as is not None:
            stored = registry.by_ref(kind.stored_as)
        elif kind.storage_version and kind.storage_version != kind.ref.version:
            stored = registry.find(Ref(kind.ref.group, kind.storage_version, kind.ref.plural)) or kind
        self.stored = stored
        self.bucket = bucket(stored.ref)
        self.head = head_of(*kind.gvk)
        self.stored_head = head_of(*stored.gvk)
        self._plain = kind.from_stored is Kind.from_stored
        self._skip = len(self.stored_head)

    def key(self, namespace: str, name: str) -> str:
        """The store's key of an object."""
        return f"{self.bucket}/{namespace}/{name}" if self.kind.namespaced else f"{self.bucket}/{name}"

    def prefix(self, namespace: str) -> str:
        """The store's prefix of all objects, or of one namespace's."""
        return f"{self.bucket}/{namespace}/" if namespace and self.kind.namespaced else f"{self.bucket}/"

    def address(self, key: str) -> Key:
        """Namespace and name, from the store's key."""
        rest = key[len(self.bucket) + 1 :]
        if not self.kind.namespaced:
            return Key("", rest)
        namespace, _, name = rest.partition("/")
        return Key(namespace, name)

    def value(self, obj: Resource) -> bytes:
        """What is stored for an object. The object is left as it was."""
        stored = self.kind.to_stored(obj)
        meta = {name: value for name, value in stored["metadata"].items() if name != "resourceVersion"}
        api_version, kind = self.stored.gvk
        return encode_json({"apiVersion": api_version, "kind": kind, "metadata": meta, **_rest(stored)})

    def body(self, record: Record) -> bytes:
        """The object as JSON text, in this kind's version."""
        value = record.value
        if self._plain and value.startswith(self.stored_head):
            return b'%b"resourceVersion":"%d",%b' % (self.head, record.revision, value[self._skip :])
        return encode_json(self._converted(record))

    def add_body(self, parts: list[bytes | memoryview], record: Record) -> int:
        """Append the object's text in pieces that share the stored bytes; returns about how long it is."""
        value = record.value
        if not self._plain or not value.startswith(self.stored_head):
            parts.append(self.body(record))
        else:
            parts += (b'%b"resourceVersion":"%d",' % (self.head, record.revision), memoryview(value)[self._skip :])
        return len(value)

    def object(self, record: Record) -> Resource:
        """The object, in this kind's version; the caller's own."""
        found: Resource = decode_json(self.body(record)) if self._plain else self._converted(record)
        return found

    def _converted(self, record: Record) -> Resource:
        obj: Resource = decode_json(record.value)
        if not isinstance(obj, dict):
            raise HostFault(f"the stored value of {record.key} is not an object")
        if obj.get("apiVersion") == self.stored.ref.api_version:
            obj = self.kind.from_stored(obj)
        obj["apiVersion"], obj["kind"] = self.kind.gvk
        obj["metadata"]["resourceVersion"] = str(record.revision)
        return obj


def _rest(obj: Resource) -> Resource:
    return {name: value for name, value in obj.items() if name not in ("apiVersion", "kind", "metadata")}
