"""One file per controller, each exporting CONTROLLER; the folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil

from insula.control.controller import Controller


def load() -> list[Controller]:
    """Every controller of this folder, by name."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    found = [module.CONTROLLER for module in modules if hasattr(module, "CONTROLLER")]
    return sorted(found, key=lambda controller: controller.name)
