"""After a restart of Insula, before any other call: take back what runs, and finish or undo what was half done.

For each stage that an entry may be in there is one thing to do, see `_BY_STAGE`. All instances are worked on at the same
time; what one of them fails at is logged and does not keep the others, or the node, from coming up.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from insula import clock
from insula.drivers.driver import Exit, Phase, Status
from insula.engine import execing, sandboxes
from insula.engine.attaching import drop_strays
from insula.engine.controls import finish_stop, remove
from insula.engine.ending import Ending, clear_driver, clear_network, clear_shm, leave_volumes, let_go
from insula.engine.health import check_for
from insula.engine.healthrules import begun
from insula.engine.leftovers import clear_half_made, read_word
from insula.engine.lifecycle import Verb
from insula.engine.parts import Parts
from insula.engine.records import BUILD, Entry, SandboxEntry, Stage
from insula.engine.resident import Resident
from insula.engine.restarting import wants_start_on_boot
from insula.engine.sources import unpin_all
from insula.engine.steps import Plan, Step, tear_down
from insula.engine.supervising import LOST, ended, plan_restart, ran_s, removal, watch
from insula.errors import InsulaError, NotFound
from insula.host.rmtree import remove_tree
from insula.images.contract import Image
from insula.model.instance import InstanceSpec
from insula.tasks import in_thread

log = logging.getLogger(__name__)
_AT_ONCE = 32


async def recover(parts: Parts) -> None:
    """Bring memory and kernel into agreement with the ledger. Raises HostFault when the ledger cannot be read."""
    entries, boxes = await parts.ledger.instances(), await parts.ledger.sandboxes()
    images = await _images(parts, {entry.image for entry in entries if entry.image})
    for entry in entries:
        parts.names.take(entry.name, entry.id)
        parts.residents[entry.id] = Resident(
            entry, parts.driver(entry.config.driver), parts.ledger, images.get(entry.image)
        )
    await asyncio.gather(
        parts.images.recover(),
        in_thread(unpin_all, parts.paths.subpaths),
        parts.volumes.recover(_volume_users(entry for entry in entries if entry.boot_id)),
        parts.networks.recover([*(entry.id for entry in entries if entry.boot_id), *(box.id for box in boxes)]),
    )
    await in_thread(remove_tree, parts.paths.building, ignore_errors=True)
    await _each([sandboxes.recover(parts, box) for box in boxes], "taking back a sandbox failed")
    await _each([_one(parts, parts.residents[entry.id]) for entry in entries], "taking back an instance failed")
    await _orphans(parts, entries, boxes)


def _volume_users(entries: Iterable[Entry]) -> dict[str, list[str]]:
    users: dict[str, list[str]] = {}
    for entry in entries:
        for mount in entry.mounts:
            if mount.volume:
                users.setdefault(mount.volume, []).append(entry.id)
    return users


async def _images(parts: Parts, ids: set[str]) -> dict[str, Image]:
    found = {}
    for id in ids:
        with suppress(NotFound):  # the disk has lost it: the instance can be looked at and removed, not started
            found[id] = await parts.images.held(id)
    return found


async def _each(works: Sequence[Awaitable[None]], sentence: str) -> None:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(work: Awaitable[None]) -> None:
        async with limit:
            await work

    for result in await asyncio.gather(*(one(work) for work in works), return_exceptions=True):
        if isinstance(result, BaseException):
            log.error(sentence, exc_info=result)


async def _one(parts: Parts, resident: Resident) -> None:
    await _BY_STAGE[resident.entry.stage](parts, resident)
    if resident.entry.config.owner == BUILD and resident.id in parts.residents:  # its build has died
        parts.tasks.spawn(remove(parts, resident, force=True, volumes=True), f"remove {resident.id[:12]}")


# --- by stage ---------------------------------------------------------------------------------------------------


async def _creating(parts: Parts, resident: Resident) -> None:
    """Nobody was told of it: away with it."""
    await removal(parts, resident, volumes=True)


async def _created(parts: Parts, resident: Resident) -> None:
    """Nothing of it runs."""


async def _starting(parts: Parts, resident: Resident) -> None:
    """It runs: then the start succeeded, only the note is missing. Else the start is undone; one that a policy had begun is
    begun again."""
    status = await _ask(resident)
    if status.phase in (Phase.RUNNING, Phase.PAUSED):
        started_at, health = clock.rfc3339_nano(clock.now()), begun(check_for(resident), resident.entry.health)
        await resident.save(Verb.STARTED, pid=status.pid, started_at=started_at, exit_code=0, health=health)
        await _rejoin(parts, resident, status)
        return
    if status.phase is Phase.EXITED and status.exit is not None and resident.entry.boot_id == parts.boot_id:
        await resident.save(started_at=status.exit.finished_at)
        await ended(parts, resident, status.exit)
        return
    by_policy = resident.entry.restart_count > 0
    await tear_down(UNDO_START, Ending(parts, resident), f"undoing the start of {resident.id}")
    await resident.save(Verb.UNDO, handle=None, netns="", boot_id="")
    resident.settled.set()
    resident.silent.set()
    if by_policy:
        plan_restart(parts, resident, ran_s=0.0)
    elif resident.entry.config.auto_remove and resident.entry.finished_at:
        await removal(parts, resident, volumes=True)


async def _running(parts: Parts, resident: Resident) -> None:
    """Still there: watch it again. Ended meanwhile: with its true exit code. Gone with a reboot: as if killed by it."""
    status = await _ask(resident)
    if status.phase in (Phase.RUNNING, Phase.PAUSED):
        await _rejoin(parts, resident, status)
    else:
        await ended(parts, resident, status.exit or Exit(code=LOST, message="the machine was restarted"))


async def _ask(resident: Resident) -> Status:
    if resident.entry.handle is None:
        return Status(phase=Phase.GONE)
    try:
        return await resident.driver.recover(resident.entry.handle)
    except InsulaError as fault:
        log.error("a driver cannot find an instance", extra={"instance": resident.id}, exc_info=fault)
        return Status(phase=Phase.EXITED, exit=Exit(code=LOST, message=fault.message))


async def _rejoin(parts: Parts, resident: Resident, status: Status) -> None:
    resident.endpoints = tuple(await parts.networks.endpoints(owner=resident.id))
    resident.published = tuple(await parts.networks.published(resident.id))
    await drop_strays(parts, resident)
    paused = status.phase is Phase.PAUSED
    if paused and not resident.entry.paused and resident.entry.config.machine is None:
        await resident.driver.resume(
            resident.handle
        )  # frozen for a commit that was cut short: nobody else would thaw it
        paused = False
    if resident.entry.paused != paused or resident.entry.pid != status.pid:
        await resident.save(paused=paused, pid=status.pid)
    watch(parts, resident)
    await execing.take_back(parts, resident)
    if resident.entry.stopping is not None:
        parts.tasks.spawn(finish_stop(parts, resident), f"stop {resident.id[:12]}")


async def _ending(parts: Parts, resident: Resident) -> None:
    """Its end is on disk, its clearing up may not have been finished."""
    if resident.entry.config.auto_remove:
        await removal(parts, resident, volumes=True)
        return
    with suppress(InsulaError):
        await let_go(parts, resident)
    resident.settled.set()
    resident.silent.set()
    await _exited(parts, resident)


async def _exited(parts: Parts, resident: Resident) -> None:
    """At rest, unless its policy wants it back."""
    entry = resident.entry
    if entry.config.auto_remove:
        await removal(parts, resident, volumes=True)
    elif wants_start_on_boot(
        entry.config.restart,
        exit_code=entry.exit_code,
        user_stopped=entry.user_stopped,
        restart_count=entry.restart_count,
        has_run=bool(entry.started_at),
    ):
        plan_restart(parts, resident, ran_s=ran_s(resident))


async def _removing(parts: Parts, resident: Resident) -> None:
    await removal(parts, resident, volumes=resident.entry.remove_volumes)


_BY_STAGE: dict[Stage, Callable[[Parts, Resident], Awaitable[None]]] = {
    Stage.CREATING: _creating,
    Stage.CREATED: _created,
    Stage.STARTING: _starting,
    Stage.RUNNING: _running,
    Stage.ENDING: _ending,
    Stage.EXITED: _exited,
    Stage.REMOVING: _removing,
}


# --- half-done starts and orphans -------------------------------------------------------------------------------


async def _undo_root(work: Ending) -> None:
    if work.resident.entry.started_at:
        await work.parts.images.unmount(work.resident.id, remove=False)


UNDO_START: Plan[Ending] = (
    (Step("undo.driver", clear_driver),),
    (
        Step("undo.network", clear_network),
        Step("undo.root", _undo_root),
        Step("undo.volumes", leave_volumes),
        Step("undo.shm", clear_shm),
    ),
)


async def _orphans(parts: Parts, entries: Sequence[Entry], boxes: Sequence[SandboxEntry]) -> None:
    """Folders that no entry names: after a loss of the ledger's tail. A driver's folder may still have a process behind it."""
    known = {entry.id for entry in entries} | {box.id for box in boxes}
    for path in await in_thread(_strangers, parts.paths.bundles, known):
        await _orphan_of_driver(parts, path)
    for path in await in_thread(_strangers, parts.paths.instances, known):
        await _orphan_of_driver(parts, path / "machine")
        await parts.images.unmount(path.name, remove=True)
        await parts.volumes.drop_disks(path.name)
    for folder in (parts.paths.instances, parts.paths.sandboxes):
        for path in await in_thread(_strangers, folder, known):
            await in_thread(sandboxes.drop_shared, path)


async def _orphan_of_driver(parts: Parts, path: Path) -> None:
    spec = await in_thread(read_word, str(path))
    driver = parts.drivers.get(_driver_of(spec))
    if spec is not None and driver is not None:
        await clear_half_made(driver, str(path))
        await parts.images.unmount(spec.id, remove=True)
    await in_thread(shutil.rmtree, path, ignore_errors=True)


def _driver_of(spec: InstanceSpec | None) -> str:
    """Whose folder it is, by what was about to be made in it."""
    if spec is None or (spec.machine is None and spec.guest is None):
        return "oci"
    return "vm" if spec.machine is not None else "microvm"


def _strangers(folder: Path, known: set[str]) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.name not in known]
    except FileNotFoundError:
        return []
