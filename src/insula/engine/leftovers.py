"""What a killed start may leave with a driver before there is a handle, and how it is cleared up.

A driver promises that `create` can be repeated: it first removes what a killed attempt left. So the spec is written beside
the attempt; after a crash the attempt is repeated, which yields a handle, and that is deleted.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import msgspec

from insula.drivers.driver import Driver
from insula.errors import InsulaError
from insula.model.instance import InstanceSpec
from insula.tasks import in_thread

log = logging.getLogger(__name__)
_SPEC = "spec.json"


def leave_word(spec: InstanceSpec) -> None:
    """Before `create`: write down what is about to be made. Blocks; no fsync, for a reboot clears up by itself."""
    path = Path(spec.directory) / _SPEC
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(msgspec.json.encode(spec))
    temporary.rename(path)


def read_word(directory: str) -> InstanceSpec | None:
    """What was about to be made there. Blocks."""
    with suppress(FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return msgspec.json.decode((Path(directory) / _SPEC).read_bytes(), type=InstanceSpec)
    return None


async def clear_half_made(driver: Driver, directory: str) -> None:
    """Remove what an attempt without a handle left. Repeatable; nothing there is fine."""
    spec = await in_thread(read_word, directory)
    if spec is None:
        return
    try:
        await driver.delete(await driver.create(spec))
    except (InsulaError, OSError) as fault:  # a create that fails has cleared up after itself
        log.debug("a half-made instance could not be made again", extra={"instance": spec.id}, exc_info=fault)
