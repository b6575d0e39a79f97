"""The verbs that change how an instance runs. Each takes the resident's lock for as long as it changes the stage."""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals

import msgspec

from insula.drivers.driver import Capability
from insula.engine import health
from insula.engine.bounds import check_resources
from insula.engine.checks import need
from insula.engine.lifecycle import refuse_remove, refuse_start, refuse_unless_running
from insula.engine.names import check_name
from insula.engine.parts import Parts
from insula.engine.records import Stage, StopWish
from insula.engine.resident import Resident
from insula.engine.resolve import merge_resources, stop_signal_of
from insula.engine.signals import parse_signal
from insula.engine.starting import start as start_steps
from insula.engine.supervising import cancel_restart, removal, watch
from insula.errors import Conflict, Invalid
from insula.images.contract import ImageConfig
from insula.model.instance import Resources, RestartPolicy
from insula.tasks import finish

_KILL_GRACE_S = 10.0
_SETTLE_S = 60.0


async def start(parts: Parts, resident: Resident) -> None:
    """Run it. A running one is left alone. Raises Conflict, HostFault."""
    async with resident.lock:
        refuse_start(resident.entry)
        if resident.running:
            return
        if resident.restarting:
            cancel_restart(resident)
        await resident.settled.wait()
        await _start(parts, resident)


async def _start(parts: Parts, resident: Resident) -> None:
    """A start by a user: the count of restarts and their pauses begin anew."""
    refuse_start(resident.entry)
    resident.restart_delay_s = 0.0
    await resident.save(restart_count=0)
    try:
        await start_steps(parts, resident)
    except BaseException:
        if resident.entry.config.auto_remove:
            await removal(parts, resident, volumes=True)
        raise
    watch(parts, resident)


async def stop(parts: Parts, resident: Resident, *, timeout_s: float | None, signal: str) -> None:
    """Ask it to end, then kill it. One that does not run is left alone."""
    number = parse_signal(signal or stop_signal_of(resident.entry.config, _image_config(resident)))
    grace_s = _grace(parts, resident, timeout_s)
    async with resident.lock:
        if resident.restarting:
            await resident.save(user_stopped=True)
            cancel_restart(resident)
        elif resident.running:
            await _stop(parts, resident, number, grace_s)
        elif resident.entry.stage is Stage.ENDING:  # of itself: its policy must not bring it back
            await resident.save(user_stopped=True)
        await resident.settled.wait()
        if resident.restarting:
            cancel_restart(resident)


def _grace(parts: Parts, resident: Resident, timeout_s: float | None) -> float:
    """Seconds to wait before killing; a negative one waits as long as it takes."""
    if timeout_s is None:
        timeout_s = resident.entry.config.stop_timeout_s
    if timeout_s is None:
        timeout_s = parts.settings.stop_timeout_s
    return timeout_s if timeout_s >= 0 else float(10**9)


async def _stop(parts: Parts, resident: Resident, number: int, grace_s: float) -> None:
    await resident.save(user_stopped=True, stopping=StopWish(signal=number, grace_s=grace_s))
    await finish_stop(parts, resident)
    parts.say(resident, "stop")


async def finish_stop(parts: Parts, resident: Resident) -> None:
    """Carry out the stop that the entry wishes; recovery calls it again after a crash."""
    wish = resident.entry.stopping
    if wish is None:
        return
    handle = resident.handle
    if resident.entry.paused:
        with contextlib.suppress(Conflict):  # it has ended meanwhile
            await resident.driver.resume(handle)
        await resident.save(paused=False)
    parts.say(resident, "kill", signal=str(wish.signal))
    telling = asyncio.create_task(_tell_force(parts, resident, wish), name=f"engine/grace {resident.id[:12]}")
    try:
        await resident.driver.stop(handle, wish.signal, wish.grace_s)
        await resident.settled.wait()
    finally:
        await finish(telling)


async def _tell_force(parts: Parts, resident: Resident, wish: StopWish) -> None:
    """The event of the kill that follows a grace that was not used."""
    await asyncio.sleep(wish.grace_s)
    if resident.running and wish.signal != signals.SIGKILL:
        parts.say(resident, "kill", signal=str(int(signals.SIGKILL)))


def _image_config(resident: Resident) -> ImageConfig:
    return resident.image.config if resident.image else ImageConfig()


async def kill(parts: Parts, resident: Resident, signal: str) -> None:
    """Signal it, also while a stop is under way; SIGKILL returns when it has ended, as with dockerd. Raises Conflict when it does
    not run."""
    number = parse_signal(signal)
    entry = resident.entry
    if entry.stage is not Stage.RUNNING:
        raise Conflict(f"cannot kill container: {entry.name}: container {entry.id} is not running")
    stops = {
        int(signals.SIGKILL),
        int(signals.SIGTERM),
        parse_signal(stop_signal_of(entry.config, _image_config(resident))),
    }
    if number in stops and not entry.user_stopped:
        await resident.save(user_stopped=True)
    settled = resident.settled
    await resident.driver.kill(resident.handle, number)
    parts.say(resident, "kill", signal=str(number))
    if number == signals.SIGKILL:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(settled.wait(), _SETTLE_S)


async def restart(parts: Parts, resident: Resident, *, timeout_s: float | None) -> None:
    """Stop and start, without the removal that an automatic one would do in between."""
    number = parse_signal(stop_signal_of(resident.entry.config, _image_config(resident)))
    async with resident.lock:
        refuse_start(msgspec.structs.replace(resident.entry, paused=False))
        resident.keep = True
        try:
            if resident.restarting:
                cancel_restart(resident)
            if resident.running:
                await _stop(parts, resident, number, _grace(parts, resident, timeout_s))
            await resident.settled.wait()
        finally:
            resident.keep = False
        await _start(parts, resident)
    parts.say(resident, "restart")


