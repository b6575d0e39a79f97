"""`--cache-from`: steps taken over from images that were built from the same Dockerfile, perhaps on another machine.

An image's history says how each of its layers was made. Where its layers so far are those of the stage and its next entries
say what the step would say, its next layer is what the step would make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from insula.engine.building.frame import Frame
from insula.images.buildcache import Record
from insula.images.contract import Image
from insula.images.drafts import Drafts, State
from insula.images.layers import chain_ids
from insula.tasks import in_thread


class Hit(Struct, frozen=True):
    """When a step was made, and the number of the layer that it made, if it made one."""

    created: str
    layer: int | None


def match(image: dict[str, Any], diff_ids: Sequence[str], history: Sequence[dict[str, Any]], said: str) -> Hit | None:
    """The next step in an image's history, if all before it agrees. Pure."""
    theirs = image.get("history") or []
    layers = (image.get("rootfs") or {}).get("diff_ids") or []
    position = len(history)
    if position >= len(theirs) or list(layers[: len(diff_ids)]) != list(diff_ids):
        return None
    for mine, other in zip(history, theirs, strict=False):
        if mine.get("created_by") != other.get("created_by") or bool(mine.get("empty_layer")) != bool(
            other.get("empty_layer")
        ):
            return None
    entry = theirs[position]
    if entry.get("created_by") != said:
        return None
    if entry.get("empty_layer"):
        return Hit(str(entry.get("created") or ""), None)
    if len(diff_ids) >= len(layers):
        return None
    return Hit(str(entry.get("created") or ""), len(diff_ids))


class Candidates:
    """The images that a build may take steps from."""

    def __init__(self, drafts: Drafts, images: Sequence[Image]) -> None:
        self._drafts = drafts
        self._images = [(image.config.raw, drafts.state_of(image)) for image in images]

    async def find(self, frame: Frame, said: str, key: str) -> Record | None:
        """The step's result in one of them, kept in the cache from now on."""
        diff_ids = [layer.diff_id for layer in frame.state]
        for raw, state in self._images:
            hit = match(raw, diff_ids, frame.history, said)
            if hit is None:
                continue
            record = _record(hit, key, frame, state)
            if await self._drafts.usable(record, frame.state):
                await in_thread(self._drafts.cache.put, record)
                return record
        return None


def _record(hit: Hit, key: str, frame: Frame, state: State) -> Record:
    layer = state[hit.layer] if hit.layer is not None else None
    chain = chain_ids([*(each.diff_id for each in frame.state), layer.diff_id])[-1] if layer else ""
    return Record(key=key, created=hit.created, parent=frame.key, layer=layer, chain=chain)
