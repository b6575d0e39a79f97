"""What all pulls and pushes of a node share: how many blobs move at once, and that one blob comes in once."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from insula.images.registries import Registries


class Transfers:
    """The limits of one node. Use it on one event loop."""

    def __init__(self, settings: Registries) -> None:
        self.downloads = asyncio.Semaphore(settings.downloads)
        self.uploads = asyncio.Semaphore(settings.uploads)
        self._blobs: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def one(self, digest: str) -> asyncio.Lock:
        """Held by whoever brings a blob in; others that want it wait, and find it here."""
        return self._blobs.setdefault(digest, asyncio.Lock())
