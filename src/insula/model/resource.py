"""A resource: one object of the API, a plain mapping of apiVersion, kind, metadata, spec and status.

Mappings stay mappings: fields that Insula does not know survive every round trip. Typed reading is done where it is needed.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

Resource = dict[str, Any]


class Ref(Struct, frozen=True, order=True):
    """Which resource type: group ("" for core), version, plural: `Ref("apps", "v1", "deployments")`."""

    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        """As manifests write it: `apps/v1`, `v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version


class Key(Struct, frozen=True, order=True):
    """One object's address within its type. `namespace` is empty for cluster-scoped ones."""

    namespace: str
    name: str


def key_of(obj: Resource) -> Key:
    """The address written in an object's metadata."""
    meta = obj.get("metadata") or {}
    return Key(meta.get("namespace", ""), meta.get("name", ""))
