"""One pod's worker: look, decide (`podplan`), do (`podhands`), report (`podstatus`), wait to be woken.

A worker is the only one that touches its pod's sandbox, instances and volumes. It keeps nothing that cannot be found again: after
a restart the instances are known by their labels, the attempt by a label, the rest by the API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

from insula import clock
from insula.agent.podcontainers import ContainerRecord
from insula.agent.podfiles import config_names
from insula.agent.podhands import PodHands
from insula.agent.podplan import Action, plan
from insula.agent.podstatus import status_of
from insula.agent.podview import PodView, container_named
from insula.agent.services import PODS, Services
from insula.engine.contract import Instance
from insula.errors import Conflict, InsulaError, NotFound
from insula.model.resource import Resource
from insula.tasks import Tasks

log = logging.getLogger(__name__)
RETRY_S = 2.0
SANDBOX = "the sandbox"  # no container's name
Work = Coroutine[Any, Any, None]


class PodWorker:
    """Runs one pod until it is gone. `wake` after any change; `run` ends when nothing of the pod is left."""

    def __init__(self, services: Services, pod: Resource, instances: Iterable[Instance]) -> None:
        self._services = services
        self._hands = PodHands(services, pod, instances)
        self.uid: str = pod["metadata"]["uid"]
        self.references = config_names(pod)
        self._wake = asyncio.Event()
        self._tasks = Tasks(f"pod-{pod['metadata']['name']}")
        self._busy: set[str] = set()
        self._grace_s: dict[str, float] = {}  # what a container that is being stopped was given
        self._ending_at: float | None = None
        self._stale_volumes = False
        self._gone = False

    @property
    def pod(self) -> Resource:
        """As the API showed it last."""
        return self._hands.pod

    # being told

    def changed(self, pod: Resource | None) -> None:
        """The API shows the pod anew; None when it is gone from there (deleted by force). What is older than this worker's own
        last write is not news."""
        if pod is None:
            end = {"deletionTimestamp": clock.rfc3339(clock.now()), "deletionGracePeriodSeconds": 0}
            self._hands.pod = {**self.pod, "metadata": {**self.pod["metadata"], **end}}
            self._gone = True
        elif _revision(pod) >= _revision(self.pod):
            old, self._hands.pod = self.pod["metadata"], pod
            self._stale_volumes |= any(old.get(name) != pod["metadata"].get(name) for name in ("labels", "annotations"))
            self.references = config_names(pod)
        self._wake.set()

    def wake(self) -> None:
        """Something about the pod's containers has changed."""
        self._wake.set()

    def refers_to_changed(self) -> None:
        """A ConfigMap or Secret that the pod names has changed: volumes are written anew, what failed for it is tried again."""
        self._stale_volumes = True
        for record in self._hands.records.values():
            record.hope()
        self._hands.retry_at = 0.0
        self._wake.set()

    # the loop

    async def run(self) -> None:
        """Work until the pod and everything of it is gone."""
        try:
            await self._hands.find()
            self._stale_volumes = self._hands.address is not None
            while True:
                self._wake.clear()
                done, after_s = await self._pass()
                if done:
                    return
                await self._wait(after_s)
        finally:
            await self._tasks.close()

    async def _wait(self, after_s: float | None) -> None:
        try:
            async with asyncio.timeout(after_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _pass(self) -> tuple[bool, float | None]:
        """(whether the pod is gone, seconds until the next look at the latest)."""
        for record in list(self._hands.records.values()):
            await self._hands.look(record)
            self._probe(record)
        view = self._view()
        actions = plan(view)
        waits = [action.after_s for action in actions if action.do == "wait"]
        if any(action.do == "clean" for action in actions):
            await self._report(view)
            return await self._leave()
        for action in actions:
            waits += self._do(action)
        waits += self._keep_volumes(view)
        await self._report(view)
        return False, min(waits, default=None)

    def _view(self) -> PodView:
        hands, now_s = self._hands, asyncio.get_running_loop().time()
        return PodView(
            pod=self.pod,
            now=clock.rfc3339(clock.now()),
            containers={name: record.view() for name, record in hands.records.items()},
            has_sandbox=hands.address is not None,
            address=hands.address or "",
            host_address=self._services.address,
            trouble=hands.trouble,
            started_at=(self.pod.get("status") or {}).get("startTime") or "",
            ending_for_s=now_s - self._ending_at if self._ending_at is not None else 0.0,
        )

    # doing

    def _do(self, action: Action) -> list[float]:
        """Set an action going beside others. Returns after how long to look again, if that is known."""
        match action.do:
            case "sandbox":
                wait_s = self._hands.retry_at - asyncio.get_running_loop().time()
                if wait_s > 0:
                    return [wait_s]
                self._spawn(SANDBOX, self._hands.make_sandbox())
            case "start":
                self._spawn(action.container, self._hands.start(action.container))
            case "stop":
                self._stop(action)
            case "release":
                self._spawn(SANDBOX, self._hands.release())
        return []

    def _stop(self, action: Action) -> None:
        """Stop a container; one that is being stopped already may be given less time than before."""
        name = action.container
        if self._ending_at is None and self.pod["metadata"].get("deletionTimestamp"):
            self._ending_at = asyncio.get_running_loop().time()
        promised_s = self._grace_s.get(name)
        if name in self._busy:
            if promised_s is not None and action.grace_s < promised_s:
                self._grace_s[name] = action.grace_s
                self._tasks.spawn(self._kill_after(name, action.grace_s), f"kill-{name}")
            return
        self._grace_s[name] = action.grace_s
        self._spawn(name, self._hands.stop(action))

    async def _kill_after(self, name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if name in self._busy:
            await self._hands.kill(name)

    def _spawn(self, what: str, work: Work) -> None:
        """Do something for a container, or for the sandbox, unless something is being done for it already."""
        if what in self._busy:
            work.close()
            return
        self._busy.add(what)
        self._tasks.spawn(self._guarded(what, work), what)

    async def _guarded(self, what: str, work: Work) -> None:
        """A fault is not tried again at once."""
        try:
            await work
        except Exception as fault:
            sentence = "work for a pod failed"
            if isinstance(fault, InsulaError):
                log.warning("%s: %s", sentence, fault, extra={"pod": self.pod["metadata"]["name"], "what": what})
            else:
                log.exception(sentence, extra={"pod": self.pod["metadata"]["name"], "what": what})
            await asyncio.sleep(RETRY_S)
        finally:
            self._busy.discard(what)
            self._grace_s.pop(what, None)
            self._wake.set()

    def _keep_volumes(self, view: PodView) -> list[float]:
        """Written volumes follow what they were written from, as long as something of the pod may read them."""
        if not view.has_sandbox or view.final or view.pod["metadata"].get("deletionTimestamp"):
            return []
        left_s = self._hands.renew_in_s()
        if self._stale_volumes or left_s == 0:
            self._stale_volumes = False
            self._spawn("the volumes", self._refresh())
            return []
        return [] if left_s is None else [left_s]

    async def _refresh(self) -> None:
        try:
            await self._hands.write_volumes()
        except InsulaError as fault:
            self._services.record(self.pod, "FailedMount", fault.message, "Warning")
            raise

    # the end

    async def _leave(self) -> tuple[bool, float | None]:
        """Everything has ended: clean up, then let the API forget it."""
        if self._busy:
            return False, None
        await self._hands.clean()
        if self._gone:
            return True, None
        if not await self._hands.finalise():
            return False, RETRY_S
        return not self.pod["metadata"].get("finalizers"), None

    # telling

    async def _report(self, view: PodView) -> None:
        status = status_of(view)
        if self._gone or status == (self.pod.get("status") or {}):
            return
        meta = self.pod["metadata"]
        try:
            wish = {**self.pod, "status": status}
            written = await self._services.client.update(PODS, wish, meta["namespace"], sub="status")
        except NotFound:
            self.changed(None)
        except Conflict:
            await self._reread()
        else:
            if not self._gone and _revision(written) >= _revision(self.pod):
                self._hands.pod = written

    async def _reread(self) -> None:
        """The status was based on an old object: read the newest one and look again."""
        meta = self.pod["metadata"]
        try:
            fresh = await self._services.client.get(PODS, meta["name"], meta["namespace"])
        except NotFound:
            self.changed(None)
            return
        self.changed(fresh if fresh["metadata"]["uid"] == self.uid else None)

    # probes

    def _probe(self, record: ContainerRecord) -> None:
        container = container_named(self.pod, record.name)
        if container and record.running and record.name not in self._busy:
            record.probe(self._services.engine, self._tasks, container, self._hands.address or "", self._told)

    def _told(self, record: ContainerRecord, message: str) -> None:
        if message:
            self._services.record(self.pod, "Unhealthy", message, "Warning")
        self._wake.set()


def _revision(pod: Resource) -> int:
    text = str(pod["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0
