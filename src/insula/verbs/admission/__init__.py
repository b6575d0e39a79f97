"""Steps that complete or refuse writes after defaulting, one file each, exporting ADMISSION; `ORDER` says which runs first."""

from __future__ import annotations

import importlib
import pkgutil

from insula.verbs.request import Admission


def load() -> list[Admission]:
    """Every step of this folder, in the order of `ORDER`, then by name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    modules.sort(key=lambda module: (getattr(module, "ORDER", 50), module.__name__))
    return [module.ADMISSION for module in modules]
