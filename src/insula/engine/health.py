"""Running health checks: one task for each running instance that has a check, and none for the others.

A check is an exec like any other. What it finds is in memory at once and in the ledger when the status changes, so an instance
that stays as it is causes no writes. A restart of Insula goes on from the last status that was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec

from insula import clock
from insula.drivers.driver import Capability
from insula.engine import execing
from insula.engine.contract import HealthResult
from insula.engine.healthrules import MOST_OUTPUT, NOT_RUN, Check, check_of, judged, output_text, stopped, timeout_text
from insula.engine.parts import Parts
from insula.engine.resident import Resident
from insula.errors import HostFault, InsulaError
from insula.images.contract import ImageConfig
from insula.model.instance import Process
from insula.tasks import finish

log = logging.getLogger(__name__)
_END_S = 30.0  # from SIGKILL to the end of a check


def check_for(resident: Resident) -> Check | None:
    """The check that is run for it; None where there is none, or where its level cannot run more processes inside."""
    if Capability.EXEC not in resident.driver.capabilities:
        return None
    return check_of(resident.entry.config, resident.image.config if resident.image else ImageConfig())


@contextlib.asynccontextmanager
async def checked(parts: Parts, resident: Resident) -> AsyncIterator[None]:
    """While this is open the instance is checked, except while it is paused."""
    resume(parts, resident)
    try:
        yield
    finally:
        if resident.checker is not None:
            await finish(resident.checker)
            resident.checker = None


def resume(parts: Parts, resident: Resident) -> None:
    """Begin, or go on after a pause."""
    check = check_for(resident)
    if check is not None and not resident.entry.paused and (resident.checker is None or resident.checker.done()):
        resident.checker = parts.tasks.spawn(_go_on(parts, resident, check), f"health {resident.id[:12]}")


async def suspend(resident: Resident) -> None:
    """It is being paused: nothing inside could answer. What is not checked counts as unhealthy, as with dockerd."""
    checker, resident.checker = resident.checker, None
    if checker is not None:
        await finish(checker)
        await resident.save(health=stopped(resident.entry.health))


async def _go_on(parts: Parts, resident: Resident, check: Check) -> None:
    while True:
        await asyncio.sleep(check.pause_s(resident.entry.health, running_s=_running_s(resident)))
        result = await _once(parts, resident, check)
        await _take(parts, resident, check, result)


def _running_s(resident: Resident) -> float:
    return (clock.now() - clock.parse_rfc3339(resident.entry.started_at)).total_seconds()


async def _take(parts: Parts, resident: Resident, check: Check, result: HealthResult) -> None:
    old = resident.entry.health
    new = judged(check, old, result, started_at=resident.entry.started_at)
    if new.status == old.status:
        resident.entry = msgspec.structs.replace(resident.entry, health=new)
        return
    try:
        await resident.save(health=new)
    except HostFault as fault:  # a full disk: what is in memory counts
        log.warning("a state of health cannot be written down", extra={"instance": resident.id}, exc_info=fault)
    parts.say(resident, f"health_status: {new.status}")


async def _once(parts: Parts, resident: Resident, check: Check) -> HealthResult:
    """Run the check. A fault of its start is a result too."""
    start = clock.rfc3339_nano(clock.now())
    try:
        code, output = await _run(parts, resident, check)
    except (InsulaError, OSError) as fault:
        code, output = NOT_RUN, str(fault)
    return HealthResult(start=start, end=clock.rfc3339_nano(clock.now()), exit_code=code, output=output)


async def _run(parts: Parts, resident: Resident, check: Check) -> tuple[int, str]:
    made = await execing.create(parts, resident, Process(args=check.args), user="", env=())
    output = bytearray()
    try:
        async with asyncio.timeout(check.timeout_s):
            code = await _to_its_end(parts, made.id, output)
        return code, output_text(bytes(output))
    except TimeoutError:
        await execing.kill(parts, made.id, "KILL")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(execing.wait(parts, made.id), _END_S)
        return NOT_RUN, timeout_text(check.timeout_s, output_text(bytes(output)))
    except asyncio.CancelledError:
        await execing.kill(parts, made.id, "KILL")
        raise
    finally:
        parts.executions.drop(made.id)


async def _to_its_end(parts: Parts, exec_id: str, output: bytearray) -> int:
    """The exit code; what is written beyond what is kept is read and dropped."""
    starting = asyncio.ensure_future(execing.start(parts, exec_id))
    try:
        streams = await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(InsulaError):
            await (await starting).close()
        raise
    try:
        async for _, data in streams.read():
            output += data[: max(0, MOST_OUTPUT + 1 - len(output))]
    finally:
        await streams.close()
    return await execing.wait(parts, exec_id)
