"""What the agent knows of one pod at one moment: the input of `podplan` and `podstatus`, plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from insula import clock
from insula.engine.contract import Instance
from insula.model.resource import Resource

CANNOT_RUN = 128  # what the kubelet reports of a container whose process could not be started
LOST = 137  # and of one that is gone, nobody knows how


class Trouble(Struct, frozen=True):
    """Why a container does not run: the waiting reason and message that `kubectl get` and `describe` show."""

    reason: str
    message: str
    since: str


class ContainerView(Struct, frozen=True, kw_only=True):
    """One container. `current` is its newest instance, `previous` the one before; `crashes` counts ends in a row, `troubles`
    attempts in a row that did not get as far as an instance. `vanished`: it has run, and its instance is gone with all that was
    known of its end; `past`: its newest attempt was before the pod's sandbox was made anew. `messages` are termination messages
    by instance id."""

    current: Instance | None = None
    previous: Instance | None = None
    attempt: int = -1  # of the current instance; -1 before the first
    crashes: int = 0
    troubles: int = 0
    trouble: Trouble | None = None
    vanished: bool = False
    past: bool = False
    started: bool = False  # the startup probe, if any, has passed
    ready: bool = False  # and so has the readiness probe
    unhealthy: str = ""  # a liveness or startup probe has failed for good: why
    messages: Mapping[str, str] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Whether its process runs now."""
        return self.current is not None and self.current.state.name in ("running", "paused")

    @property
    def made(self) -> bool:
        """Whether an instance waits to be started, left by an agent that was killed before it came to that."""
        return self.current is not None and self.current.state.name == "created" and not self.current.state.error

    @property
    def unstartable(self) -> bool:
        """Whether the newest instance's process could not be started."""
        return self.current is not None and self.current.state.name == "created" and bool(self.current.state.error)

    @property
    def ended(self) -> bool:
        """Whether the newest attempt is over."""
        over = self.current is not None and self.current.state.name in ("exited", "dead")
        return over or self.unstartable or (self.current is None and self.vanished)

    @property
    def exit_code(self) -> int:
        """Of the newest attempt."""
        if self.current is None:
            return LOST if self.vanished else 0
        return CANNOT_RUN if self.unstartable else self.current.state.exit_code


class PodView(Struct, frozen=True, kw_only=True):
    """One pod. `ending_for_s` says for how long its containers have been being stopped, as a whole."""

    pod: Resource
    now: str
    containers: Mapping[str, ContainerView] = field(default_factory=dict)
    has_sandbox: bool = False
    address: str = ""
    host_address: str = ""
    trouble: Trouble | None = None  # of the pod as a whole: volumes, sandbox
    started_at: str = ""
    ending_for_s: float = 0.0

    def of(self, name: str) -> ContainerView:
        """A container's view, empty before its first attempt."""
        return self.containers.get(name, ContainerView())

    @property
    def final(self) -> str:
        """Succeeded or Failed once the API shows that; such a pod never runs anything again."""
        phase = str((self.pod.get("status") or {}).get("phase", ""))
        return phase if phase in ("Succeeded", "Failed") else ""


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


def ephemeral_containers(pod: Resource) -> list[Resource]:
    """Added later, for debugging; never restarted."""
    return list(pod["spec"].get("ephemeralContainers") or ())


def all_containers(pod: Resource) -> list[Resource]:
    """Init containers first."""
    return [*init_containers(pod), *main_containers(pod), *ephemeral_containers(pod)]


def container_named(pod: Resource, name: str) -> Resource:
    """A container of any sort; empty for a name that the pod does not have."""
    return next((found for found in all_containers(pod) if found["name"] == name), {})


def seconds_between(earlier: str, later: str) -> float:
    """Between two RFC 3339 times; 0 when one is unknown."""
    if not earlier or not later:
        return 0.0
    return (clock.parse_rfc3339(later) - clock.parse_rfc3339(earlier)).total_seconds()


def has_restart_rule(container: Resource, exit_code: int) -> bool:
    """Whether the container's own restart rules bring it back after this exit code, whatever the policy."""
    for rule in container.get("restartPolicyRules") or ():
        codes = rule.get("exitCodes") or {}
        among = exit_code in (codes.get("values") or ())
        if rule.get("action") == "Restart" and among == (codes.get("operator", "In") == "In"):
            return True
    return False


def as_kubernetes_time(text: str) -> str | None:
    """The engine's nanosecond time in whole seconds; None when it has not happened."""
    return clock.rfc3339(clock.parse_rfc3339(text)) if text else None


def grace_s(pod: Resource) -> float:
    """How long a container of this pod may take to end."""
    meta: dict[str, Any] = pod["metadata"]
    if meta.get("deletionGracePeriodSeconds") is not None:
        return float(meta["deletionGracePeriodSeconds"])
    return float(pod["spec"].get("terminationGracePeriodSeconds", 30))
