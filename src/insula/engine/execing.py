"""`docker exec`: record, run, resize and wait for processes beside an instance's first one."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Sequence

import msgspec

from insula.drivers.driver import Capability, KeepsExecs, Streams
from insula.engine.checks import need
from insula.engine.contract import Exec
from insula.engine.execs import Execution
from insula.engine.lifecycle import refuse_unless_running
from insula.engine.links import environment
from insula.engine.names import new_id
from insula.engine.parts import Parts
from insula.engine.resident import Resident
from insula.engine.resolve import Surroundings, exec_process, first_process, hostname_of
from insula.engine.signals import parse_signal
from insula.engine.users import Accounts, look_up, read_accounts
from insula.errors import Conflict, HostFault, InsulaError, Invalid
from insula.images.contract import ImageConfig
from insula.model.instance import Process
from insula.tasks import in_thread

_CANNOT_RUN = 126  # as a shell says it


async def create(parts: Parts, resident: Resident, process: Process, *, user: str, env: Sequence[str]) -> Exec:
    """Record it. Raises Conflict (not running, paused), Invalid (no command), Unsupported."""
    need(resident.driver, Capability.EXEC)
    if resident.restarting:
        raise Conflict(f"Container {resident.id} is restarting, wait until the container is running")
    refuse_unless_running(resident.entry)
    if resident.entry.paused:
        raise Conflict(f"container {resident.id} is paused, unpause the container before exec")
    if not process.args:
        raise Invalid("No exec command specified", field="process.args")
    try:
        resolved, fault = await _resolve(parts, resident, process, user, tuple(env)), None
    except Invalid as unknown:  # told when it is started, as with dockerd
        resolved, fault = process, unknown
    execution = Execution(new_id(), resident.id, resolved, fault)
    parts.executions.add(execution)
    parts.say(resident, f"exec_create: {_words(process)}", execID=execution.id)
    return execution.view()


def _words(process: Process) -> str:
    """As the Docker Engine joins them: a program without arguments is followed by a space."""
    return f"{process.args[0]} {' '.join(process.args[1:])}"


async def _resolve(parts: Parts, resident: Resident, process: Process, user: str, env: tuple[str, ...]) -> Process:
    config = resident.entry.config
    accounts = await in_thread(read_accounts, resident.entry.rootfs) if resident.entry.rootfs else Accounts()
    around = Surroundings(
        id=resident.id,
        directory="",
        log_path="",
        image=resident.image.config if resident.image else ImageConfig(),
        accounts=accounts,
        link_env=environment(parts, resident),
        hostname=hostname_of(config, resident.id, host=parts.hostname),
    )
    first = first_process(config, around)
    home = look_up(config.user or around.image.user, accounts, config.groups).home
    asked = look_up(user, accounts) if user else None
    return exec_process(process, first=first, home=home, user=asked, env=env)


async def start(parts: Parts, exec_id: str) -> Streams:
    """Run it; returns its streams, from its first byte on. Raises NotFound, Conflict, HostFault (with Docker's code)."""
    execution = parts.executions.get(exec_id)
    resident = parts.find(execution.instance)
    if execution.started:
        raise Conflict(f"exec {execution.id} has already been started")
    refuse_unless_running(resident.entry)
    if resident.entry.paused:
        raise Conflict(f"container {resident.id} is paused, unpause the container before exec")
    execution.started = True
    if execution.fault is not None:
        execution.end(_CANNOT_RUN)
        raise HostFault(execution.fault.message, code=_CANNOT_RUN)
    parts.say(resident, f"exec_start: {_words(execution.process)}", execID=execution.id)
    try:
        execution.handle = await resident.driver.exec(resident.handle, execution.id, execution.process)
    except BaseException as fault:
        code = fault.code if isinstance(fault, HostFault) else None
        execution.end(code if code in (_CANNOT_RUN, 127) else _CANNOT_RUN)
        raise
    parts.tasks.spawn(_watch(parts, resident, execution), f"exec {execution.id[:12]}")
    return execution.streams


async def take_back(parts: Parts, resident: Resident) -> None:
    """After a restart of Insula: execs that go on are known again, and those that ended meanwhile with how they did."""
    if not isinstance(resident.driver, KeepsExecs):
        return
    for id, process, handle in await resident.driver.execs(resident.handle):
        execution = Execution(id, resident.id, process)
        execution.started, execution.handle = True, handle
        parts.executions.add(execution)
        parts.tasks.spawn(_watch(parts, resident, execution), f"exec {id[:12]}")


async def let_go(starting: Awaitable[Streams]) -> None:
    """Whoever asked for it has left while it was started: it gets an end of file and goes on without anybody."""
    with contextlib.suppress(InsulaError):
        streams = await starting
        try:
            await streams.close_stdin()
        finally:
            await streams.close()


async def _watch(parts: Parts, resident: Resident, execution: Execution) -> None:
    assert execution.handle is not None
    try:
        exit = await execution.handle.wait()
        execution.end(exit.code)
    finally:
        if not execution.ended.is_set():
            execution.end(255)
    parts.say(resident, "exec_die", execID=execution.id, exitCode=str(exit.code))


async def resize(parts: Parts, exec_id: str, width: int, height: int) -> None:
    """Set its terminal's size; before the start it begins with it. Raises NotFound."""
    execution = parts.executions.get(exec_id)
    if execution.handle is None:
        execution.process = msgspec.structs.replace(execution.process, width=width, height=height)
    elif not execution.ended.is_set():
        await execution.handle.resize(width, height)


async def kill(parts: Parts, exec_id: str, signal: str) -> None:
    """Signal it; one that does not run is left alone. Raises NotFound, Invalid."""
    execution, number = parts.executions.get(exec_id), parse_signal(signal)
    if execution.handle is not None and not execution.ended.is_set():
        await execution.handle.kill(number)


async def wait(parts: Parts, exec_id: str) -> int:
    """Its exit code. Raises NotFound."""
    execution = parts.executions.get(exec_id)
    await execution.ended.wait()
    assert execution.exit_code is not None
    return execution.exit_code
