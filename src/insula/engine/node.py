"""One node's engine: `contract.Engine` over the stores and drivers of this node. What each verb does is in its own file;
here they are put together, and a verb that a client began is carried to its end whatever becomes of the client.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec

from insula.drivers import available
from insula.drivers.driver import Capability, Driver, ProcessRow, Stats, Streams
from insula.engine import archive as archives
from insula.engine import attaching, committing, controls, execing, recovery, sandboxes
from insula.engine.building.contract import Builder
from insula.engine.checks import need
from insula.engine.contract import Event, Exec, Instance, LogLine, PathStat, Sandbox, SandboxConfig, State
from insula.engine.events import EventLog
from insula.engine.guests import Guests, guest_driver
from insula.engine.halting import clear_kernel, halt
from insula.engine.ledger import Ledger
from insula.engine.lifecycle import refuse_unless_running
from insula.engine.logs import Follower, query_of
from insula.engine.parts import Parts
from insula.engine.preparing import prepare
from insula.engine.records import Stage
from insula.engine.resident import Resident
from insula.engine.settings import EnginePaths, EngineSettings
from insula.errors import Conflict, Unavailable, Unsupported, gather
from insula.host.pidfd import boot_id
from insula.images.contract import Image, Use
from insula.images.drafts import Drafts
from insula.images.store import NodeImages
from insula.model.instance import InstanceConfig, NetworkAttachment, Process, Resources, RestartPolicy
from insula.networks.contract import Networks
from insula.networks.manager import NodeNetworks
from insula.tasks import Tasks, in_thread
from insula.volumes.store import NodeVolumes

T = TypeVar("T")
_FINISH_S = 10.0  # how long `close` lets verbs under way come to their end


class NodeEngine:
    """The engine of one node. `await NodeEngine.open(...)`, then `recover()`, then everything else, then `close()`."""

    def __init__(self, parts: Parts, drafts: Drafts, undo: AsyncExitStack, closing: _Closing) -> None:
        self._parts = parts
        self._drafts = drafts
        self._undo = undo
        self._closing = closing
        self._verbs: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.images = parts.images
        self.networks = parts.networks
        self.volumes = parts.volumes

    @classmethod
    async def open(
        cls, paths: EnginePaths, settings: EngineSettings | None = None, *, drivers: Mapping[str, Driver] | None = None
    ) -> Self:
        """Open everything below `paths`. `drivers` replaces the ones found in the drivers' folder. Raises Unavailable when
        another Insula has it open, HostFault."""
        settings = settings or EngineSettings()
        async with AsyncExitStack() as undo:
            for folder in (paths.data, paths.runtime, paths.instances, paths.bundles, paths.sandboxes):
                await in_thread(folder.mkdir, mode=0o711, parents=True, exist_ok=True)
            ledger = await Ledger.open(paths.ledger)
            undo.push_async_callback(ledger.close)
            images = await NodeImages.open(paths.data, registries=settings.registries)
            undo.push_async_callback(images.close)
            volumes = await NodeVolumes.open(paths.data)
            networks = await NodeNetworks.open(
                paths.data / "networks",
                paths.runtime,
                prefix=settings.prefix,
                table=settings.table,
                default_subnet=settings.default_subnet,
                default_subnet6=settings.default_subnet6,
            )
            closing = _Closing(networks)
            undo.push_async_callback(closing.close)
            made = drivers if drivers is not None else {n: make(paths.runtime) for n, make in available().items()}
            for driver in made.values():
                undo.push_async_callback(driver.close)
            events = EventLog(history=settings.event_history, backlog=settings.event_backlog)
            tasks = await undo.enter_async_context(Tasks("engine"))
            parts = Parts(
                paths=paths,
                settings=settings,
                boot_id=await in_thread(boot_id),
                hostname=socket.gethostname(),
                images=images,
                networks=networks,
                volumes=volumes,
                drivers=made,
                guests=Guests(paths.data / "cache"),
                ledger=ledger,
                events=events,
                tasks=tasks,
            )
            undo.callback(parts.watches.close)
            return cls(parts, images.drafts(), undo.pop_all(), closing)
        raise AssertionError("unreachable")

    @functools.cached_property
    def builder(self) -> Builder:
        """See the contract."""
        from insula.engine.building.builder import NodeBuilder  # a third of a second, only where something is built

        return NodeBuilder(self, self._parts, self._drafts)

    async def _carry(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Do it to its end even if whoever asked goes away in the middle: half a start is nobody's wish."""
        task = self._begin(work, name)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    def _begin(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        if self._closed:
            work.close()
            raise Unavailable("the engine is closed")
        task = asyncio.create_task(work, name=f"engine/{name}")
        self._verbs.add(task)
        task.add_done_callback(self._verbs.discard)
        return task

    def _view(self, resident: Resident) -> Instance:
        parts = self._parts
        return resident.view(folder=str(parts.folder(resident.id)), log_path=parts.log_path(resident.entry))

    # --- life cycle ---------------------------------------------------------------------------------------------

    async def create(self, config: InstanceConfig) -> Instance:
        """See the contract."""
        return self._view(await self._carry(prepare(self._parts, config), "create"))

    async def start(self, id: str) -> Instance:
        """See the contract."""
        resident = self._parts.find(id)
        await self._carry(controls.start(self._parts, resident), "start")
        return self._view(resident)

    async def stop(self, id: str, *, timeout_s: float | None = None, signal: str = "") -> Instance:
        """See the contract."""
        resident = self._parts.find(id)
        await self._carry(controls.stop(self._parts, resident, timeout_s=timeout_s, signal=signal), "stop")
        return self._view(resident)

    async def kill(self, id: str, signal: str = "KILL") -> None:
        """See the contract."""
        await self._carry(controls.kill(self._parts, self._parts.find(id), signal), "kill")

    async def restart(self, id: str, *, timeout_s: float | None = None) -> Instance:
        """See the contract."""
        resident = self._parts.find(id)
        await self._carry(controls.restart(self._parts, resident, timeout_s=timeout_s), "restart")
        return self._view(resident)

    async def pause(self, id: str) -> None:
        """See the contract."""
        await self._carry(controls.pause(self._parts, self._parts.find(id)), "pause")

    async def unpause(self, id: str) -> None:
        """See the contract."""
        await self._carry(controls.unpause(self._parts, self._parts.find(id)), "unpause")

    async def reset(self, id: str) -> None:
        """See the contract."""
        await self._carry(controls.reset(self._parts, self._parts.find(id)), "reset")

    async def wait(self, id: str, condition: Literal["not-running", "next-exit", "removed"] = "not-running") -> State:
        """See the contract."""
        resident = self._parts.find(id)
        match condition:
            case "not-running":
                return await resident.rest()
            case "next-exit":
                return await resident.next_exit()
            case "removed":
                return await resident.removed()

    async def remove(self, id: str, *, force: bool = False, volumes: bool = False) -> None:
        """See the contract."""
        resident = self._parts.find(id)
        await self._carry(controls.remove(self._parts, resident, force=force, volumes=volumes), "remove")

    async def rename(self, id: str, name: str) -> None:
        """See the contract."""
        await self._carry(controls.rename(self._parts, self._parts.find(id), name), "rename")

    async def unlink(self, id: str, alias: str) -> None:
        """See the contract."""
        await self._carry(attaching.unlink(self._parts, self._parts.find(id), alias), "unlink")

    async def update(
        self, id: str, *, resources: Resources | None = None, restart: RestartPolicy | None = None
    ) -> Instance:
        """See the contract."""
        resident = self._parts.find(id)
        await self._carry(controls.update(self._parts, resident, resources=resources, restart=restart), "update")
        return self._view(resident)

    async def connect(self, id: str, attachment: NetworkAttachment) -> None:
        """See the contract."""
        await self._carry(attaching.connect(self._parts, self._parts.find(id), attachment), "connect")

    async def disconnect(self, id: str, network: str, *, force: bool = False) -> None:
        """See the contract."""
        work = attaching.disconnect(self._parts, self._parts.find(id), network, force=force)
        await self._carry(work, "disconnect")

    # --- looking ------------------------------------------------------------------------------------------------

    async def get(self, id: str) -> Instance:
        """See the contract."""
        resident = self._parts.find(id)
        execs = tuple(each.id for each in self._parts.executions.of(resident.id) if not each.ended.is_set())
        return msgspec.structs.replace(self._view(resident), execs=execs)

    async def list(self) -> Sequence[Instance]:
        """See the contract."""
        known = [each for each in self._parts.residents.values() if each.entry.stage is not Stage.CREATING]
        return [self._view(each) for each in sorted(known, key=lambda each: each.entry.created, reverse=True)]

    async def image_uses(self) -> Sequence[Use]:
        """See the contract."""
        return [use for resident in self._parts.residents.values() for use in resident.image_uses()]

    async def stats(self, id: str) -> Stats:
        """See the contract."""
        resident = self._parts.find(id)
        if not resident.running:
            return Stats()
        need(resident.driver, Capability.STATS)
        return await resident.driver.stats(resident.handle)

    async def pids(self, id: str) -> Sequence[int]:
        """See the contract."""
        resident = self._parts.find(id)
        refuse_unless_running(resident.entry)
        need(resident.driver, Capability.TOP)
        self._parts.say(resident, "top")
        return await resident.driver.pids(resident.handle)

    async def processes(self, id: str) -> Sequence[ProcessRow] | None:
        """See the contract."""
        resident = self._parts.find(id)
        refuse_unless_running(resident.entry)
        guest = guest_driver(resident.driver)
        return await guest.processes(resident.handle) if guest else None

    def logs(
        self, id: str, *, follow: bool = False, since: str = "", until: str = "", tail: int | None = None
    ) -> AsyncIterator[LogLine]:
        """See the contract."""
        resident = self._parts.find(id)
        query = query_of(follow=follow, since=since, until=until, tail=tail)
        path = self._parts.log_path(resident.entry)
        if not path:
            raise Unsupported("configured logging driver does not support reading")
        timed = resident.driver.log_format == "conmon"
        return Follower(Path(path), query, self._parts.watches, timed=timed, ended=resident.silent).read()

    def events(self, *, since_ns: int | None = None, until_ns: int | None = None) -> AsyncIterator[Event]:
        """See the contract."""
        return self._parts.events.listen(since_ns=since_ns, until_ns=until_ns)

    def publish(self, event: Event) -> None:
        """See the contract."""
        self._parts.events.publish(event)

    # --- streams ------------------------------------------------------------------------------------------------

    async def attach(self, id: str) -> Streams:
        """See the contract."""
        resident = self._parts.find(id)
        need(resident.driver, Capability.ATTACH)
        if resident.restarting:
            raise Conflict(f"Container {resident.id} is restarting, wait until the container is running")
        self._parts.say(resident, "attach")
        if resident.running:
            return await resident.driver.attach(resident.handle)
        return resident.attachments.wait_for_start()

    async def resize(self, id: str, width: int, height: int) -> None:
        """See the contract."""
        resident = self._parts.find(id)
        resident.size = (width, height)
        if resident.running:
            await resident.driver.resize(resident.handle, width, height)
            self._parts.say(resident, "resize", width=str(width), height=str(height))

    async def exec_create(self, id: str, process: Process, *, user: str = "", env: Sequence[str] = ()) -> Exec:
        """See the contract."""
        return await execing.create(self._parts, self._parts.find(id), process, user=user, env=env)

    async def exec_start(self, exec_id: str) -> Streams:
        """See the contract."""
        starting = self._begin(execing.start(self._parts, exec_id), "exec")
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:  # its streams are nobody's: a process that reads would wait for ever
            self._parts.tasks.spawn(execing.let_go(starting), f"unwanted exec {exec_id[:12]}")
            raise

    async def exec_resize(self, exec_id: str, width: int, height: int) -> None:
        """See the contract."""
        await execing.resize(self._parts, exec_id, width, height)

    async def exec_get(self, exec_id: str) -> Exec:
        """See the contract."""
        return self._parts.executions.get(exec_id).view()

    async def exec_wait(self, exec_id: str) -> int:
        """See the contract."""
        return await execing.wait(self._parts, exec_id)

    async def exec_kill(self, exec_id: str, signal: str = "KILL") -> None:
        """See the contract."""
        await execing.kill(self._parts, exec_id, signal)

    async def console(self, id: str, kind: Capability) -> str:
        """See the contract."""
        resident = self._parts.find(id)
        need(resident.driver, kind)
        refuse_unless_running(resident.entry)
        return await resident.driver.console(resident.handle, kind)

    # --- files --------------------------------------------------------------------------------------------------

    async def stat_path(self, id: str, path: str) -> PathStat:
        """See the contract."""
        return await archives.stat_path(self._parts, self._parts.find(id), path)

    def get_archive(self, id: str, path: str) -> AsyncIterator[bytes]:
        """See the contract."""
        resident = self._parts.find(id)
        self._parts.say(resident, "archive-path")
        return archives.get_archive(self._parts, resident, path)

    async def put_archive(
        self,
        id: str,
        path: str,
        archive: AsyncIterator[bytes],
        *,
        no_overwrite_dir: bool = False,
        as_user: bool = False,
    ) -> None:
        """See the contract."""
        resident = self._parts.find(id)
        await archives.put_archive(
            self._parts, resident, path, archive, no_overwrite_dir=no_overwrite_dir, as_user=as_user
        )
        self._parts.say(resident, "extract-to-dir")

    async def changes(self, id: str) -> Sequence[tuple[str, int]]:
        """See the contract."""
        return await archives.changes(self._parts.find(id))

    async def disk_usage(self, id: str) -> tuple[int, int]:
        """See the contract."""
        return await archives.disk_usage(self._parts.find(id))

    def export(self, id: str) -> AsyncIterator[bytes]:
        """See the contract."""
        resident = self._parts.find(id)
        self._parts.say(resident, "export")
        return archives.export(self._parts, resident)

    async def commit(
        self,
        id: str,
        name: str,
        *,
        message: str = "",
        author: str = "",
        pause: bool = True,
        config: dict[str, Any] | None = None,
    ) -> Image:
        """See the contract."""
        resident = self._parts.find(id)
        work = committing.commit(
            self._parts, resident, name, message=message, author=author, pause=pause, config=config
        )
        image = await self._carry(work, "commit")
        self._parts.say(resident, "commit", comment=message, imageID=image.id, imageRef=next(iter(image.names), ""))
        return image

    # --- sandboxes ----------------------------------------------------------------------------------------------

    async def make_sandbox(self, config: SandboxConfig) -> Sandbox:
        """See the contract."""
        return sandboxes.view(await self._carry(sandboxes.make(self._parts, config), "sandbox"))

    async def get_sandbox(self, id: str) -> Sandbox:
        """See the contract."""
        return sandboxes.get(self._parts, id)

    async def list_sandboxes(self) -> Sequence[Sandbox]:
        """See the contract."""
        return [sandboxes.view(entry) for entry in self._parts.sandboxes.values() if entry.ready]

    async def remove_sandbox(self, id: str) -> None:
        """See the contract."""
        await self._carry(sandboxes.remove(self._parts, id), "remove sandbox")

    # --- the node -----------------------------------------------------------------------------------------------

    async def probe(self) -> dict[str, Any]:
        """See the contract."""
        names = list(self._parts.drivers)
        found = await asyncio.gather(*(driver.probe() for driver in self._parts.drivers.values()))
        return dict(zip(names, found, strict=True))

    async def recover(self) -> None:
        """See the contract."""
        await recovery.recover(self._parts)

    async def close(self) -> None:
        """See the contract. Verbs under way get ten seconds to come to their end."""
        if self._closed:
            return
        self._closed = True
        await self._close()

    async def _close(self) -> None:
        if self._verbs:
            await asyncio.wait(self._verbs, timeout=_FINISH_S)
        for task in tuple(self._verbs):
            task.cancel()
        for resident in self._parts.residents.values():
            resident.attachments.abandon()
            resident.tell_closed(lambda: Unavailable("the engine is closing; ask again after its restart"))
        self._parts.events.close()
        await self._undo.aclose()

    async def destroy(self, *, grace_s: float = 0) -> None:
        """See the contract. Raises what could not be ended, after ending all the rest."""
        if self._closed:
            raise Unavailable("the engine is closed")
        self._closed = True
        faults = await halt(self._parts, grace_s)
        await self._closing.destroy()
        await self._close()
        await in_thread(clear_kernel, self._parts)
        gather("some of what ran could not be ended", faults)


class _Closing:
    """Ends the networks once: either let go of, or destroyed."""

    def __init__(self, networks: Networks) -> None:
        self._networks: Networks | None = networks

    async def close(self) -> None:
        networks, self._networks = self._networks, None
        if networks is not None:
            await networks.close()

    async def destroy(self) -> None:
        networks, self._networks = self._networks, None
        if networks is not None:
            await networks.destroy()
