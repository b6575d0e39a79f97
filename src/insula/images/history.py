"""`docker history`: an image's configuration says how each layer was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from insula.clock import parse_rfc3339
from insula.images.contract import Image


def history_rows(image: Image, layer_sizes: Sequence[int], ancestors: Sequence[Image] = ()) -> list[dict[str, Any]]:
    """Newest first, in the Docker API's words (HistoryResponseItem). The newest rows have the ids and names of the image and of
    those that it was made from, as far as they are known, one to a row."""
    entries: list[dict[str, Any]] = image.config.raw.get("history") or [{} for _ in layer_sizes]
    sizes = iter(layer_sizes)
    rows = [_row(entry, 0 if entry.get("empty_layer") else next(sizes, 0)) for entry in entries]
    rows.reverse()
    for row, known in zip(rows, (image, *ancestors), strict=False):
        row |= {"Id": known.id, "Tags": list(known.names) or None}
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
