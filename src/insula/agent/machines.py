"""VirtualMachineInstances bound to this node: a worker each, as for pods, but one Instance and no pod.

`decide` is pure: the machine, its instance, and what the user asked through the door (pause) → what to do. The phases are
KubeVirt's: Scheduled when a node is chosen, Running, then Succeeded (the guest switched off) or Failed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from insula import clock
from insula.agent import podimages
from insula.agent.machinespec import LABEL_MACHINE_UID
from insula.agent.podfacts import secrets_of
from insula.agent.services import MACHINES, SECRETS, Services
from insula.agent.vmspec import image_references, instance_of, secret_names
from insula.engine.contract import Event, Instance
from insula.errors import Conflict, Expired, InsulaError, NotFound
from insula.model.resource import Resource
from insula.tasks import Tasks

log = logging.getLogger(__name__)
FINAL = ("Succeeded", "Failed")
FINALIZER = "foregroundDeleteVirtualMachine"
DEFAULT_GRACE_S = 30.0
RETRY_S = 5.0


def decide(machine: Resource, instance: Instance | None) -> str:
    """start, stop, remove, forget or nothing."""
    deleted = bool(machine["metadata"].get("deletionTimestamp"))
    phase = (machine.get("status") or {}).get("phase", "")
    running = instance is not None and instance.state.name in ("running", "paused")
    if deleted:
        return "stop" if running else "remove" if instance is not None else "forget"
    if phase in FINAL:
        return "nothing"
    made = instance is not None and instance.state.name == "created"  # a start that a crash cut short
    return "start" if instance is None or made else "nothing"


def status_of(
    machine: Resource, instance: Instance | None, node: str, accelerator: str, trouble: tuple[str, str] | None, now: str
) -> dict[str, Any]:
    """The status that the instance amounts to. Pure; what others wrote is kept."""
    old = machine.get("status") or {}
    status: dict[str, Any] = {**old, "nodeName": node}
    phase = _phase(old.get("phase", ""), machine, instance)
    status["phase"] = phase
    transitions = list(old.get("phaseTransitionTimestamps") or [])
    if phase and phase not in [entry["phase"] for entry in transitions]:
        transitions.append({"phase": phase, "phaseTransitionTimestamp": now})
    status["phaseTransitionTimestamps"] = transitions
    status["conditions"] = _conditions(old.get("conditions") or [], phase, instance, accelerator, trouble, now)
    if instance is not None and phase == "Running":
        status.update(_running(machine, instance, node))
    return status


def _phase(old: str, machine: Resource, instance: Instance | None) -> str:
    if old in FINAL:
        return old
    if instance is None:
        return "Succeeded" if machine["metadata"].get("deletionTimestamp") and old == "Running" else old or "Scheduled"
    if instance.state.name in ("running", "paused"):
        return "Running"
    if instance.state.name in ("exited", "dead"):
        stopping = machine["metadata"].get("deletionTimestamp")
        return "Succeeded" if instance.state.exit_code == 0 or stopping else "Failed"
    return "Scheduled"


def _running(machine: Resource, instance: Instance, node: str) -> dict[str, Any]:
    config = instance.config.machine
    assert config is not None
    names = [found["name"] for found in machine["spec"].get("networks") or ({"name": "default"},)]
    interfaces = [
        {
            "name": names[0] if names else "default",
            "ipAddress": endpoint.address,
            "ipAddresses": [endpoint.address],
            "mac": endpoint.mac,
            "interfaceName": "eth0",
            "infoSource": "domain",
            "queueCount": 1,
        }
        for endpoint in instance.endpoints
        if endpoint.address
    ]
    return {
        "interfaces": interfaces,
        "activePods": {instance.id[:36]: node},
        "machine": {"type": config.machine_type},
        "memory": {"guestAtBoot": str(config.memory_bytes), "guestCurrent": str(config.memory_bytes)},
        "currentCPUTopology": {"cores": config.cores, "sockets": config.sockets, "threads": config.threads},
        "guestOSInfo": {},
        "qosClass": "Burstable",
    }


def _conditions(
    old: list[dict[str, Any]],
    phase: str,
    instance: Instance | None,
    accelerator: str,
    trouble: tuple[str, str] | None,
    now: str,
) -> list[dict[str, Any]]:
    paused = instance is not None and instance.state.name == "paused"
    wanted: dict[str, tuple[str, str, str]] = {}
    if phase == "Running":
        wanted["Ready"] = ("False", "GuestNotRunning", "the guest is paused") if paused else ("True", "", "")
        why = (
            "the machine runs under software emulation (TCG): KVM does not work on this node"
            if accelerator == "tcg"
            else ""
        )
        wanted["Accelerated"] = ("False" if accelerator == "tcg" else "True", accelerator.upper(), why)
        wanted["LiveMigratable"] = ("False", "NotSupported", "live migration is not supported yet")
    else:
        reason, message = trouble or ("GuestNotRunning", "Guest VM is not reported as running")
        wanted["Ready"] = ("False", reason, message)
    if paused:
        wanted["Paused"] = ("True", "PausedByUser", "VMI was paused by user")
    before = {found["type"]: found for found in old}
    result = []
    for type_, (status, reason, message) in wanted.items():
        same = before.get(type_, {}).get("status") == status and "lastTransitionTime" in before.get(type_, {})
        since = before[type_]["lastTransitionTime"] if same else now
        found = {"type": type_, "status": status, "lastProbeTime": None, "lastTransitionTime": since}
        result.append(found | ({"reason": reason} if reason else {}) | ({"message": message} if message else {}))
    dropped = {"Paused", "Unschedulable", *wanted}
    return [*result, *(found for found in old if found["type"] not in dropped)]


class MachineWorker:
    """Runs one VirtualMachineInstance until it is gone."""

    def __init__(self, services: Services, machine: Resource, instance: Instance | None) -> None:
        self._services = services
        self.machine = machine
        self.uid: str = machine["metadata"]["uid"]
        self._instance = instance
        self._wake = asyncio.Event()
        self._trouble: tuple[str, str] | None = None
        self._gone = False

    def changed(self, machine: Resource | None) -> None:
        """The API shows it anew; None when it is gone from there."""
        if machine is None:
            self._gone = True
            meta = {**self.machine["metadata"], "deletionTimestamp": clock.rfc3339(clock.now())}
            self.machine = {**self.machine, "metadata": meta}
        else:
            self.machine = machine
        self._wake.set()

    def wake(self) -> None:
        """Its instance has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Look, act, report, wait."""
        while True:
            self._wake.clear()
            await self._look()
            action = decide(self.machine, self._instance)
            if action == "forget" and await self._forget():
                return
            await self._act(action)
            await self._report()
            try:
                async with asyncio.timeout(RETRY_S if self._trouble or action in ("forget", "remove") else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        if self._instance is None:
            return
        try:
            self._instance = await self._services.engine.get(self._instance.id)
        except NotFound:
            self._instance = None

    async def _act(self, action: str) -> None:
        try:
            if action == "start":
                await self._start()
            elif action == "stop":
                assert self._instance is not None
                grace_s = float(self.machine["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_S))
                wanted = self.machine["metadata"].get("deletionGracePeriodSeconds")
                await self._services.engine.stop(
                    self._instance.id, timeout_s=grace_s if wanted is None else float(wanted)
                )
                self._wake.set()
            elif action == "remove":
                assert self._instance is not None
                await self._services.engine.remove(self._instance.id, force=True, volumes=True)
                self._wake.set()
            self._trouble = None
        except podimages.ImageError as fault:
            self._trouble = (fault.reason, fault.message)
        except InsulaError as fault:
            await self._failed(fault)

    async def _failed(self, fault: InsulaError) -> None:
        if self._trouble != ("FailedCreate", str(fault)):
            self._services.record(self.machine, "SyncFailed", str(fault), "Warning")
        self._trouble = ("FailedCreate", str(fault))
        if self._instance is not None:
            await self._services.engine.remove(self._instance.id, force=True, volumes=True)
            self._instance = None

    async def _start(self) -> None:
        for image, policy in image_references(self.machine):
            await podimages.ensure(self._services, self.machine, {"image": image, "imagePullPolicy": policy})
        secrets = secrets_of(self._services, self.machine["metadata"]["namespace"], secret_names(self.machine))
        if self._instance is None:
            self._instance = await self._services.engine.create(instance_of(self.machine, secrets))
        self._instance = await self._services.engine.start(self._instance.id)
        self._services.record(self.machine, "Started", "VirtualMachineInstance started.")
        if self.machine["spec"].get("startStrategy") == "Paused":
            self._instance = await self._services.engine.get(self._instance.id)

    async def _report(self) -> None:
        if self._gone:
            return
        accelerator = (await self._services.engine.probe())["vm"].facts.get("accelerator", "")
        now = clock.rfc3339(clock.now())
        status = status_of(self.machine, self._instance, self._services.node, accelerator, self._trouble, now)
        if status == (self.machine.get("status") or {}):
            return
        meta = self.machine["metadata"]
        try:
            wish = {**self.machine, "status": status}
            self.machine = await self._services.client.update(MACHINES, wish, meta["namespace"], sub="status")
        except NotFound:
            self.changed(None)
        except Conflict:
            await self._reread()

    async def _reread(self) -> None:
        meta = self.machine["metadata"]
        try:
            fresh = await self._services.client.get(MACHINES, meta["name"], meta["namespace"])
        except NotFound:
            self.changed(None)
            return
        self.changed(fresh if fresh["metadata"]["uid"] == self.uid else None)

    async def _forget(self) -> bool:
        """Take the agent's finalizer off, so that the API lets the machine go."""
        if self._gone:
            return True
        meta = self.machine["metadata"]
        if FINALIZER not in (meta.get("finalizers") or ()):
            return True
        kept = [name for name in meta["finalizers"] if name != FINALIZER]
        patch = {"metadata": {"uid": self.uid, "resourceVersion": meta["resourceVersion"], "finalizers": kept or None}}
        try:
            await self._services.client.patch(MACHINES, meta["name"], patch, meta["namespace"])
        except NotFound:
            return True
        except Conflict:
            await self._reread()
            return False
        return True


