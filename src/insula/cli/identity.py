"""This node's id: made once, kept in the data folder."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def node_id(data: Path) -> str:
    """The id, made at the first call."""
    path = data / "node-id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(f"{uuid.uuid4()}\n")
        fresh.rename(path)
        return path.read_text().strip()
