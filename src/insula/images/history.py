"""`docker history`: an image's configuration says how each layer was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from insula.clock import parse_rfc3339
from insula.images.contract import Image


def history_rows(image: Image, layer_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Newest first, in the Docker API's words (HistoryResponseItem). Only the newest row has the image's id and names."""
    entries: list[dict[str, Any]] = image.config.raw.get("history") or [{} for _ in layer_sizes]
    sizes = iter(layer_sizes)
    rows = [_row(entry, 0 if entry.get("empty_layer") else next(sizes, 0)) for entry in entries]
    rows.reverse()
    if rows:
        rows[0] |= {"Id": image.id, "Tags": list(image.names) or None}
    return rows


def _row(entry: dict[str, Any], size: int) -> dict[str, Any]:
    try:
        created = int(parse_rfc3339(str(entry.get("created"))).timestamp())
    except ValueError:
        created = 0
    return {
        "Id": "<missing>",
        "Created": created,
        "CreatedBy": str(entry.get("created_by") or ""),
        "Tags": None,
        "Size": size,
        "Comment": str(entry.get("comment") or ""),
    }
