"""What is done for one pod: its sandbox, volumes and containers. `podplan` says what, the worker when, this how.

Every verb can be repeated after a crash: sandbox and volumes are made or found, an instance that was made and never started is
started as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from insula import clock
from insula.agent import podhooks, podimages, podvolumes
from insula.agent.podcontainers import ContainerRecord, records_of
from insula.agent.podenv import environment
from insula.agent.podfacts import Tokens, facts_of, references_of, volume_files
from insula.agent.podplan import Action
from insula.agent.podspec import (
    LABEL_ATTEMPT,
    LABEL_CONTAINER,
    Surroundings,
    check_non_root,
    defined_by,
    instance_of,
    sandbox_id,
    sandbox_of,
    subpath_of,
)
from insula.agent.podview import Trouble, container_named, init_containers, main_containers
from insula.agent.services import PODS, RUNTIME_CLASSES, Services
from insula.clock import Backoff
from insula.engine.contract import Instance
from insula.errors import Conflict, InsulaError, Invalid, NotFound
from insula.host.pidfd import boot_id
from insula.model.instance import InstanceConfig, MountConfig
from insula.model.resource import Resource
from insula.tasks import in_thread

log = logging.getLogger(__name__)
MESSAGE_BYTES = 4096
TAIL_LINES, TAIL_BYTES = 80, 2048  # of the log, when it stands in for the termination message


class PodHands:
    """One pod's hands. The worker sets `pod` to what the API shows."""

    def __init__(self, services: Services, pod: Resource, instances: Iterable[Instance]) -> None:
        self.services = services
        self.pod = pod
        self.records = records_of(pod, instances)
        self.address: str | None = None  # None without a sandbox
        self.trouble: Trouble | None = None
        self.retry_at = 0.0  # when the sandbox may be tried again, by the loop's clock
        self._folder = services.pod_folder(pod["metadata"]["uid"])
        self._tokens = Tokens(services)
        self._mounts: dict[str, MountConfig] | None = None
        self._volumes = asyncio.Lock()
        self._patience = Backoff(1.0, 60.0)

    # sandbox and volumes

    async def find(self) -> None:
        """After a restart: the sandbox that is there, and the last words of what has ended."""
        for record in self.records.values():
            if record.previous is not None:
                record.messages[record.previous.id] = await self._last_words(record.previous)
        try:
            sandbox = await self.services.engine.get_sandbox(sandbox_id(self.pod))
        except NotFound:
            return
        self.address = sandbox.address or self.services.address
        boot = await in_thread(boot_id)
        if not await in_thread(podvolumes.same_life, self._folder, boot):
            for container in (*init_containers(self.pod), *main_containers(self.pod)):
                if known := self.records.get(container["name"]):
                    known.new_life(again=container in init_containers(self.pod))
            await in_thread(podvolumes.begin_life, self._folder, boot)

    async def make_sandbox(self) -> None:
        """Volumes and sandbox, side by side. What fails is told as the pod's trouble, and tried again later."""
        volumes, network = await asyncio.gather(self.write_volumes(), self._network(), return_exceptions=True)
        for fault, reason in ((network, "FailedCreatePodSandBox"), (volumes, "FailedMount")):
            if isinstance(fault, InsulaError):
                self._troubled(reason, fault)
                return
            if isinstance(fault, BaseException):
                raise fault
        self.trouble = None
        self._patience.reset()
        self.address = str(network)

    async def _network(self) -> str:
        await in_thread(podvolumes.begin_life, self._folder, await in_thread(boot_id))
        sandbox = await self.services.engine.make_sandbox(sandbox_of(self.pod))
        return sandbox.address or self.services.address

    def _troubled(self, reason: str, fault: InsulaError) -> None:
        self.retry_at = asyncio.get_running_loop().time() + self._patience.next_s()
        self.trouble = Trouble("ContainerCreating", fault.message, clock.rfc3339(clock.now()))
        self.services.record(self.pod, reason, fault.message, "Warning")

    async def write_volumes(self) -> None:
        """Make the volumes, or bring the written ones up to date: ConfigMaps, Secrets, tokens, the pod's own fields."""
        async with self._volumes:
            files = await volume_files(self.services, self.pod, self._tokens, self.address or "")
            self._mounts = await podvolumes.prepare(self._folder, self.pod, files)

    def renew_in_s(self) -> float | None:
        """Seconds until a token in a volume must be renewed."""
        return self._tokens.renew_in_s()

    # containers

    async def start(self, name: str) -> None:
        """One attempt at a container: image, configuration, instance, process, postStart."""
        container = container_named(self.pod, name)
        record = self.records.setdefault(name, ContainerRecord(name))
        try:
            made = record.current if record.view().made else None
            if made is None:
                await podimages.ensure(self.services, self.pod, container)
                made = await self.services.engine.create(await self._config(container, record.attempt + 1))
                self.services.record(self.pod, "Created", f"Created container: {name}")
        except podimages.ImageError as fault:
            record.troubled(fault.trouble(clock.rfc3339(clock.now())))
        except InsulaError as fault:
            record.troubled(Trouble("CreateContainerConfigError", fault.message, clock.rfc3339(clock.now())))
            self.services.record(self.pod, "Failed", f"Error: {fault.message}", "Warning")
        else:
            await self._run(record, container, made)

    async def _run(self, record: ContainerRecord, container: Resource, made: Instance) -> None:
        outdated = record.begun(made, container)
        try:
            record.observe(await self.services.engine.start(made.id), clock.rfc3339(clock.now()))
            self.services.record(self.pod, "Started", f"Started container {record.name}")
            await podhooks.after_start(self.services, container, record, self.address or "")
        except InsulaError as fault:
            self.services.record(self.pod, "Failed", f"Error: {fault.message}", "Warning")
            await self.look(record)
        for instance in outdated:
            await self._remove(instance)

    async def _config(self, container: Resource, attempt: int) -> InstanceConfig:
        if self._mounts is None:
            await self.write_volumes()
        assert self._mounts is not None
        spec, services = self.pod["spec"], self.services
        check_non_root(spec, container, (await services.engine.images.get(container["image"])).config.user)
        last_words = podvolumes.termination_log(self._folder, container["name"], attempt)
        await in_thread(_make_file, last_words)
        facts = facts_of(services, self.address or "")
        env = environment(container, self.pod, references_of(services, self.pod), facts, services.service_env)
        around = Surroundings(
            attempt=attempt,
            env=env,
            mounts=self._mounts,
            subpaths=await self._subpaths(container, defined_by(env), self._mounts),
            handler=self._handler(),
            termination_log=str(last_words),
            target=self._target(container),
            node_memory=facts.node_memory,
        )
        return instance_of(self.pod, container, around)

    async def _subpaths(
        self, container: Resource, defined: Mapping[str, str], volumes: Mapping[str, MountConfig]
    ) -> dict[tuple[str, str], str]:
        found = {}
        for number, mount in enumerate(container.get("volumeMounts") or ()):
            if below := subpath_of(mount, defined):
                name, place = mount["name"], f"{container['name']}-{number}"
                try:
                    source = await in_thread(podvolumes.subpath, self._folder, volumes[name], below, place)
                except OSError as fault:
                    why = fault.strerror or fault
                    raise Invalid(
                        f"subPath {below!r} of volume {name} cannot be used: {why}", field="subPath"
                    ) from fault
                found[name, below] = source
        return found

    def _handler(self) -> str:
        """The handler of the pod's RuntimeClass; a class that nobody has made is a driver's own name."""
        name = str(self.pod["spec"].get("runtimeClassName") or "")
        found = self.services.caches.get(RUNTIME_CLASSES, name) if name else None
        return str(found["handler"]) if found is not None else name

    def _target(self, container: Resource) -> str:
        """The running instance that an ephemeral container is to look into. Raises Conflict when it does not run."""
        name = container.get("targetContainerName")
        if not name:
            return ""
        record = self.records.get(name)
        if record is None or record.current is None or not record.running:
            raise Conflict(f"container {name}, which {container['name']} is to look into, does not run")
        return record.current.id

    async def stop(self, action: Action) -> None:
        """preStop, then the signal, then the end, all within the grace period."""
        record = self.records[action.container]
        if record.current is None:
            return
        record.stop_probes()
        container = container_named(self.pod, action.container)
        self.services.record(self.pod, "Killing", action.reason or f"Stopping container {action.container}")
        left_s = await podhooks.before_stop(self.services, container, record, self.address or "", action.grace_s)
        try:
            await self.services.engine.stop(record.current.id, timeout_s=left_s)
        except NotFound:
            record.lost()

    async def kill(self, name: str) -> None:
        """End a container at once, whatever was promised to it before."""
        record = self.records.get(name)
        if record is not None and record.current is not None:
            try:
                await self.services.engine.kill(record.current.id)
            except (NotFound, Conflict):
                return

    async def look(self, record: ContainerRecord) -> None:
        """See how a container's newest instance is now; keep its last words when this is its end."""
        if record.current is None:
            return
        known = record.current
        try:
            instance = await self.services.engine.get(known.id)
        except NotFound:
            if record.current is known:
                record.lost()
            return
        if record.observe(instance, clock.rfc3339(clock.now())):
            record.messages[instance.id] = await self._last_words(instance)

    async def _last_words(self, instance: Instance) -> str:
        """The termination message: what the container wrote to its file, or the end of its log where that is asked for."""
        name, attempt = instance.config.labels[LABEL_CONTAINER], int(instance.config.labels[LABEL_ATTEMPT])
        container = container_named(self.pod, name)
        message = await in_thread(_head, podvolumes.termination_log(self._folder, name, attempt))
        if (
            not message
            and container.get("terminationMessagePolicy") == "FallbackToLogsOnError"
            and instance.state.exit_code
        ):
            message = b"".join([line.data async for line in self.services.engine.logs(instance.id, tail=TAIL_LINES)])
            message = message[-TAIL_BYTES:]
        return message.decode(errors="replace")

    # the end

    async def release(self) -> None:
        """The pod is over: its network goes, its containers stay for their logs."""
        await self.services.engine.remove_sandbox(sandbox_id(self.pod))
        self.address = None

    async def clean(self) -> None:
        """Nothing is left but the API's object."""
        for record in list(self.records.values()):
            for instance in record.all():
                await self._remove(instance)
        self.records.clear()
        await self.release()
        await podvolumes.remove(self._folder)

    async def _remove(self, instance: Instance) -> None:
        try:
            await self.services.engine.remove(instance.id, force=True)
        except NotFound:
            return

    async def finalise(self) -> bool:
        """Let the API forget the pod. Says whether it has done so, or waits for somebody else's finalizer only."""
        meta = self.pod["metadata"]
        try:
            await self.services.client.delete(PODS, meta["name"], meta["namespace"], grace_s=0, uid=meta["uid"])
        except (NotFound, Conflict):
            return True
        except InsulaError as fault:
            log.warning("pod could not be finalised: %s", fault, extra={"pod": meta["name"]})
            return False
        return True


def _make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o666)
    path.chmod(0o666)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MESSAGE_BYTES)
    except OSError:
        return b""
