"""The engine of an Insula, alone: what `down --all` needs, and the first part of a whole one."""

from __future__ import annotations

from insula.cli import settings as settings_module
from insula.cli.paths import Paths
from insula.cli.settings import Settings
from insula.engine.node import NodeEngine
from insula.engine.settings import EnginePaths, EngineSettings


async def open_engine(paths: Paths, settings: Settings) -> NodeEngine:
    """This Insula's engine; nothing is taken back yet."""
    wanted = EngineSettings(
        prefix=paths.prefix,
        table=paths.table,
        cgroup=paths.cgroup,
        default_subnet=settings.subnet,
        default_subnet6=settings.subnet6,
        registries=settings_module.registries(settings),
    )
    return await NodeEngine.open(EnginePaths(data=paths.data, runtime=paths.run), wanted)