async def pause(parts: Parts, resident: Resident) -> None:
    """Freeze it. Raises Conflict, Unsupported."""
    need(resident.driver, Capability.PAUSE)
    async with resident.lock:
        refuse_unless_running(resident.entry)
        if resident.entry.paused:
            raise Conflict(f"container {resident.id} is already paused")
        await health.suspend(resident)
        try:
            await resident.driver.pause(resident.handle)
            await resident.save(paused=True)
        finally:
            health.resume(parts, resident)  # where it could not be paused
    parts.say(resident, "pause")


async def unpause(parts: Parts, resident: Resident) -> None:
    """Thaw it. Raises Conflict, Unsupported."""
    need(resident.driver, Capability.PAUSE)
    async with resident.lock:
        if not resident.entry.paused:
            raise Conflict(f"container {resident.id} is not paused")
        await resident.driver.resume(resident.handle)
        await resident.save(paused=False)
        health.resume(parts, resident)
    parts.say(resident, "unpause")


async def reset(parts: Parts, resident: Resident) -> None:
    """Press a machine's reset button. Raises Conflict, Unsupported."""
    need(resident.driver, Capability.RESET)
    async with resident.lock:
        refuse_unless_running(resident.entry)
        await resident.driver.reset(resident.handle)
    parts.say(resident, "reset")


async def remove(parts: Parts, resident: Resident, *, force: bool, volumes: bool) -> None:
    """Delete it. Raises Conflict while it runs, unless forced."""
    if resident.removal is not None and not resident.removal.done():
        if not force:
            raise Conflict(f"removal of container {resident.entry.name} is already in progress")
        await removal(parts, resident, volumes=volumes)
        return
    if not force:
        refuse_remove(resident.entry, restarting=resident.restarting)
    elif resident.running:  # without the lock: a stop with a long grace may hold it
        await _kill_now(parts, resident)
    async with resident.lock:
        if resident.restarting:
            cancel_restart(resident)
        if resident.running:
            if not force:
                refuse_remove(resident.entry, restarting=False)
            await _kill_now(parts, resident)
        await resident.settled.wait()
        if resident.id in parts.residents:
            await removal(parts, resident, volumes=volumes)


async def _kill_now(parts: Parts, resident: Resident) -> None:
    await resident.save(user_stopped=True)
    parts.say(resident, "kill", signal=str(int(signals.SIGKILL)))
    await resident.driver.stop(resident.handle, signals.SIGKILL, _KILL_GRACE_S)
    async with asyncio.timeout(_SETTLE_S):
        await resident.settled.wait()


async def halt(parts: Parts, resident: Resident, grace_s: float) -> None:
    """The node goes down: end it and let go of what it holds. It stays, and its restart policy says whether it comes back.
    A container gets its stop signal and `grace_s` seconds; a machine, which would take longer to shut down than anybody
    waits for, has its plug pulled. Raises what failed."""
    if resident.running:  # without the lock: a stop with a long grace may hold it
        await _halt_now(resident, grace_s)
    async with resident.lock:
        if resident.restarting:
            cancel_restart(resident)
        if resident.running:  # a start was under way
            await _halt_now(resident, grace_s)
        await resident.settled.wait()
        if resident.id in parts.residents:
            await parts.images.unmount(resident.id, remove=False)


async def _halt_now(resident: Resident, grace_s: float) -> None:
    config, handle = resident.entry.config, resident.handle
    asks = grace_s > 0 and config.machine is None
    number = parse_signal(stop_signal_of(config, _image_config(resident))) if asks else int(signals.SIGKILL)
    if asks and resident.entry.paused:
        with contextlib.suppress(Conflict):  # it has ended meanwhile
            await resident.driver.resume(handle)
    await resident.driver.stop(handle, number, grace_s if asks else 0)
    async with asyncio.timeout(_SETTLE_S):
        await resident.settled.wait()


async def rename(parts: Parts, resident: Resident, name: str) -> None:
    """Give it another name. Raises Conflict, Invalid."""
    if not name:
        raise Invalid("Neither old nor new names may be empty", field="name")
    async with resident.lock:
        old = resident.entry.name
        try:
            bare = check_name("/" + name.removeprefix("/"))
            if bare == old:
                raise Invalid("Renaming a container with the same name as its current name", field="name")
            parts.names.take(bare, resident.id)
        except (Invalid, Conflict) as fault:
            same = fault.message.startswith("Renaming")
            raise fault if same else type(fault)(f"Error when allocating new name: {fault.message}") from fault
        try:
            await resident.save(config=msgspec.structs.replace(resident.entry.config, name=bare))
        except BaseException:
            parts.names.free(bare, resident.id)
            raise
        parts.names.free(old, resident.id)
        if resident.endpoints:
            await parts.networks.rename(resident.id, aliases=[bare, resident.id[:12]])
    parts.say(resident, "rename", oldName=f"/{old}")


async def update(
    parts: Parts, resident: Resident, *, resources: Resources | None, restart: RestartPolicy | None
) -> None:
    """Change its envelope or restart policy. Raises Conflict, Invalid, Unsupported."""
    async with resident.lock:
        config = resident.entry.config
        if restart is not None:
            if config.auto_remove and restart.name != "no":
                raise Conflict(
                    f"Cannot update container {resident.id}: "
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                )
            config = msgspec.structs.replace(config, restart=restart)
        if resources is not None:
            config = msgspec.structs.replace(config, resources=merge_resources(config.resources, resources))
            check_resources(config.resources)
            if resident.running:
                need(resident.driver, Capability.UPDATE)
                await resident.driver.update(resident.handle, config.resources)
        await resident.save(config=config)
    parts.say(resident, "update")
