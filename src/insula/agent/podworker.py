"""One pod's worker: look, decide (`podplan`), do, report (`podstatus`), wait to be woken.

A worker is the only one that touches its pod's sandbox, instances and volumes. It keeps nothing that cannot be found again: after
a restart the instances are known by their labels, the attempt by a label, the rest by the API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any

from insula import clock
from insula.agent import podhooks, podimages, podvolumes
from insula.agent.podcontainers import ContainerRecord, records_of
from insula.agent.podenv import environment
from insula.agent.podfacts import facts_of, references_of, volume_files
from insula.agent.podplan import Action, plan
from insula.agent.podspec import instance_of, sandbox_id, sandbox_of
from insula.agent.podstatus import status_of
from insula.agent.podview import PodView, Trouble, all_containers
from insula.agent.services import PODS, Services
from insula.engine.contract import Instance
from insula.errors import Conflict, InsulaError, NotFound
from insula.model.instance import InstanceConfig, MountConfig
from insula.model.resource import Resource
from insula.tasks import Tasks

log = logging.getLogger(__name__)
RETRY_S = 2.0


class PodWorker:
    """Runs one pod until it is gone. `wake` after any change; `run` ends when nothing of the pod is left."""

    def __init__(self, services: Services, pod: Resource, instances: Iterable[Instance]) -> None:
        self.services = services
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self._records = records_of(instances)
        self._wake = asyncio.Event()
        self._tasks = Tasks(f"pod-{pod['metadata']['name']}")
        self._busy: set[str] = set()
        self._mounts: dict[str, MountConfig] | None = None
        self._sandbox_address: str | None = None
        self._trouble: Trouble | None = None
        self._killed_for: tuple[str, str] | None = None
        self._gone = False

    # being told

    def changed(self, pod: Resource | None) -> None:
        """The API shows the pod anew; None when it is gone from there (deleted by force)."""
        if pod is None:
            meta = {
                **self.pod["metadata"],
                "deletionTimestamp": clock.rfc3339(clock.now()),
                "deletionGracePeriodSeconds": 0,
            }
            self.pod = {**self.pod, "metadata": meta}
            self._gone = True
        else:
            self.pod = pod
        self._wake.set()

    def wake(self) -> None:
        """Something about the pod's containers or references has changed."""
        self._wake.set()

    # the loop

    async def run(self) -> None:
        """Work until the pod and everything of it is gone."""
        try:
            await self._find_sandbox()
            while True:
                self._wake.clear()
                done, after_s = await self._pass()
                if done:
                    return
                await self._wait(after_s)
        finally:
            for record in self._records.values():
                record.stop_probes()
            await self._tasks.close()

    async def _wait(self, after_s: float | None) -> None:
        try:
            async with asyncio.timeout(after_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _pass(self) -> tuple[bool, float | None]:
        """(whether the pod is gone, seconds until the next look at the latest)."""
        await self._look()
        view = self._view()
        actions = plan(view)
        if not view.pod["metadata"].get("deletionTimestamp") and any(a.reason == "DeadlineExceeded" for a in actions):
            self._killed_for = ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
        await self._report(view)
        waits = [action.after_s for action in actions if action.do == "wait"]
        for action in actions:
            if action.do == "forget":
                return await self._forget(), RETRY_S
            if action.do != "wait":
                await self._do(action)
        if self._trouble:
            waits.append(RETRY_S)
        return False, min(waits, default=None) if waits else None

    async def _look(self) -> None:
        for record in self._records.values():
            if record.current is not None:
                try:
                    record.observe(await self.services.engine.get(record.current.id), clock.rfc3339(clock.now()))
                except NotFound:
                    record.lost()
            self._follow_probes(record)

    def _view(self) -> PodView:
        started = (self.pod.get("status") or {}).get("startTime") or ""
        return PodView(
            pod=self.pod,
            now=clock.rfc3339(clock.now()),
            containers={name: record.view() for name, record in self._records.items()},
            has_sandbox=self._sandbox_address is not None,
            address=self._sandbox_address or "",
            host_address=self.services.address,
            trouble=self._trouble,
            killed_for=self._killed_for,
            started_at=started,
        )

    async def _report(self, view: PodView) -> None:
        status = status_of(view)
        if self._gone or status == (self.pod.get("status") or {}):
            return
        meta = self.pod["metadata"]
        try:
            wish = {**self.pod, "status": status}
            self.pod = await self.services.client.update(PODS, wish, meta["namespace"], sub="status")
        except NotFound:
            self._gone = True
        except Conflict:
            self._tasks.spawn(self._again(), "status-again")

    async def _again(self) -> None:
        """The status was based on an old object: read the newest one and look again."""
        meta = self.pod["metadata"]
        try:
            fresh = await self.services.client.get(PODS, meta["name"], meta["namespace"])
        except NotFound:
            self.changed(None)
            return
        self.changed(fresh if fresh["metadata"]["uid"] == self.uid else None)

    # doing

    async def _do(self, action: Action) -> None:
        match action.do:
            case "sandbox":
                await self._guard(self._make_sandbox())
            case "start":
                self._spawn(action.container, self._start(action.container))
            case "stop":
                self._spawn(action.container, self._stop(action))
            case "release":
                await self._release()
            case "clean":
                await self._clean()

    def _spawn(self, container: str, work: Coroutine[Any, Any, None]) -> None:
        if container in self._busy:
            work.close()
            return
        self._busy.add(container)

        async def guarded() -> None:
            try:
                await work
            finally:
                self._busy.discard(container)
                self._wake.set()

        self._tasks.spawn(guarded(), container)

    async def _guard(self, work: Awaitable[None]) -> None:
        try:
            await work
            self._trouble = None
        except InsulaError as fault:
            now = clock.rfc3339(clock.now())
            if self._trouble is None or self._trouble.message != str(fault):
                await self.services.record(self.pod, "FailedCreatePodSandBox", str(fault), "Warning")
                self._trouble = Trouble("ContainerCreating", str(fault), now)

    async def _find_sandbox(self) -> None:
        try:
            sandbox = await self.services.engine.get_sandbox(sandbox_id(self.pod))
        except NotFound:
            return
        self._sandbox_address = sandbox.address or self.services.address

    async def _make_sandbox(self) -> None:
        await self._prepare_volumes()
        sandbox = await self.services.engine.make_sandbox(sandbox_of(self.pod))
        self._sandbox_address = sandbox.address or self.services.address
        self._wake.set()

    async def _prepare_volumes(self) -> None:
        files = await volume_files(self.services, self.pod, self._sandbox_address or "")
        self._mounts = await podvolumes.prepare(self.services.pod_folder(self.uid), self.pod, files)

    async def refresh(self) -> None:
        """Write changed ConfigMaps, Secrets and tokens into the pod's volumes."""
        if self._mounts is not None and not self.pod["metadata"].get("deletionTimestamp"):
            try:
                await self._prepare_volumes()
            except InsulaError as fault:
                await self.services.record(self.pod, "FailedMount", str(fault), "Warning")

    async def _start(self, name: str) -> None:
        container = next(c for c in all_containers(self.pod) if c["name"] == name)
        record = self._records.setdefault(name, ContainerRecord(name))
        try:
            await podimages.ensure(self.services, self.pod, container)
            config = await self._config(container, record.attempt + 1)
            made = await self.services.engine.create(config)
            await self.services.record(self.pod, "Created", f"Created container: {name}")
        except podimages.ImageError as fault:
            record.troubled(fault.trouble(clock.rfc3339(clock.now())), pull=True)
            return
        except InsulaError as fault:
            await self._failed(record, "CreateContainerConfigError", fault)
            return
        await self._run(record, container, made)

    async def _run(self, record: ContainerRecord, container: Resource, made: Instance) -> None:
        outdated = record.begun(made)
        try:
            record.observe(await self.services.engine.start(made.id), clock.rfc3339(clock.now()))
            await self.services.record(self.pod, "Started", f"Started container {record.name}")
            await podhooks.after_start(self.services, container, record, self._sandbox_address or "")
        except InsulaError as fault:
            await self._failed(record, "RunContainerError", fault)
        for instance in outdated:
            await self.services.engine.remove(instance.id, force=True)

    async def _failed(self, record: ContainerRecord, reason: str, fault: InsulaError) -> None:
        record.troubled(Trouble(reason, fault.message, clock.rfc3339(clock.now())))
        await self.services.record(self.pod, "Failed", f"Error: {fault.message}", "Warning")

    async def _config(self, container: Resource, attempt: int) -> InstanceConfig:
        if self._mounts is None:
            await self._prepare_volumes()
        facts = facts_of(self.services, self._sandbox_address or "")
        env = environment(container, self.pod, references_of(self.services, self.pod), facts, self.services.service_env)
        assert self._mounts is not None
        return instance_of(self.pod, container, attempt=attempt, env=env, mounts=self._mounts)

    async def _stop(self, action: Action) -> None:
        record = self._records[action.container]
        if record.current is None:
            return
        record.stop_probes()
        container = next((c for c in all_containers(self.pod) if c["name"] == action.container), {})
        await self.services.record(self.pod, "Killing", f"Stopping container {action.container}")
        left_s = await podhooks.before_stop(
            self.services, container, record, self._sandbox_address or "", action.grace_s
        )
        try:
            await self.services.engine.stop(record.current.id, timeout_s=left_s)
        except NotFound:
            record.lost()

    async def _release(self) -> None:
        """The pod is over: its network goes, its containers stay for their logs."""
        if self._busy:
            return
        await self.services.engine.remove_sandbox(sandbox_id(self.pod))
        self._sandbox_address = None

    async def _clean(self) -> None:
        if self._busy:
            return
        for record in self._records.values():
            for instance in record.all():
                try:
                    await self.services.engine.remove(instance.id, force=True)
                except NotFound:
                    continue
        self._records.clear()
        await self.services.engine.remove_sandbox(sandbox_id(self.pod))
        self._sandbox_address = None
        await podvolumes.remove(self.services.pod_folder(self.uid))

    async def _forget(self) -> bool:
        """Let the API forget the pod. Says whether everything of it is gone."""
        if self._busy or self._records:
            return False
        if self._gone:
            return True
        meta = self.pod["metadata"]
        try:
            await self.services.client.delete(PODS, meta["name"], meta["namespace"], grace_s=0, uid=self.uid)
        except (NotFound, Conflict):
            return True
        except InsulaError as fault:
            log.warning("pod could not be finalised: %s", fault, extra={"pod": meta["name"]})
            return False
        return not self.pod["metadata"].get("finalizers")

    def _follow_probes(self, record: ContainerRecord) -> None:
        container = next((c for c in all_containers(self.pod) if c["name"] == record.name), None)
        if container is None or not record.running or record.name in self._busy:
            return
        record.probe(self.services, self._tasks, container, self._sandbox_address or "", self._told)

    def _told(self, record: ContainerRecord, message: str) -> None:
        if message:
            self._tasks.spawn(self.services.record(self.pod, "Unhealthy", message, "Warning"), "unhealthy")
        self._wake.set()
