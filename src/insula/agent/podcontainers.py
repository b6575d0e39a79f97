"""What a worker remembers of one container: its attempts, its crashes, its probes. Rebuilt from labels after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from insula.agent.podplan import FORGET_S
from insula.agent.podspec import LABEL_ATTEMPT, LABEL_CONTAINER
from insula.agent.podview import ContainerView, Trouble, seconds_between
from insula.agent.probes import NodeProber, Target, Verdict, watch
from insula.agent.services import Services
from insula.engine.contract import Instance
from insula.model.resource import Resource
from insula.tasks import Tasks

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


class ContainerRecord:
    """One container of one pod."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.current: Instance | None = None
        self.previous: Instance | None = None
        self.attempt = -1
        self.crashes = 0
        self.trouble: Trouble | None = None
        self._counted = ""  # id of the instance whose end has been counted
        self._probing = ""  # id of the instance that the probes are for
        self._probes: list[asyncio.Task[None]] = []
        self._passed: dict[str, bool] = {}
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
            trouble=self.trouble,
            started=self.running and self._passed.get("startupProbe", True),
            ready=self.running and all(self._passed.get(name, True) for name in ("startupProbe", "readinessProbe")),
            unhealthy=self._unhealthy if self.running else "",
        )

    # what happens to it

    def begun(self, instance: Instance) -> list[Instance]:
        """A new attempt takes over. Returns instances that need not be kept any longer."""
        outdated = [self.previous] if self.previous is not None else []
        self.previous, self.current = self.current, instance
        self.attempt += 1
        self.trouble = None
        self._unhealthy = ""
        return outdated

    def observe(self, instance: Instance, now: str) -> None:
        """The engine shows the newest instance anew; its end is counted once."""
        self.current = instance
        if instance.state.name in ("exited", "dead") and self._counted != instance.id:
            self._counted = instance.id
            long = seconds_between(instance.state.started_at, instance.state.finished_at or now) >= FORGET_S
            self.crashes = 1 if long else self.crashes + 1
            self.stop_probes()

    def lost(self) -> None:
        """The newest instance is gone from the engine, removed by somebody else: it counts as ended and is made again."""
        self.current = None
        self.stop_probes()

    def troubled(self, trouble: Trouble, *, pull: bool = False) -> None:
        """An attempt did not get as far as running."""
        again = pull and self.trouble is not None
        reason = "ImagePullBackOff" if again and trouble.reason == "ErrImagePull" else trouble.reason
        self.trouble = Trouble(reason, trouble.message, trouble.since)
        self.crashes += 1

    # probes

    def probe(
        self,
        services: Services,
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
        self._passed = {name: False for name in ("startupProbe", "readinessProbe") if name in container}
        target = Target(self.current, container, address)
        prober = NodeProber(services.engine)

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

        start(("startupProbe",) if "startupProbe" in container else PROBES)

    def stop_probes(self) -> None:
        """The instance has ended or is about to."""
        for task in self._probes:
            task.cancel()
        self._probes.clear()
        self._probing = ""
        self._passed.clear()


def records_of(instances: Iterable[Instance]) -> dict[str, ContainerRecord]:
    """What the labels of a pod's instances tell, after a restart of the agent."""
    records: dict[str, ContainerRecord] = {}
    for instance in sorted(instances, key=lambda found: int(found.config.labels.get(LABEL_ATTEMPT, 0))):
        name = instance.config.labels.get(LABEL_CONTAINER, "")
        record = records.setdefault(name, ContainerRecord(name))
        record.previous, record.current = record.current, instance
        record.attempt = int(instance.config.labels.get(LABEL_ATTEMPT, 0))
        record.crashes = record.attempt
    return records
