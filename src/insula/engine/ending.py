"""What follows an end: letting go of what the instance held, and removing it. Every step is idempotent and all of them run."""

from __future__ import annotations

import shutil
from contextlib import suppress

import msgspec

from insula import clock
from insula.drivers.driver import Exit
from insula.engine.healthrules import stopped
from insula.engine.joining import tell_networks
from insula.engine.leftovers import clear_half_made
from insula.engine.lifecycle import Verb
from insula.engine.parts import Parts
from insula.engine.records import Stage
from insula.engine.resident import Resident
from insula.engine.sharing import drop_shm
from insula.engine.steps import Plan, Step, tear_down
from insula.errors import HostFault, NotFound
from insula.tasks import in_thread


class Ending(msgspec.Struct):
    """One tear-down under way."""

    parts: Parts
    resident: Resident


async def record_end(resident: Resident, exit: Exit) -> None:
    """First of all, and on disk: how it ended. A crash after this never makes it run again by mistake."""
    await resident.save(
        Verb.END,
        pid=0,
        paused=False,
        stopping=None,
        health=stopped(resident.entry.health),
        exit_code=exit.code,
        oom_killed=exit.oom_killed,
        error=exit.message,
        finished_at=exit.finished_at or clock.rfc3339_nano(clock.now()),
    )


async def let_go(parts: Parts, resident: Resident) -> None:
    """After an end: free what it held, keep its root file system and log. Raises what failed, after trying all."""
    try:
        await tear_down(END, Ending(parts, resident), f"clearing up after {resident.id}")
    except BaseException:
        await resident.save(boot_id=parts.boot_id)  # so that its removal, or the next start, tries again
        raise


async def remove(parts: Parts, resident: Resident) -> None:
    """Delete all of it. Raises what failed, after trying all; it can be called again."""
    await resident.save(Verb.REMOVE)
    await tear_down(REMOVE, Ending(parts, resident), f"removing {resident.id}")
    await tear_down(FORGET, Ending(parts, resident), f"forgetting {resident.id}")
    parts.say(resident, "destroy")
    resident.tell_removed()


# --- the steps --------------------------------------------------------------------------------------------------


async def clear_driver(work: Ending) -> None:
    """The process, or what a start that was killed left of one, and the driver's folder. A machine's outlives its runs."""
    if not work.resident.entry.boot_id:  # not started since it was last cleared up
        return
    if work.resident.end_unwritten and work.resident.entry.stage is not Stage.REMOVING:
        raise HostFault(
            f"how {work.resident.id} ended could not be written down, so what its driver knows of it is kept"
        )
    directory = work.parts.directory(work.resident.entry)
    if work.resident.entry.handle is not None:
        await work.resident.driver.delete(work.resident.entry.handle)
    else:
        await clear_half_made(work.resident.driver, directory)
    if work.resident.entry.config.machine is None:
        await in_thread(shutil.rmtree, directory, ignore_errors=True)


async def clear_network(work: Ending) -> None:
    """Ports, interfaces and the namespace."""
    if not work.resident.entry.boot_id:
        return
    networks, id = work.parts.networks, work.resident.id
    await networks.unpublish(id)
    await networks.disconnect(id)
    await networks.drop_namespace(id)
    await tell_networks(work.parts, id, work.resident.endpoints, "disconnect")
    work.resident.endpoints, work.resident.published = (), ()


async def clear_shm(work: Ending) -> None:
    """The shared memory of one that others could join."""
    if work.resident.entry.config.ipc_mode == "shareable":
        await in_thread(drop_shm, work.parts.folder(work.resident.id) / "shm")


async def _unmount(work: Ending) -> None:
    if work.resident.root_users == 0:
        await work.parts.images.unmount(work.resident.id, remove=False)


async def _settle(work: Ending) -> None:
    await work.resident.save(Verb.SETTLE, handle=None, netns="", boot_id="")


async def _remove_root(work: Ending) -> None:
    await work.parts.images.unmount(work.resident.id, remove=True)


async def leave_volumes(work: Ending) -> None:
    """What the options of volumes had mounted for it."""
    await work.parts.volumes.leave(work.resident.id)


async def _volumes(work: Ending) -> None:
    """Anonymous volumes go with an instance that was to leave nothing; others stay, as with Docker."""
    await leave_volumes(work)
    if work.resident.entry.remove_volumes:
        for name in work.resident.entry.anonymous_volumes:
            with suppress(NotFound):
                await work.parts.volumes.remove(name)


async def _disks(work: Ending) -> None:
    if work.resident.entry.config.machine is not None:
        await work.parts.volumes.drop_disks(work.resident.id)


async def _folder(work: Ending) -> None:
    await clear_shm(work)
    await in_thread(shutil.rmtree, work.parts.folder(work.resident.id), ignore_errors=True)


async def _forget(work: Ending) -> None:
    parts, resident = work.parts, work.resident
    await parts.ledger.delete("instances", resident.id)
    parts.residents.pop(resident.id, None)
    parts.names.free(resident.entry.name, resident.id)
    parts.executions.forget(resident.id)
    resident.attachments.abandon()
    resident.silent.set()
    resident.settled.set()


END: Plan[Ending] = (
    (Step("end.driver", clear_driver), Step("end.network", clear_network)),
    (Step("end.unmount", _unmount), Step("end.volumes", leave_volumes), Step("end.shm", clear_shm)),
    (Step("end.settle", _settle),),
)

REMOVE: Plan[Ending] = (
    (
        Step("remove.driver", clear_driver),
        Step("remove.network", clear_network),
        Step("remove.root", _remove_root),
        Step("remove.volumes", _volumes),
        Step("remove.disks", _disks),
        Step("remove.folder", _folder),
    ),
)

FORGET: Plan[Ending] = ((Step("remove.forget", _forget),),)
