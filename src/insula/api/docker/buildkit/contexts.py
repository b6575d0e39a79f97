"""Trees that clients have sent, kept so that the next build of the same folder is sent only what changed. A tree belongs to one
build at a time; another build of the same key gets one of its own, which is not kept. The least recently used are dropped."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

from insula.host.rmtree import remove_tree
from insula.tasks import in_thread

KEPT = 32


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

    async def drop(self, key: str) -> None:
        """Forget a tree whose state is not known, unless somebody uses it."""
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        if name not in self._used:
            await in_thread(remove_tree, self._folder / "kept" / name)

    async def all(self) -> list[Kept]:
        """What is there."""
        return await in_thread(self._list)

    async def remove(self, id: str) -> None:
        """One that is not in use. Repeatable."""
        if id not in self._used:
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
            remove_tree(place.tree, ignore_errors=True)
            return
        os.utime(place.tree)
        trees = sorted((self._folder / "kept").iterdir(), key=lambda tree: tree.stat().st_mtime, reverse=True)
        for old in trees[KEPT:]:
            if old.name not in self._used:
                remove_tree(old, ignore_errors=True)

    def _list(self) -> list[Kept]:
        try:
            trees = list((self._folder / "kept").iterdir())
        except FileNotFoundError:
            return []
        return [
            Kept(
                id=tree.name,
                size_bytes=_size(tree),
                last_used=time.time() if tree.name in self._used else tree.stat().st_mtime,
                in_use=tree.name in self._used,
            )
            for tree in trees
        ]


def _size(tree: Path) -> int:
    return sum(
        os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118
        for folder, _, names in os.walk(tree)
        for name in names
    )
