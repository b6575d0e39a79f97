"""The levels of isolation, one file or folder each. The folder is the registry: whatever in here exports `DRIVER` is a driver."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

from insula.drivers.driver import Driver

Factory = Callable[[Path], Driver]


def available() -> dict[str, Factory]:
    """Every driver by name. Called with Insula's runtime folder (/run/insula), a factory makes the driver."""
    found: dict[str, Factory] = {}
    for module in pkgutil.iter_modules(__path__):
        factory = getattr(importlib.import_module(f"{__name__}.{module.name}"), "DRIVER", None)
        if factory is not None:
            found[module.name] = cast(Factory, factory)
    return found
