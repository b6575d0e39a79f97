"""Level 3, the operating system: containers on runc or crun, each held by its own conmon.

Insula talks to the runtime only to make a container and to add processes; phases, signals, waits, counters and removal come
straight from the kernel (pidfd, control groups) and from the few files that conmon and the runtime keep. So a daemon that was
killed finds every container again from its handle, without a fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal as signals
from collections.abc import Sequence
from pathlib import Path

import msgspec

from insula import clock
from insula.drivers.driver import Capability, Exit, Handle, LogFormat, Phase, Probe, Stats, Status
from insula.drivers.oci import execs, faults, probing, spec, state, streams
from insula.drivers.oci import runtime as runtimes
from insula.drivers.oci.execs import HeldExec, RunningExec
from insula.drivers.oci.facts import HostFacts, collect, device_nodes
from insula.drivers.oci.resources import linux_resources
from insula.drivers.oci.runtime import Runtime
from insula.drivers.oci.state import Container, Data
from insula.drivers.oci.streams import AttachedStreams
from insula.errors import Conflict, HostFault, Unavailable, Unsupported
from insula.host import cgroups, cgroupstats, conmon, pidfd, spawn
from insula.host.cgroups import Group, Layout
from insula.host.conmon import Launch, RuntimeRefused, Started
from insula.host.pidfd import ProcessId
from insula.model.instance import InstanceSpec, Process, Resources
from insula.tasks import in_thread

DEFAULT_PARENT = "insula"
END_DEADLINE_S = 10.0  # from SIGKILL to conmon's own end
EXEC_END_S = 2.0


class OciDriver:
    """The `oci` driver. `runtime_dir` holds the runtime's state (volatile, as /run is) and belongs to this Insula alone;
    `cgroup_parent` is used for specs that name no other. `runtime` forces runc or crun, by name or path."""

    name = "oci"
    level = 3
    summary = "containers: namespaces and control groups, by runc or crun under conmon"
    log_format: LogFormat = "conmon"
    capabilities = frozenset(
        {Capability.ATTACH, Capability.EXEC, Capability.PAUSE, Capability.UPDATE, Capability.STATS, Capability.TOP}
    )

    def __init__(self, runtime_dir: Path, *, cgroup_parent: str = DEFAULT_PARENT, runtime: str | None = None) -> None:
        self._runtime_dir = runtime_dir
        self.parent = cgroup_parent.strip("/")
        self._forced = runtime
        self._chosen: Runtime | None = None
        self._found: Probe | None = None
        self._choosing = asyncio.Lock()
        self._layout: Layout | None = None
        self._facts: HostFacts | None = None
        self._streams: dict[str, set[AttachedStreams]] = {}
        self._execs: dict[str, set[HeldExec]] = {}

    # --- this host

    async def probe(self) -> Probe:
        """Run a real container with crun, then with runc; the first that works is used from now on, and the answer with it.
        What did not work is tried again when it is asked again: a package may have been installed."""
        async with self._choosing:
            if self._found is None or not self._found.available:
                self._found = await self._try_runtimes()
            return self._found

    async def _try_runtimes(self) -> Probe:
        found, chosen = await probing.probe(self._runtime_dir, self._forced, type(self))
        self._chosen = chosen or self._chosen
        return found

    def adopt(self, runtime: Runtime) -> None:
        """Use this runtime without trying it (the probe's own trial does)."""
        self._chosen = runtime

    async def close(self) -> None:
        """Let go of every stream and exec; containers go on."""
        for running in [item for group in self._execs.values() for item in group]:
            await running.let_go()
        for attached in [item for group in self._streams.values() for item in group]:
            attached.abandon()

    async def _runtime(self) -> Runtime:
        if self._chosen is None:
            notes = (await self.probe()).notes
            if self._chosen is None:
                raise Unavailable("No OCI runtime works on this host.", hint="; ".join(notes))
        return self._chosen

    def _host(self) -> tuple[Layout, HostFacts]:
        if self._layout is None or self._facts is None:
            self._layout = cgroups.detect()
            self._facts = collect(self._layout)
        return self._layout, self._facts

    def _container(self, handle: Handle) -> Container:
        return state.read_handle(handle, self._host()[0])

    def group_path(self, spec: InstanceSpec) -> str:
        """The control group of an instance: the parent that the spec names, else this driver's, then the id."""
        parent = self.parent if spec.cgroup_parent == DEFAULT_PARENT else spec.cgroup_parent.strip("/")
        return f"{parent}/{spec.id}"

    # --- life

    async def create(self, spec: InstanceSpec) -> Handle:
        """See the contract. Raises HostFault with dockerd's words and, in `code`, its exit code."""
        runtime = await self._runtime()
        preparing = asyncio.ensure_future(in_thread(self._prepare, spec, runtime))
        try:
            await asyncio.shield(preparing)
            started = await conmon.create(launch_plan(spec, runtime), tmpdir=str(self._runtime_dir))
        except BaseException as fault:
            await pidfd.settle(self._undo(spec, runtime, preparing))
            if isinstance(fault, RuntimeRefused):
                raise faults.refusal(fault.message, "create", fault.command) from fault
            raise
        return self._handle(spec, runtime, started)

    async def _undo(self, spec: InstanceSpec, runtime: Runtime, preparing: asyncio.Future[None]) -> None:
        """Leave nothing of a create that failed or was cancelled, once its thread is done."""
        await asyncio.wait({preparing})
        group = Group(layout=self._host()[0], path=self.group_path(spec))
        await in_thread(self._clear, Path(spec.directory), spec.id, runtime, group)

    def _handle(self, spec: InstanceSpec, runtime: Runtime, started: Started) -> Handle:
        process = started.process or ProcessId(started.pid, 0)
        monitor = started.monitor or ProcessId(0, 0)
        assert spec.process is not None
        data = Data(
            pid=process.pid,
            pid_start=process.start,
            monitor=monitor.pid,
            monitor_start=monitor.start,
            boot=pidfd.boot_id(),
            runtime=runtime.name,
            runtime_path=runtime.path,
            runtime_root=runtime.root,
            group=self.group_path(spec),
            tty=spec.process.tty,
            stdin=spec.process.open_stdin,
            closes_stdin=spec.process.stdin_once and not spec.process.tty,
        )
        return Handle(driver=self.name, id=spec.id, directory=spec.directory, data=msgspec.to_builtins(data))

    def _prepare(self, instance: InstanceSpec, runtime: Runtime) -> None:
        """Remove what a killed attempt left and write the bundle."""
        layout, facts = self._host()
        directory = Path(instance.directory)
        group = Group(layout=layout, path=self.group_path(instance))
        if (directory / "bundle").exists() or runtime.state(instance.id).exists():
            self._clear(directory, instance.id, runtime, group)
        devices = device_nodes(instance.devices, all_of_host=instance.security.privileged)
        config = spec.build(instance, facts, devices, f"/{group.path}")
        Path(runtime.root).mkdir(parents=True, exist_ok=True, mode=0o700)
        (directory / "persist").mkdir(parents=True, exist_ok=True, mode=0o700)
        (directory / "bundle").mkdir(exist_ok=True, mode=0o700)
        state.write_json(directory / "bundle" / "config.json", config)

    async def start(self, handle: Handle) -> int:
        """See the contract."""
        container = self._container(handle)
        await runtimes.start(container.runtime, container.id, container.init)
        return container.data.pid

    async def kill(self, handle: Handle, signal: int) -> None:
        """Signal the first process. A killing one thaws a paused container, which would not see it otherwise. Raises Conflict
        when it has ended."""
        container = self._container(handle)
        if signal != signals.SIGKILL:
            await runtimes.own_program(container.runtime, container.id, container.init)
        if not pidfd.send(container.init, signal):
            raise Conflict(f"Container {container.id} is not running")
        if signal == signals.SIGKILL and cgroups.frozen(container.group):
            await in_thread(cgroups.freeze, container.group, False)

    async def stop(self, handle: Handle, signal: int, grace_s: float) -> Exit:
        """See the contract. A process that only its own SIGKILL can end gets it after `grace_s` seconds."""
        with contextlib.suppress(Conflict):
            await self.kill(handle, signal)
            container = self._container(handle)
            if not await pidfd.gone_within(container.init, grace_s):
                await self.kill(handle, signals.SIGKILL)
        return await self.wait(handle)

    async def wait(self, handle: Handle) -> Exit:
        """See the contract. Waits on pidfds of the first process and of conmon, which ends right after it wrote the exit code."""
        container = self._container(handle)
        watched = container.data.boot == pidfd.boot_id() and state.exit_of(container) is None
        if watched:
            await self._until_end(container)
        done = state.status(container).exit
        if done is None:
            raise Conflict(f"Container {container.id} is gone")
        if watched:  # a file's time lags up to a tick behind the clock, and so might come before the start
            done = msgspec.structs.replace(done, finished_at=clock.rfc3339_nano(clock.now()))
        return done

    async def _until_end(self, container: Container) -> None:
        """Return when conmon has ended. Streams are drained once the first process has, or they might hold conmon up."""
        first, last = (
            asyncio.ensure_future(pidfd.gone(container.init)),
            asyncio.ensure_future(pidfd.gone(container.monitor)),
        )
        try:
            await asyncio.wait({first, last}, return_when=asyncio.FIRST_COMPLETED)
            self._drain(container.id)
            await last
        finally:
            first.cancel()
            last.cancel()
            await asyncio.wait({first, last})

    def _drain(self, id: str) -> None:
        for attached in tuple(self._streams.get(id, ())):
            attached.drain()

    async def recover(self, handle: Handle) -> Status:
        """See the contract. What a dead conmon left running is killed; a handle from before a repeated `create` harms nothing."""
        container = self._container(handle)
        found = await in_thread(state.status, container)
        if found.phase is Phase.EXITED and pidfd.alive(container.init):
            await in_thread(cgroups.kill, container.group)
        return found

    async def delete(self, handle: Handle) -> None:
        """See the contract. One that still runs is killed."""
        container = self._container(handle)
        if container.data.boot == pidfd.boot_id():
            await self._end(container)
        await self._end_execs(container)
        for attached in tuple(self._streams.pop(container.id, ())):
            attached.abandon()
        await in_thread(self._clear, container.directory, container.id, container.runtime, container.group)

    async def _end_execs(self, container: Container) -> None:
        """Execs end with the container, and their waiters learn how."""
        running = tuple(self._execs.get(container.id, ()))
        if running:
            await in_thread(cgroups.kill, container.group)
            await asyncio.gather(*(each.ended_within(EXEC_END_S) for each in running))
        for each in tuple(self._execs.pop(container.id, ())):
            await each.let_go()

    async def _end(self, container: Container) -> None:
        if pidfd.send(container.init, signals.SIGKILL) and cgroups.frozen(container.group):
            await in_thread(cgroups.freeze, container.group, False)
        self._drain(container.id)
        if not await pidfd.gone_within(container.monitor, END_DEADLINE_S):
            pidfd.send(container.monitor, signals.SIGKILL)

    def _clear(self, directory: Path, id: str, runtime: Runtime, group: Group) -> None:
        """End what is left of a container and remove its traces, as `runc delete` does: processes, control groups, the
        runtime's state, conmon's files."""
        for bundle in (directory / "bundle", *(directory / "exec").glob("*")):
            conmon.end_all(bundle)
        cgroups.remove(group)
        for folder in (runtime.state(id), directory / "bundle", directory / "exec", directory / "persist"):
            shutil.rmtree(folder, ignore_errors=True)

    # --- streams and more processes

    async def attach(self, handle: Handle) -> AttachedStreams:
        """See the contract. Output written before this is in the log."""
        container = self._container(handle)
        attached = await streams.connect(
            container.bundle, closes_stdin=container.data.closes_stdin, stdin=container.data.stdin
        )
        members = self._streams.setdefault(container.id, set())
        members.add(attached)
        attached.on_end = members.discard
        return attached

    async def resize(self, handle: Handle, width: int, height: int) -> None:
        """See the contract. Raises HostFault when it has ended."""
        conmon.resize(self._container(handle).bundle, width, height)

    async def exec(self, handle: Handle, exec_id: str, process: Process) -> RunningExec:
        """See the contract. Raises HostFault with Docker's exit code when it cannot be run, Conflict when nothing runs."""
        container = self._container(handle)
        found = await in_thread(state.status, container)
        if found.phase is not Phase.RUNNING:
            raise Conflict(f"Container {container.id} is {'paused' if found.phase is Phase.PAUSED else 'not running'}")
        running = await execs.start(container, exec_id, process, runtimes.find("conmon"), str(self._runtime_dir))
        self._follow(container.id, running)
        return running

    async def execs(self, handle: Handle) -> Sequence[tuple[str, Process, HeldExec]]:
        """See the contract."""
        container = self._container(handle)
        kept = await execs.found(container)
        for _, _, held in kept:
            self._follow(container.id, held)
        return kept

    def _follow(self, id: str, running: HeldExec) -> None:
        members = self._execs.setdefault(id, set())
        members.add(running)
        running.on_end(members.discard)

    # --- the envelope

    async def pause(self, handle: Handle) -> None:
        """See the contract."""
        await in_thread(cgroups.freeze, self._running(handle).group, True)

    async def resume(self, handle: Handle) -> None:
        """See the contract."""
        await in_thread(cgroups.freeze, self._running(handle).group, False)

    def _running(self, handle: Handle) -> Container:
        container = self._container(handle)
        if not pidfd.alive(container.init):
            raise Conflict(f"Container {container.id} is not running")
        return container

    async def update(self, handle: Handle, resources: Resources) -> None:
        """See the contract. By the runtime, which knows in which order the kernel takes limits. Raises HostFault."""
        container = self._running(handle)
        wanted = msgspec.json.encode(linux_resources(resources, self._host()[1]))
        argv = container.runtime.command("update", "--resources", "-", container.id)
        done = await spawn.run(argv, input=wanted, check=False)
        if done.code != 0:
            words = faults.plain_words(done.stderr.decode(errors="replace"))
            raise HostFault(
                f"Cannot update container {container.id}: {words}", command=spawn.command(argv), code=done.code
            )

    async def stats(self, handle: Handle) -> Stats:
        """See the contract. Zeros for one that has ended."""
        counters = await in_thread(cgroupstats.counters, self._container(handle).group)
        return msgspec.convert(counters, Stats, from_attributes=True)

    async def pids(self, handle: Handle) -> list[int]:
        """See the contract."""
        return await in_thread(cgroups.pids, self._container(handle).group)

    async def console(self, handle: Handle, kind: Capability) -> str:
        """Containers have no serial line and no screen."""
        raise Unsupported(f"A container has no {kind.value}; attach to its terminal instead.")

    async def reset(self, handle: Handle) -> None:
        """Containers have no reset button."""
        raise Unsupported("A container cannot be reset; restart it instead.")


def launch_plan(spec: InstanceSpec, runtime: Runtime) -> Launch:
    """How conmon is run for a new container. Standard input stays open over attachments unless the process wants an end
    of file (`stdin_once`); a terminal never gets one."""
    assert spec.process is not None
    directory = Path(spec.directory)
    return Launch(
        conmon=runtime.conmon or runtimes.find("conmon"),
        runtime=runtime.path,
        runtime_root=runtime.root,
        id=spec.id,
        uuid=spec.id,
        name=spec.name,
        bundle=str(directory / "bundle"),
        persist=str(directory / "persist"),
        log_path=spec.log_path,
        journal=spec.log_journal,
        tag=spec.log_tag,
        terminal=spec.process.tty,
        stdin=spec.process.open_stdin,
        leave_stdin_open=spec.process.tty or not spec.process.stdin_once,
    )
