"""All kinds that this server knows. Presence in the package is registration; custom kinds come and go at run time.

`Registry.builtin()` gives every built-in kind of Kubernetes: rows of `builtin`, replaced by what the files of this package (and
its sub-packages) export as `KIND` or `KINDS`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType

import insula.kinds
from insula.errors import AlreadyExists, NotFound
from insula.kinds import builtin, schemas
from insula.kinds.kind import Kind
from insula.model.resource import Ref


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(insula.kinds.__path__, prefix="insula.kinds."):
        if found.name != __name__:
            yield importlib.import_module(found.name)


def found_in_files() -> Iterator[Kind]:
    """What the files of this package export."""
    for module in _modules():
        one = getattr(module, "KIND", None)
        if isinstance(one, Kind):
            yield one
        yield from getattr(module, "KINDS", ())


class Registry:
    """Kinds by what clients call them. Not for several threads; reading is cheap, changing rare."""

    def __init__(self, kinds: Iterable[Kind] = ()) -> None:
        self._by_ref: dict[Ref, Kind] = {}
        self._by_gvk: dict[tuple[str, str], Kind] = {}
        self._listeners: list[Callable[[], None]] = []
        self.generation = 0  # rises with every change, for caches of discovery and OpenAPI
        for kind in kinds:
            self._put(kind)

    @classmethod
    def builtin(cls) -> Registry:
        """Every kind of Kubernetes and those that Insula adds. Imports and reads files: call it in a thread."""
        schemas.names()
        kinds = dict(builtin.rows())
        for kind in found_in_files():
            kinds[kind.gvk] = kind
        return cls(kinds.values())

    def _put(self, kind: Kind) -> None:
        self._by_ref[kind.ref] = kind
        self._by_gvk[kind.gvk] = kind

    def find(self, ref: Ref) -> Kind | None:
        """The kind of a resource type, None for an unknown one."""
        return self._by_ref.get(ref)

    def by_ref(self, ref: Ref) -> Kind:
        """The kind of a resource type. Raises NotFound."""
        kind = self._by_ref.get(ref)
        if kind is None:
            raise NotFound("the server could not find the requested resource", kind=ref.plural)
        return kind

    def by_gvk(self, api_version: str, kind: str) -> Kind:
        """The kind that a manifest names. Raises NotFound, in kubectl's words."""
        found = self._by_gvk.get((api_version, kind))
        if found is None:
            raise NotFound(f'no matches for kind "{kind}" in version "{api_version}"', kind=kind)
        return found

    def all(self) -> Sequence[Kind]:
        """Every kind, in discovery order."""
        return tuple(self._by_ref.values())

    def in_version(self, group: str, version: str) -> Sequence[Kind]:
        """The kinds of one group version."""
        return [kind for kind in self._by_ref.values() if (kind.ref.group, kind.ref.version) == (group, version)]

    def groups(self) -> dict[str, list[str]]:
        """Group to its versions, the preferred one first; groups in discovery order."""
        found: dict[str, list[str]] = {}
        for ref in self._by_ref:
            versions = found.setdefault(ref.group, [])
            if ref.version not in versions:
                versions.append(ref.version)
        return {group: sorted(versions, key=version_order) for group, versions in found.items()}

    def add(self, *kinds: Kind, replace: bool = False) -> None:
        """Take custom kinds in. Raises AlreadyExists where a type is taken, unless it replaces."""
        for kind in kinds:
            if not replace and kind.ref in self._by_ref:
                raise AlreadyExists(f"{kind.ref.plural}.{kind.ref.group} {kind.ref.version} is served already")
        for kind in kinds:
            self.forget(kind.ref)
            self._put(kind)
        self._changed()

    def remove(self, *refs: Ref) -> None:
        """Serve these types no longer; unknown ones are fine."""
        for ref in refs:
            self.forget(ref)
        self._changed()

    def forget(self, ref: Ref) -> None:
        """Take one type out without telling anybody yet."""
        kind = self._by_ref.pop(ref, None)
        if kind is not None:
            self._by_gvk.pop(kind.gvk, None)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call it after every change."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        self.generation += 1
        for listener in self._listeners:
            listener()


def version_order(version: str) -> tuple[int, int, int, str]:
    """Sort key of Kubernetes' version priority: v2, v1, v1beta2, v1beta1, v1alpha1, then anything else by name."""
    head, _, rest = version.removeprefix("v").partition("beta")
    stage = 1
    if "alpha" in version:
        head, _, rest = version.removeprefix("v").partition("alpha")
        stage = 2
    elif "beta" not in version:
        stage, rest = 0, "0"
    if version[:1] != "v" or not head.isdigit() or not rest.isdigit():
        return (3, 0, 0, version)
    return (stage, -int(head), -int(rest), version)
