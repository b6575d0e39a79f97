"""Containers for other processors: looked at before they start, so that they run, or fail with a sentence that helps.

Without this the kernel says `exec format error` into the container's log. Images lie about their architecture often enough;
the program itself counts.
"""

from __future__ import annotations

from insula.engine.resolve import DEFAULT_PATH, arguments
from insula.errors import HostFault
from insula.host import binfmt
from insula.images.contract import Image
from insula.model.instance import InstanceConfig
from insula.tasks import in_thread

_NOT_EXECUTABLE = 126  # as a shell says it, and the Docker Engine


async def check_program(config: InstanceConfig, image: Image, rootfs: str) -> None:
    """Raises HostFault for a program that nothing here can run. Costs nothing for images of this machine's architecture."""
    if config.driver != "oci" or image.architecture in ("", *binfmt.native()):
        return
    argument = arguments(config, image.config)[0]
    variables = dict(entry.partition("=")[::2] for entry in (*image.config.env, *config.env))
    await in_thread(_check, rootfs, argument, variables.get("PATH") or DEFAULT_PATH)


def _check(rootfs: str, argument: str, search: str) -> None:
    machine = binfmt.program_of(rootfs, argument, search)
    if machine is None or machine.name in binfmt.native():
        return
    if why := binfmt.missing(machine, binfmt.rules()):
        raise HostFault(f'exec: "{argument}": exec format error: {why}', code=_NOT_EXECUTABLE)
