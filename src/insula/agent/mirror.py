"""What `docker run` started, shown in the cluster: one mirror Pod per instance that no pod owns.

Mirror pods are read-only shadows, as the kubelet makes them for static pods: in namespace `docker`, named after the container and
the node, annotated `kubernetes.io/config.mirror`. Deleting one does not touch the container; it comes back. They count in
scheduling (requests and the node's pods), so the cluster never gives away what Docker uses.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

from insula.agent.pods import MIRROR
from insula.agent.podview import as_kubernetes_time
from insula.agent.services import NAMESPACES, PODS, Services
from insula.engine.contract import Instance
from insula.errors import AlreadyExists, Conflict, Expired, InsulaError, NotFound
from insula.model.resource import Resource
from insula.tasks import Tasks

log = logging.getLogger(__name__)
NAMESPACE = "docker"
ID = "insula.dev/instance"
AGAIN_S = 5.0
SETTLE_S = 0.2  # a container that lives for less than this leaves no trace in the cluster


def pod_name(instance: Instance, node: str) -> str:
    """A DNS name from a container's name; the id's head keeps two names apart that differ only in what DNS forbids."""
    plain = re.sub(r"[^a-z0-9.-]+", "-", instance.config.name.lower()).strip("-.")
    if plain != instance.config.name:
        plain = f"{plain}-{instance.id[:8]}".strip("-")
    return f"{plain[:180]}-{node}"


def mirrors(pod: Resource, instance: Instance, node: str) -> bool:
    """Whether a Pod really is the mirror of an instance: anybody may write the annotation, only the agent makes both agree."""
    meta = pod["metadata"]
    named = (meta.get("annotations") or {}).get(MIRROR) == instance.id and meta["name"] == pod_name(instance, node)
    return named and meta["namespace"] == NAMESPACE and instance.config.owner != "kube"


def mirror_of(instance: Instance, node: str, address: str) -> Resource:
    """The mirror Pod of an instance. Pure."""
    config, state = instance.config, instance.state
    requests: dict[str, str] = {}
    if config.resources.memory_bytes:
        requests["memory"] = str(config.resources.memory_bytes)
    if config.resources.cpu_quota_us and config.resources.cpu_period_us:
        requests["cpu"] = f"{config.resources.cpu_quota_us * 1000 // config.resources.cpu_period_us}m"
    container: dict[str, Any] = {
        "name": "container",
        "image": config.image or "unknown",
        "resources": {"limits": requests},
    }
    container["imagePullPolicy"] = "Never"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(instance, node),
            "namespace": NAMESPACE,
            "labels": {"insula.dev/owner": config.owner},
            "annotations": {MIRROR: instance.id, "kubernetes.io/config.source": config.owner, ID: instance.id},
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
        },
        "status": _status(instance, state, address),
    }


def _status(instance: Instance, state: Any, address: str) -> dict[str, Any]:
    running = state.name in ("running", "paused")
    phase = "Running" if running else "Pending" if state.name in ("created", "restarting") else _ended(state.exit_code)
    inside: dict[str, Any]
    if running:
        inside = {"running": {"startedAt": as_kubernetes_time(state.started_at)}}
    elif state.finished_at:
        reason = "Completed" if state.exit_code == 0 else "Error"
        times = {"startedAt": as_kubernetes_time(state.started_at), "finishedAt": as_kubernetes_time(state.finished_at)}
        inside = {"terminated": {"exitCode": state.exit_code, "reason": reason, **times}}
    else:
        inside = {"waiting": {"reason": "Created"}}
    status: dict[str, Any] = {
        "phase": phase,
        "hostIP": address,
        "startTime": as_kubernetes_time(instance.created),
        "conditions": [
            {"type": name, "status": "True" if running else "False"} for name in ("Ready", "ContainersReady")
        ],
        "containerStatuses": [
            {
                "name": "container",
                "image": instance.config.image or "unknown",
                "imageID": instance.image.id if instance.image else "",
                "containerID": f"insula://{instance.id}",
                "ready": running,
                "started": running,
                "restartCount": state.restart_count,
                "state": inside,
                "lastState": {},
            }
        ],
    }
    found = next((endpoint.address for endpoint in instance.endpoints if endpoint.address), "")
    if found:
        status["podIP"] = found
        status["podIPs"] = [{"ip": found}]
    return status


def _ended(code: int) -> str:
    return "Succeeded" if code == 0 else "Failed"


class Mirror:
    """Keeps the mirror Pods of this node as the engine says."""

    def __init__(self, services: Services, tasks: Tasks) -> None:
        self._services = services
        self._tasks = tasks
        self._wake = asyncio.Event()

    async def start(self) -> None:
        """Follow the engine; compare everything once at the beginning and after lost events."""
        self._services.caches.subscribe(PODS, self._pod)
        self._tasks.spawn(self._follow(), "mirror-events")
        self._tasks.spawn(self._run(), "mirror")

    def _pod(self, old: Resource | None, new: Resource | None) -> None:
        pod = new or old
        assert pod is not None
        gone = new is None or new["metadata"].get("deletionTimestamp")
        if gone and MIRROR in (pod["metadata"].get("annotations") or {}):
            self._wake.set()

    async def _follow(self) -> None:
        while True:
            try:
                async for event in self._services.engine.events():
                    if event.type == "container" and not event.action.startswith("exec_"):
                        self._wake.set()
                return
            except Expired:
                self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._compare()
            except Exception as fault:
                log.warning(
                    "mirror pods could not be written", exc_info=None if isinstance(fault, InsulaError) else fault
                )
                await asyncio.sleep(AGAIN_S)
                continue
            await self._wake.wait()
            await asyncio.sleep(SETTLE_S)

    async def _compare(self) -> None:
        mine = [i for i in await self._services.engine.list() if i.config.owner == "docker"]
        wanted = {
            i.id: mirror_of(i, self._services.node, self._services.address) for i in mine if i.state.name != "removing"
        }
        seen: dict[str, Resource] = {}
        for pod in self._services.caches.list(PODS, NAMESPACE):
            id_ = (pod["metadata"].get("annotations") or {}).get(MIRROR)
            if id_ and pod["spec"].get("nodeName") == self._services.node:
                wish = wanted.get(id_)
                outdated = wish is None or wish["metadata"]["name"] != pod["metadata"]["name"]
                if outdated or pod["metadata"].get("deletionTimestamp"):
                    await self._remove(pod)
                else:
                    seen[id_] = pod
        for id_, wish in wanted.items():
            await self._write(wish, seen.get(id_))

    async def _remove(self, pod: Resource) -> None:
        meta = pod["metadata"]
        try:
            await self._services.client.delete(PODS, meta["name"], NAMESPACE, grace_s=0, uid=meta["uid"])
        except (NotFound, Conflict):
            return

    async def _write(self, wish: Resource, present: Resource | None) -> None:
        if present is None:
            present = await self._create(wish)
        if present is None or _equal(present.get("status") or {}, wish["status"]):
            return
        try:
            status = {**(present.get("status") or {}), **wish["status"]}
            await self._services.client.update(PODS, {**present, "status": status}, NAMESPACE, sub="status")
        except (NotFound, Conflict):
            self._wake.set()

    async def _create(self, wish: Resource) -> Resource | None:
        bare = {name: value for name, value in wish.items() if name != "status"}
        try:
            return await self._services.client.create(PODS, bare, NAMESPACE)
        except AlreadyExists:
            return None
        except NotFound:
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
            await self._services.client.create(NAMESPACES, namespace)
            return await self._services.client.create(PODS, bare, NAMESPACE)


def _equal(have: dict[str, Any], want: dict[str, Any]) -> bool:
    return all(have.get(name) == value for name, value in want.items())
