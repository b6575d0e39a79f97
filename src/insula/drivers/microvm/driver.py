"""The verbs of a machine for a container image. Its sandbox is a container of the `oci` driver, and what the two have in common
is left to that: log, exit code, waiting, recovery, freezing, counters, removal. What is inside the machine goes through the
relay's socket; nobody has to be connected for the machine to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
import time
from pathlib import Path

import msgspec

from insula.drivers.driver import Capability, Exit, Handle, LogFormat, Phase, Probe, ProcessRow, Stats, Status
from insula.drivers.microvm import cards, checks, files, plan
from insula.drivers.microvm.argv import Machine
from insula.drivers.microvm.files import Kept
from insula.drivers.microvm.link import Link, Refused, Session
from insula.drivers.microvm.processes import read_rows
from insula.drivers.microvm.sandboxed.relay import PORT_FD, SHARE_FD, records
from insula.drivers.microvm.sizes import cpus, memory_mib, of_sandbox
from insula.drivers.oci import faults
from insula.drivers.oci.driver import OciDriver
from insula.drivers.oci.facts import HostFacts, collect
from insula.drivers.oci.streams import AttachedStreams
from insula.drivers.vm.create import uid_of
from insula.drivers.vm.probe import Accelerators, Found
from insula.errors import Conflict, DeadlineExceeded, HostFault, Unavailable, Unsupported
from insula.host import cgroups, pidfd, virtiofsd
from insula.host.conmon import readable
from insula.host.pidfd import ProcessId
from insula.model.instance import Device, InstanceConfig, InstanceSpec, Mount, Process, Resources
from insula.tasks import in_thread

RELAY_DEADLINE_S = 30.0
START_DEADLINE_S = 180.0  # an emulated machine on a busy host
_TUN, _KVM = "/dev/net/tun", "/dev/kvm"


class MicrovmDriver:
    """See the module. `runtime_dir` is volatile, as /run is."""

    name = "microvm"
    level = 2
    summary = "container images in machines of their own, on QEMU with KVM or emulated (docker run --runtime vm)"
    log_format: LogFormat = "conmon"
    capabilities = OciDriver.capabilities - {Capability.TOP} | {
        Capability.GUEST,
        Capability.PROCESSES,
    }

    def __init__(self, runtime_dir: Path) -> None:
        self._sandboxes = OciDriver(runtime_dir / "microvm")
        self._accelerators = Accelerators(runtime_dir / "vm")
        self._links: dict[str, Link] = {}
        self._linking = asyncio.Lock()
        self._facts: HostFacts | None = None

    # --- this host

    async def probe(self) -> Probe:
        """What machines and containers need, and virtiofsd."""
        try:
            found, program = await self._accelerators.find(), virtiofsd.find()
        except Unavailable as fault:
            return Probe(available=False, notes=(f"No machines for container images: {fault}.",))
        around = await self._sandboxes.probe()
        facts = {"accelerator": found.accelerator, "virtiofsd": program, **around.facts}
        return Probe(available=around.available, version=found.version.text, notes=around.notes, facts=facts)

    def check(self, config: InstanceConfig) -> None:
        """See the contract."""
        checks.check(config)

    async def close(self) -> None:
        """See the contract."""
        for link in tuple(self._links.values()):
            await link.close()
        self._links.clear()
        await self._sandboxes.close()

    # --- life

    async def create(self, spec: InstanceSpec) -> Handle:
        """See the contract. Raises Invalid, Unsupported, HostFault, Unavailable."""
        found = await self._accelerators.find()
        sandbox, kept = await in_thread(self._prepare, spec, found)
        try:
            handle = await self._sandboxes.create(sandbox)
        except BaseException:
            await pidfd.settle(in_thread(files.remove, Path(spec.directory)))
            raise
        return msgspec.structs.replace(handle, driver=self.name, data={**handle.data, "netns": kept.netns})

    def _prepare(self, spec: InstanceSpec, found: Found) -> tuple[InstanceSpec, Kept]:
        if self._facts is None:
            self._facts = collect(cgroups.detect())
        mounts = list(spec.mounts)
        if spec.init:
            if not self._facts.init:
                raise Unsupported("No static init program was found on this host.", field="init", hint="install tini")
            mounts.append(
                Mount(target="/sbin/docker-init", kind="bind", source=self._facts.init, options=("bind", "ro"))
            )
        try:
            real = files.real_places(spec.rootfs, mounts)
        except OSError as fault:
            words = f"a mount has no place in the image: {fault.filename}: {fault.strerror}"
            raise HostFault(words, code=127) from fault
        placed = plan.place(mounts, real)
        devices = (Device(source=_TUN, target=_TUN), *self._kvm(found))
        kept = self._kept(spec, placed, found)
        sandbox = plan.sandbox(spec, placed, self._facts, devices)
        files.make(Path(spec.directory), kept)
        return sandbox, kept

    @staticmethod
    def _kvm(found: Found) -> tuple[Device, ...]:
        return (Device(source=_KVM, target=_KVM),) if found.accelerator == "kvm" else ()

    def _kept(self, spec: InstanceSpec, placed: plan.Placed, found: Found) -> Kept:
        assert self._facts is not None
        assert spec.process is not None
        return Kept(
            virtiofsd=virtiofsd.arguments(virtiofsd.find(), plan.SHARE, fd=SHARE_FD),
            machine=Machine(
                binary=found.binary,
                version=(found.version.major, found.version.minor),
                accelerator=found.accelerator,
                memory_mib=memory_mib(spec.resources),
                cpus=cpus(spec.resources, os.cpu_count() or 1),
                uid=uid_of(spec.id),
                port_fd=PORT_FD,
            ),
            records=plan.image_records(spec, placed, self._facts),
            input=spec.process.open_stdin,
            netns=spec.netns or "",
            tty=spec.process.tty,
            security=spec.security,
            ulimits=spec.ulimits,
            resources=spec.resources,
        )

    async def start(self, handle: Handle) -> int:
        """See the contract: returns when the image's process runs. Raises HostFault with dockerd's words when it cannot."""
        directory = Path(handle.directory)
        kept = await in_thread(files.read_kept, directory)
        interfaces = await cards.take_over(kept.netns) if kept.netns else []
        await in_thread(files.give_orders, directory, kept, interfaces, time.time_ns())
        ready = os.open(directory / "run" / "ready", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            pid = await self._sandboxes.start(handle)
            await self._until_ready(ready, handle)
        finally:
            os.close(ready)
        await self._until_begun(handle)
        return pid

    async def _until_ready(self, ready: int, handle: Handle) -> None:
        """Wait until the relay has opened its socket."""
        told, dead = asyncio.ensure_future(readable(ready)), asyncio.ensure_future(pidfd.gone(_first(handle)))
        try:
            await asyncio.wait({told, dead}, timeout=RELAY_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                raise self._never_began(handle)
        finally:
            told.cancel()
            dead.cancel()
            await asyncio.wait({told, dead})

    async def _until_begun(self, handle: Handle) -> None:
        """Wait until the agent has started the image's process, or says why it cannot."""
        try:
            link = await self._link(handle)
            async with asyncio.timeout(START_DEADLINE_S):
                await asyncio.shield(link.image.begun)
        except Refused as fault:
            raise faults.refusal(f"unable to start container process: {fault.words}", "create", None) from fault
        except TimeoutError as fault:
            raise DeadlineExceeded(f"The machine did not come up within {START_DEADLINE_S:g} s.") from fault
        except Unavailable as fault:
            raise self._never_began(handle) from fault

    def _never_began(self, handle: Handle) -> HostFault:
        words = files.last_words(Path(handle.directory))
        return HostFault(f"The machine ended before its process began{': ' + words if words else '.'}", code=128)

    async def kill(self, handle: Handle, signal: int) -> None:
        """See the contract. SIGKILL ends the machine itself, whatever state it is in; others are for the image's process."""
        process = _first(handle)
        if signal == signals.SIGKILL or not pidfd.alive(process):
            await self._sandboxes.kill(handle, signal)
            return
        try:
            (await self._link(handle)).signal(0, signal)
        except Unavailable as fault:
            raise Conflict(f"Container {handle.id} is not running") from fault

    async def stop(self, handle: Handle, signal: int, grace_s: float) -> Exit:
        """See the contract."""
        with contextlib.suppress(Conflict):
            await self.kill(handle, signal)
            if not await pidfd.gone_within(_first(handle), grace_s):
                await self.kill(handle, signals.SIGKILL)
        return await self.wait(handle)

    async def wait(self, handle: Handle) -> Exit:
        """See the contract."""
        return await self._sandboxes.wait(handle)

    async def recover(self, handle: Handle) -> Status:
        """See the contract."""
        return await self._sandboxes.recover(handle)

    async def delete(self, handle: Handle) -> None:
        """See the contract."""
        if link := self._links.pop(handle.id, None):
            await link.close()
        await self._sandboxes.delete(handle)
        if namespace := str(handle.data.get("netns") or ""):
            await cards.give_back(namespace)
        await in_thread(files.remove, Path(handle.directory))

    # --- streams and more processes

    async def _link(self, handle: Handle) -> Link:
        """The connection to the relay, made when there is none. Raises Unavailable."""
        async with self._linking:
            link = self._links.get(handle.id)
            if link is None or not link.open:
                link = await Link.connect(Path(handle.directory) / "run" / "relay")
                self._links[handle.id] = link
            return link

    async def attach(self, handle: Handle) -> AttachedStreams:
        """See the contract. The terminal is inside, so here are only bytes."""
        return await self._sandboxes.attach(handle)

    async def resize(self, handle: Handle, width: int, height: int) -> None:
        """See the contract. Raises HostFault when it has ended."""
        try:
            (await self._link(handle)).resize(0, width, height)
        except Unavailable as fault:
            raise HostFault(f"The terminal cannot be reached: {fault}.") from fault

    async def exec(self, handle: Handle, exec_id: str, process: Process) -> Session:
        """See the contract. Raises HostFault with Docker's exit code when it cannot be run, Conflict when nothing runs."""
        found = await self.recover(handle)
        if found.phase is not Phase.RUNNING:
            raise Conflict(f"Container {handle.id} is {'paused' if found.phase is Phase.PAUSED else 'not running'}")
        kept = await in_thread(files.read_kept, Path(handle.directory))
        if process.privileged:
            raise Unsupported(
                "A process of a container with runtime vm cannot be privileged: none of the host's devices are there.",
                field="process.privileged",
            )
        body = records(plan.process_records(process, kept.security, kept.ulimits))
        try:
            return await (await self._link(handle)).start(body, tty=process.tty, stdin=process.open_stdin)
        except Refused as fault:
            raise faults.refusal(f"unable to start container process: {fault.words}", "exec", None) from fault
        except Unavailable as fault:
            raise Conflict(f"Container {handle.id} is not running") from fault

    async def processes(self, handle: Handle) -> list[ProcessRow]:
        """See the contract."""
        status = await self.recover(handle)
        if status.phase is Phase.PAUSED:
            raise Conflict(f"Container {handle.id} is paused, and its processes with it; unpause it first")
        answers = await (await self._link(handle)).list()
        return read_rows(answers)

    # --- the envelope

    async def pause(self, handle: Handle) -> None:
        """See the contract."""
        await self._sandboxes.pause(handle)

    async def resume(self, handle: Handle) -> None:
        """See the contract."""
        await self._sandboxes.resume(handle)

    async def update(self, handle: Handle, resources: Resources) -> None:
        """See the contract. CPU time can change; memory and the number of processes are the machine's own. Raises Unsupported."""
        kept = await in_thread(files.read_kept, Path(handle.directory))
        for field in ("memory_bytes", "pids_limit"):
            if getattr(resources, field) != getattr(kept.resources, field):
                raise Unsupported(
                    f"The {field} of a container with runtime vm cannot change while it runs: it is its machine's. "
                    "Stop it, and update it then.",
                    field=f"resources.{field}",
                )
        await self._sandboxes.update(handle, of_sandbox(resources))

    async def stats(self, handle: Handle) -> Stats:
        """See the contract: the machine with all that runs it."""
        return await self._sandboxes.stats(handle)

    async def pids(self, handle: Handle) -> list[int]:
        """See the contract: the relay, QEMU and virtiofsd."""
        return await self._sandboxes.pids(handle)

    async def console(self, handle: Handle, kind: Capability) -> str:
        """It has no serial line and no screen."""
        raise Unsupported(f"A container has no {kind.value}; attach to its terminal instead.")

    async def reset(self, handle: Handle) -> None:
        """It has no reset button."""
        raise Unsupported("A container cannot be reset; restart it instead.")


def _first(handle: Handle) -> ProcessId:
    """The relay, which stands for the image's process."""
    return ProcessId(int(handle.data["pid"]), int(handle.data["pid_start"]))
