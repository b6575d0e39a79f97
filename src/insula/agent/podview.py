"""What the agent knows of one pod at one moment: the input of `podplan` and `podstatus`, plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from insula import clock
from insula.engine.contract import Instance
from insula.model.resource import Resource


class Trouble(Struct, frozen=True):
    """Why a container does not run: the waiting reason and message that `kubectl get` and `describe` show."""

    reason: str
    message: str
    since: str


class ContainerView(Struct, frozen=True, kw_only=True):
    """One container. `current` is its newest instance, `previous` the one before; `crashes` counts ends in a row."""

    current: Instance | None = None
    previous: Instance | None = None
    attempt: int = -1  # of the current instance; -1 before the first
    crashes: int = 0
    trouble: Trouble | None = None
    started: bool = False  # the startup probe, if any, has passed
    ready: bool = False  # and so has the readiness probe
    unhealthy: str = ""  # a liveness or startup probe has failed for good: why

    @property
    def running(self) -> bool:
        """Whether its process runs now."""
        return self.current is not None and self.current.state.name in ("running", "paused")

    @property
    def ended(self) -> bool:
        """Whether it ran and is over."""
        return self.current is not None and self.current.state.name in ("exited", "dead")

    @property
    def exit_code(self) -> int:
        """Of the current instance."""
        return self.current.state.exit_code if self.current else 0


class PodView(Struct, frozen=True, kw_only=True):
    """One pod. `killing` holds names of containers that are being stopped; `killed_for` says why the whole pod must end."""

    pod: Resource
    now: str
    containers: Mapping[str, ContainerView] = field(default_factory=dict)
    has_sandbox: bool = False
    address: str = ""
    host_address: str = ""
    trouble: Trouble | None = None  # of the pod as a whole: volumes, sandbox
    killed_for: tuple[str, str] | None = None  # reason, message: DeadlineExceeded, Evicted
    started_at: str = ""

    def of(self, name: str) -> ContainerView:
        """A container's view, empty before its first attempt."""
        return self.containers.get(name, ContainerView())


def restart_policy(pod: Resource, container: Resource) -> str:
    """Always, OnFailure or Never: the container's own where it has one, else the pod's."""
    return str(container.get("restartPolicy") or pod["spec"].get("restartPolicy", "Always"))


def is_sidecar(container: Resource) -> bool:
    """An init container that keeps running beside the others."""
    return bool(container.get("restartPolicy") == "Always")


def init_containers(pod: Resource) -> list[Resource]:
    """In their order."""
    return list(pod["spec"].get("initContainers") or ())


def main_containers(pod: Resource) -> list[Resource]:
    """All that run side by side."""
    return list(pod["spec"]["containers"])


def all_containers(pod: Resource) -> list[Resource]:
    """Init containers first."""
    return [*init_containers(pod), *main_containers(pod), *(pod["spec"].get("ephemeralContainers") or ())]


def seconds_between(earlier: str, later: str) -> float:
    """Between two RFC 3339 times; 0 when one is unknown."""
    if not earlier or not later:
        return 0.0
    return (clock.parse_rfc3339(later) - clock.parse_rfc3339(earlier)).total_seconds()


def as_kubernetes_time(text: str) -> str | None:
    """The engine's nanosecond time in whole seconds; None when it has not happened."""
    return clock.rfc3339(clock.parse_rfc3339(text)) if text else None


def grace_s(pod: Resource) -> float:
    """How long a container of this pod may take to end."""
    meta: dict[str, Any] = pod["metadata"]
    if meta.get("deletionGracePeriodSeconds") is not None:
        return float(meta["deletionGracePeriodSeconds"])
    return float(pod["spec"].get("terminationGracePeriodSeconds", 30))
