"""All pods of this node: a worker each, woken by the API, by the engine and by what the pods refer to."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

from insula.agent.podspec import LABEL_NAMESPACE, LABEL_POD, LABEL_UID
from insula.agent.podworker import PodWorker
from insula.agent.services import CONFIG_MAPS, PODS, RUNTIME_CLASSES, SECRETS, SERVICE_ACCOUNTS, Services
from insula.client.cache import Handler
from insula.engine.contract import Event, Instance
from insula.errors import Expired, InsulaError
from insula.model.resource import Resource
from insula.tasks import Tasks

log = logging.getLogger(__name__)
MIRROR = "kubernetes.io/config.mirror"
AGAIN_S = 1.0


class Pods:
    """Starts a worker for every pod bound to this node and ends with it. Orphans of the engine are removed."""

    def __init__(self, services: Services, tasks: Tasks) -> None:
        self._services = services
        self._tasks = tasks
        self._workers: dict[str, PodWorker] = {}
        self._found: dict[str, list[Instance]] = defaultdict(list)

    def subscribe(self) -> None:
        """Ask the caches for what this needs; they are filled before `start`."""
        for ref in (PODS, CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS, RUNTIME_CLASSES):
            self._services.caches.informer(ref)

    async def start(self) -> None:
        """Take back what runs, then follow the API and the engine."""
        for instance in await self._services.engine.list():
            if instance.config.owner == "kube" and LABEL_UID in instance.config.labels:
                self._found[instance.config.labels[LABEL_UID]].append(instance)
        caches = self._services.caches
        caches.subscribe(CONFIG_MAPS, self._reference("configmaps"))
        caches.subscribe(SECRETS, self._reference("secrets"))
        caches.subscribe(PODS, self._pod)
        await self._adopt_orphans()
        self._tasks.spawn(self._follow_engine(), "engine-events")

    # the API

    def _mine(self, pod: Resource) -> bool:
        meta = pod["metadata"]
        return pod["spec"].get("nodeName") == self._services.node and MIRROR not in (meta.get("annotations") or {})

    def _pod(self, old: Resource | None, new: Resource | None) -> None:
        if old is not None and (new is None or new["metadata"]["uid"] != old["metadata"]["uid"]):
            worker = self._workers.get(old["metadata"]["uid"])
            if worker is not None:
                worker.changed(None)
        if new is None or not self._mine(new):
            return
        worker = self._workers.get(new["metadata"]["uid"])
        if worker is None:
            self._begin(new)
        else:
            worker.changed(new)

    def _reference(self, plural: str) -> Handler:
        def changed(old: Resource | None, new: Resource | None) -> None:
            obj = new or old
            assert obj is not None
            wanted, namespace = (plural, obj["metadata"]["name"]), obj["metadata"]["namespace"]
            for worker in self._workers.values():
                if wanted in worker.references and worker.pod["metadata"]["namespace"] == namespace:
                    worker.refers_to_changed()

        return changed

    # workers

    def _begin(self, pod: Resource) -> PodWorker:
        uid = pod["metadata"]["uid"]
        worker = self._workers[uid] = PodWorker(self._services, pod, self._found.pop(uid, ()))
        self._tasks.spawn(self._work(worker), f"pod-{pod['metadata']['name']}")
        return worker

    async def _work(self, worker: PodWorker) -> None:
        """Run a worker to its end; one that fails is begun anew from what is found."""
        while True:
            try:
                await worker.run()
                break
            except InsulaError as fault:
                log.warning("pod worker failed: %s", fault, extra={"uid": worker.uid})
            except Exception:
                log.exception("pod worker failed", extra={"uid": worker.uid})
            await asyncio.sleep(AGAIN_S)
            instances = await self._instances_of(worker.uid)
            worker = self._workers[worker.uid] = PodWorker(self._services, worker.pod, instances)
        self._workers.pop(worker.uid, None)

    async def _instances_of(self, uid: str) -> list[Instance]:
        return [found for found in await self._services.engine.list() if found.config.labels.get(LABEL_UID) == uid]

    async def _adopt_orphans(self) -> None:
        """Instances and sandboxes of pods that the API no longer has: a worker for a pod that is already deleted ends them."""
        for uid, instances in list(self._found.items()):
            self._begin_gone(uid, instances[0].config.labels)
        for sandbox in await self._services.engine.list_sandboxes():
            uid = sandbox.config.labels.get(LABEL_UID, "")
            if uid and uid not in self._workers:
                self._begin_gone(uid, sandbox.config.labels)

    def _begin_gone(self, uid: str, labels: dict[str, str]) -> None:
        meta = {"name": labels.get(LABEL_POD, uid), "namespace": labels.get(LABEL_NAMESPACE, "default"), "uid": uid}
        pod: Resource = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": []}, "status": {}}
        self._begin(pod).changed(None)

    # the engine

    async def _follow_engine(self) -> None:
        while True:
            try:
                async for event in self._services.engine.events():
                    self._event(event)
                return
            except Expired:
                log.warning("missed events of the engine; every pod looks again")
            for worker in self._workers.values():
                worker.wake()

    def _event(self, event: Event) -> None:
        if event.type == "container" and not event.action.startswith("exec_"):
            worker = self._workers.get(event.attributes.get(LABEL_UID, ""))
            if worker is not None:
                worker.wake()
