"""Reading folders."""

from __future__ import annotations

import os
from pathlib import Path


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds now, read to the end: the caller may add and remove while going through it. Raises OSError."""
    with os.scandir(folder) as found:
        return list(found)