class Machines:
    """Starts a worker for every VirtualMachineInstance bound to this node."""

    def __init__(self, services: Services, tasks: Tasks) -> None:
        self._services = services
        self._tasks = tasks
        self._workers: dict[str, MachineWorker] = {}
        self._found: dict[str, Instance] = {}

    def subscribe(self) -> None:
        """Ask the caches for what this needs."""
        for ref in (MACHINES, SECRETS):
            self._services.caches.informer(ref)

    async def start(self) -> None:
        """Take back what runs, then follow the API and the engine; instances of vanished machines are ended."""
        for instance in await self._services.engine.list():
            if uid := instance.config.labels.get(LABEL_MACHINE_UID):
                self._found[uid] = instance
        self._services.caches.subscribe(MACHINES, self._machine)
        for instance in self._found.values():
            log.warning("machine without an object in the API is removed", extra={"instance": instance.config.name})
            await self._services.engine.remove(instance.id, force=True, volumes=True)
        self._found.clear()
        self._tasks.spawn(self._follow_engine(), "machine-events")

    def _machine(self, old: Resource | None, new: Resource | None) -> None:
        if old is not None and (new is None or new["metadata"]["uid"] != old["metadata"]["uid"]):
            gone = self._workers.get(old["metadata"]["uid"])
            if gone is not None:
                gone.changed(None)
        if new is None or (new.get("status") or {}).get("nodeName") != self._services.node:
            return
        uid = new["metadata"]["uid"]
        worker = self._workers.get(uid)
        if worker is not None:
            worker.changed(new)
            return
        worker = self._workers[uid] = MachineWorker(self._services, new, self._found.pop(uid, None))
        self._tasks.spawn(self._work(worker), f"machine-{new['metadata']['name']}")

    async def _work(self, worker: MachineWorker) -> None:
        while True:
            try:
                await worker.run()
                break
            except InsulaError as fault:
                log.warning("machine worker failed: %s", fault, extra={"uid": worker.uid})
            except Exception:
                log.exception("machine worker failed", extra={"uid": worker.uid})
            await asyncio.sleep(RETRY_S)
        self._workers.pop(worker.uid, None)

    async def _follow_engine(self) -> None:
        while True:
            try:
                async for event in self._services.engine.events():
                    self._event(event)
                return
            except Expired:
                log.warning("missed events of the engine; every machine looks again")
            for worker in self._workers.values():
                worker.wake()

    def _event(self, event: Event) -> None:
        worker = self._workers.get(event.attributes.get(LABEL_MACHINE_UID, ""))
        if worker is not None:
            worker.wake()
