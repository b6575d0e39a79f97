"""What a worker remembers of one container: its attempts, its crashes, its probes. Rebuilt from labels after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from insula.agent.podplan import FORGET_S
from insula.agent.podspec import LABEL_ATTEMPT, LABEL_CONTAINER
from insula.agent.podview import ContainerView, Trouble, seconds_between
from insula.agent.probes import NodeProber, Target, Verdict, watch
from insula.engine.contract import Engine, Instance
from insula.model.resource import Resource
from insula.tasks import Tasks

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
GATES = ("startupProbe", "readinessProbe")


class ContainerRecord:
    """One container of one pod."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.current: Instance | None = None
        self.previous: Instance | None = None
        self.attempt = -1
        self.crashes = 0
        self.troubles = 0
        self.trouble: Trouble | None = None
        self.vanished = False
        self.past = False
        self.messages: dict[str, str] = {}
        self._counted = ""  # id of the instance whose end has been counted
        self._probing = ""  # id of the instance that the probes are for
        self._probes: list[asyncio.Task[None]] = []
        self._passed: dict[str, bool] = {}  # of the current instance: probes that keep it from being started or ready
        self._unhealthy = ""

    @property
    def running(self) -> bool:
        """Whether the newest instance runs."""
        return self.current is not None and self.current.state.name in ("running", "paused")

    def all(self) -> list[Instance]:
        """Every instance that is kept."""
        return [instance for instance in (self.current, self.previous) if instance is not None]

    def view(self) -> ContainerView:
        """As plain values."""
        return ContainerView(
            current=self.current,
            previous=self.previous,
            attempt=self.attempt,
            crashes=self.crashes,
            troubles=self.troubles,
            trouble=self.trouble,
            vanished=self.vanished,
            past=self.past,
            started=self.running and self._passed.get("startupProbe", True),
            ready=self.running and all(self._passed.values()),
            unhealthy=self._unhealthy if self.running else "",
            messages=dict(self.messages),
        )

    # what happens to it

    def begun(self, instance: Instance, container: Resource) -> list[Instance]:
        """A new attempt takes over; one that was made before and never started is begun as it is. Returns instances that need
        not be kept any longer."""
        outdated: list[Instance] = []
        if self.current is None or self.current.id != instance.id:
            outdated = [self.previous] if self.previous is not None else []
            self.previous = self.current
            self.attempt += 1
        self.current = instance
        self.vanished = self.past = False
        self.trouble, self.troubles = None, 0
        self._passed = {name: False for name in GATES if name in container}
        self._unhealthy = ""
        for gone in outdated:
            self.messages.pop(gone.id, None)
        return outdated

    def taken_back(self, container: Resource, shown: Resource) -> None:
        """After a restart of the agent: what the API shows of the same instance holds until a probe says otherwise."""
        words = {"startupProbe": "started", "readinessProbe": "ready"}
        self._passed = {name: bool(shown.get(words[name])) for name in GATES if name in container}

    def new_life(self, *, again: bool) -> None:
        """The pod's sandbox was made anew, by a reboot: what ran before does not count as begun in it, and init containers run
        `again`."""
        self.past = True
        if again and self.current is not None and not self.running:
            self.previous, self.current = self.current, None

    def observe(self, instance: Instance, now: str) -> bool:
        """The engine shows the newest instance anew; its end is counted once. Says whether this was its end. News of an instance
        that another has taken over from meanwhile are none."""
        if self.current is None or self.current.id != instance.id:
            return False
        self.current = instance
        if self._counted == instance.id or not self.view().ended:
            return False
        self._counted = instance.id
        began, over = instance.state.started_at, instance.state.finished_at or now
        self.crashes = 1 if began and seconds_between(began, over) >= FORGET_S else self.crashes + 1
        self.stop_probes()
        return True

    def lost(self) -> None:
        """The newest instance is gone from the engine, removed by somebody else."""
        self.current = None
        self.vanished = True
        self.stop_probes()

    def troubled(self, trouble: Trouble) -> None:
        """An attempt did not get as far as an instance."""
        again = self.trouble is not None and trouble.reason == "ErrImagePull"
        reason = "ImagePullBackOff" if again else trouble.reason
        self.trouble = Trouble(reason, trouble.message, trouble.since)
        self.troubles += 1

    def hope(self) -> None:
        """What the trouble was about may have changed: try at once."""
        if self.trouble is not None and self.trouble.reason == "CreateContainerConfigError":
            self.trouble = None

    # probes

    def probe(
        self,
        engine: Engine,
        tasks: Tasks,
        container: Resource,
        address: str,
        told: Callable[[ContainerRecord, str], None],
    ) -> None:
        """Start the probes of the running instance, once."""
        if self.current is None or self._probing == self.current.id:
            return
        self.stop_probes()
        self._probing = self.current.id
        target = Target(self.current, container, address)
        prober = NodeProber(engine)

        def report(verdict: Verdict) -> None:
            if verdict.probe in self._passed:
                self._passed[verdict.probe] = verdict.healthy
            if verdict.probe == "startupProbe" and verdict.healthy:
                start(tuple(name for name in PROBES if name != "startupProbe"))
            kind = verdict.probe.removesuffix("Probe").capitalize()
            message = "" if verdict.healthy else f"{kind} probe failed: {verdict.message}"
            if not verdict.healthy and verdict.probe != "readinessProbe":
                self._unhealthy = message
            told(self, message)

        def start(names: tuple[str, ...]) -> None:
            for name in names:
                if name in container:
                    self._probes.append(tasks.spawn(watch(name, target, prober, report), f"{self.name}-{name}"))

        start(("startupProbe",) if "startupProbe" in container and not self._passed["startupProbe"] else PROBES[1:])

    def stop_probes(self) -> None:
        """The instance has ended or is about to. What was found last stays."""
        for task in self._probes:
            task.cancel()
        self._probes.clear()
        self._probing = self.current.id if self.current is not None else ""


def records_of(pod: Resource, instances: Iterable[Instance]) -> dict[str, ContainerRecord]:
    """What the labels of a pod's instances tell, and the API of those that are gone, after a restart of the agent."""
    records: dict[str, ContainerRecord] = {}
    for instance in sorted(instances, key=lambda found: int(found.config.labels.get(LABEL_ATTEMPT, 0))):
        name = instance.config.labels.get(LABEL_CONTAINER, "")
        record = records.setdefault(name, ContainerRecord(name))
        record.previous, record.current = record.current, instance
        record.attempt = int(instance.config.labels.get(LABEL_ATTEMPT, 0))
        record.crashes = record.attempt
    status, spec = pod.get("status") or {}, pod["spec"]
    for part, statuses in (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses")):
        shown = {found["name"]: found for found in status.get(statuses) or ()}
        for container in spec.get(part) or ():
            if found := shown.get(container["name"]):
                _compare(records, container, found, main=part == "containers")
    return records


def _compare(records: dict[str, ContainerRecord], container: Resource, shown: Resource, *, main: bool) -> None:
    """One container: what the API says of it against what is here. One that has run and was removed by a `down --all` goes on
    counting its attempts; an init container simply runs again, as after a reboot."""
    record = records.get(container["name"])
    if record is not None and record.current is not None:
        if str(shown.get("containerID", "")).endswith(record.current.id):
            record.taken_back(container, shown)
    elif shown.get("containerID"):
        record = records.setdefault(container["name"], ContainerRecord(container["name"]))
        record.attempt = int(shown.get("restartCount", 0))
        record.vanished = main
