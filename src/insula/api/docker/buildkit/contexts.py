"""Trees that clients have sent, kept so that the next build of the same folder is sent only what changed. A tree belongs to one
build at a time; another build of the same key gets one of its own, which is not kept. The least recently used are dropped."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from msgspec import Struct

from insula.host.rmtree import remove_tree
from insula.tasks import in_thread

KEPT = 32
KEPT_BYTES = 4 * 1024**3


class Place(Struct, frozen=True):
    """Where a context is received: the tree, and an empty folder beside it."""

    tree: Path
    staging: Path


class Kept(Struct, frozen=True, kw_only=True):
    """A tree that nobody uses or somebody does. Times are seconds since 1970."""

    id: str
    size_bytes: int
    last_used: float
    in_use: bool


class Contexts:
    """All trees below one folder. What a crash left is cleared by the first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._cleared = False

    @asynccontextmanager
    async def place(self, key: str) -> AsyncIterator[Place]:
        """The tree of a key, for as long as the block lasts; an empty key is never kept."""
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        kept = bool(key) and name not in self._used
        if kept:
            self._used.add(name)
        try:
            place = await in_thread(self._open, name if kept else "")
            try:
                yield place
            finally:
                await in_thread(self._close, place, kept)
        finally:
            if kept:
                self._used.discard(name)

    async def all(self) -> list[Kept]:
        """What is there."""
        return await in_thread(self._list)

    async def remove(self, id: str) -> None:
        """One that is not in use. Repeatable."""
        if id not in self._used:
            self._sizes.pop(id, None)
            await in_thread(remove_tree, self._folder / "kept" / id)

    def _open(self, name: str) -> Place:
        passing = self._folder / "passing"
        if not self._cleared:
            remove_tree(passing)
            self._cleared = True
        passing.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=passing))
        tree = self._folder / "kept" / name if name else Path(tempfile.mkdtemp(dir=passing))
        tree.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Place(tree, staging)

    def _close(self, place: Place, kept: bool) -> None:
        remove_tree(place.staging, ignore_errors=True)
        if not kept:
            self._sizes.pop(place.tree.name, None)
            remove_tree(place.tree, ignore_errors=True)
            return
        os.utime(place.tree)
        total = 0
        for number, (_, tree) in enumerate(sorted(self._trees(), reverse=True)):
            total += self._size(tree)
            if (number >= KEPT or total > KEPT_BYTES) and tree.name not in self._used - {place.tree.name}:
                remove_tree(tree, ignore_errors=True)
                self._sizes.pop(tree.name, None)

    def sized(self, place: Place, size_bytes: int) -> None:
        """How much came into a tree; of one that is not told it is counted."""
        self._sizes[place.tree.name] = size_bytes

    def _size(self, tree: Path) -> int:
        if tree.name not in self._sizes:
            self._sizes[tree.name] = _size(tree)
        return self._sizes[tree.name]

    def _trees(self) -> list[tuple[float, Path]]:
        """Last use and folder of each; one that another thread removes meanwhile is none."""
        found = []
        with suppress(FileNotFoundError):
            for tree in (self._folder / "kept").iterdir():
                with suppress(FileNotFoundError):
                    found.append((tree.stat().st_mtime, tree))
        return found

    def _list(self) -> list[Kept]:
        return [
            Kept(
                id=tree.name,
                size_bytes=self._size(tree),
                last_used=time.time() if tree.name in self._used else used,
                in_use=tree.name in self._used,
            )
            for used, tree in self._trees()
        ]


def _size(tree: Path) -> int:
    total = 0
    for folder, _, names in os.walk(tree):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(f"{folder}/{name}").st_size
    return total
