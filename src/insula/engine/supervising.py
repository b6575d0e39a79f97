"""Watching what runs: one task per instance waits for its end, clears up, and starts it again where its policy says so."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from insula import clock
from insula.drivers.driver import Exit
from insula.engine.ending import let_go, record_end, remove
from insula.engine.health import checked
from insula.engine.logkeeping import kept
from insula.engine.parts import Parts
from insula.engine.records import Stage
from insula.engine.resident import Resident
from insula.engine.restarting import next_delay_s, wants_restart
from insula.engine.starting import start
from insula.errors import HostFault, InsulaError

log = logging.getLogger(__name__)

LOST = 255  # what the Docker Engine says of a container whose end nobody saw


def watch(parts: Parts, resident: Resident) -> None:
    """Wait for its end from now on. Called once after each start, and after recovery for what still runs."""
    resident.settled.clear()
    resident.silent.clear()
    resident.supervisor = parts.tasks.spawn(_watch(parts, resident), f"watch {resident.id[:12]}")


async def _watch(parts: Parts, resident: Resident) -> None:
    async with kept(parts, resident), checked(parts, resident):
        exit = await _exit_of(resident)
    await ended(parts, resident, exit)


async def _exit_of(resident: Resident) -> Exit:
    """How it ended; a fault of the driver is an end too, of which nobody knows how."""
    try:
        return await resident.driver.wait(resident.handle)
    except InsulaError as fault:
        log.error("an instance was lost", extra={"instance": resident.id}, exc_info=fault)
        return Exit(code=LOST, message=fault.message)


async def ended(parts: Parts, resident: Resident, exit: Exit) -> None:
    """All that an end sets off, in order: record it, tell it, let go or remove, and plan the next start."""
    again = _again(parts, resident, exit)
    try:
        await _record(resident, exit)
        resident.silent.set()
        if resident.entry.config.auto_remove and not resident.keep:
            _say_end(parts, resident)
            await removal(parts, resident, volumes=True)
        else:
            await let_go(parts, resident)
    except Exception as fault:  # whatever it was: nobody may wait for ever
        log.error("clearing up after an instance failed", extra={"instance": resident.id}, exc_info=fault)
    finally:
        resident.silent.set()
        again = again and not resident.entry.user_stopped  # somebody may have stopped it meanwhile
        resident.restarting = again
        resident.settled.set()
    if resident.removal is None:
        _say_end(parts, resident)
    resident.tell_exit()
    if again:
        plan_restart(parts, resident, ran_s=ran_s(resident))


async def _record(resident: Resident, exit: Exit) -> None:
    """A full disk must not keep what ended from being cleared up: the next recovery learns of the end from the driver."""
    try:
        await record_end(resident, exit)
        resident.end_unwritten = False
    except HostFault as fault:
        resident.end_unwritten = True
        log.error("the end of an instance cannot be written down", extra={"instance": resident.id}, exc_info=fault)


def _say_end(parts: Parts, resident: Resident) -> None:
    if resident.entry.oom_killed:
        parts.say(resident, "oom")
    parts.say(resident, "die", exitCode=str(resident.entry.exit_code), execDuration=str(int(ran_s(resident))))


def _again(parts: Parts, resident: Resident, exit: Exit) -> bool:
    entry = resident.entry
    return not (parts.halting or resident.keep) and wants_restart(
        entry.config.restart,
        exit_code=exit.code,
        user_stopped=entry.user_stopped,
        restart_count=entry.restart_count,
    )


def ran_s(resident: Resident) -> float:
    """How long its last run lasted, in seconds."""
    try:
        times = [clock.parse_rfc3339(text) for text in (resident.entry.started_at, resident.entry.finished_at)]
    except ValueError:
        return 0.0
    return max(0.0, _between(times[0], times[1]))


def _between(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds()


# --- starting again ---------------------------------------------------------------------------------------------


def plan_restart(parts: Parts, resident: Resident, *, ran_s: float) -> None:
    """Start it again after the policy's pause."""
    resident.restarting = True
    resident.restart_delay_s = next_delay_s(resident.restart_delay_s, ran_s=ran_s)
    work = _restart_after(parts, resident, resident.restart_delay_s)
    resident.restart = parts.tasks.spawn(work, f"restart {resident.id[:12]}")


async def _restart_after(parts: Parts, resident: Resident, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    async with resident.lock:
        if not resident.restarting or resident.entry.stage not in (Stage.EXITED, Stage.CREATED):
            return
        try:
            await resident.save(restart_count=resident.entry.restart_count + 1)
            await start(parts, resident)
        except Exception as fault:
            log.warning("starting an instance again failed", extra={"instance": resident.id}, exc_info=fault)
            _failed_restart(parts, resident)
        else:
            resident.restarting = False
            watch(parts, resident)


def _failed_restart(parts: Parts, resident: Resident) -> None:
    """A start that fails counts as an exit: try again later where the policy allows it, else it rests."""
    resident.restarting = False
    if _again(parts, resident, Exit(code=resident.entry.exit_code)):
        plan_restart(parts, resident, ran_s=0.0)
    else:
        resident.tell_exit()


def cancel_restart(resident: Resident) -> None:
    """The user wants it stopped: no further start. The caller holds the lock, so none is under way."""
    if resident.restart is not None:
        resident.restart.cancel()
        resident.restart = None
    resident.restarting = False
    resident.tell_exit()


# --- removal ----------------------------------------------------------------------------------------------------


async def removal(parts: Parts, resident: Resident, *, volumes: bool) -> None:
    """Remove it, once: who comes later joins the removal under way. Raises what failed."""
    if resident.removal is None or resident.removal.done():
        work = _remove(parts, resident, volumes=volumes)
        resident.removal = parts.tasks.spawn(work, f"remove {resident.id[:12]}")
    await asyncio.shield(resident.removal)


async def _remove(parts: Parts, resident: Resident, *, volumes: bool) -> None:
    await resident.save(remove_volumes=volumes)
    await remove(parts, resident)
