"""What to do next for one pod: pure. The order of containers, restarts and their back-off are the kubelet's.

deleted      stop all, then clean up, then let the API forget it
over         containers have ended for good: give the network back, keep the logs until the pod is deleted
otherwise    sandbox, then init containers one after another (sidecars stay), then the others side by side
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from insula.agent.podview import (
    ContainerView,
    PodView,
    grace_s,
    init_containers,
    is_sidecar,
    main_containers,
    restart_policy,
    seconds_between,
)
from insula.model.resource import Resource

FIRST_WAIT_S, LONGEST_WAIT_S, FORGET_S = 10.0, 300.0, 600.0


class Action(Struct, frozen=True, kw_only=True):
    """One thing to do. `wait` asks to look again after `after_s` seconds; `stop` ends a container within `grace_s`."""

    do: Literal["sandbox", "start", "stop", "release", "clean", "forget", "wait"]
    container: str = ""
    after_s: float = 0.0
    grace_s: float = 0.0
    reason: str = ""


def plan(view: PodView) -> list[Action]:
    """The actions that can be carried out now, side by side."""
    pod = view.pod
    if pod["metadata"].get("deletionTimestamp"):
        return _leave(view)
    if view.killed_for or overdue_s(view) == 0:
        return _stop_all(view, "DeadlineExceeded") or _release(view)
    if is_over(view):
        return _stop_sidecars(view) or _release(view)
    actions = _run(view)
    left = overdue_s(view)
    return actions if left is None else [*actions, Action(do="wait", after_s=left)]


def overdue_s(view: PodView) -> float | None:
    """Seconds left of activeDeadlineSeconds; 0 when it is over, None without one."""
    limit = view.pod["spec"].get("activeDeadlineSeconds")
    if limit is None or not view.started_at:
        return None
    return max(float(limit) - seconds_between(view.started_at, view.now), 0.0)


def is_over(view: PodView) -> bool:
    """Whether no container will ever run again."""
    pod = view.pod
    for container in init_containers(pod):
        seen = view.of(container["name"])
        if seen.ended and seen.exit_code != 0 and restart_policy(pod, container) == "Never":
            return True
    return all(_final(view.of(c["name"]), restart_policy(pod, c)) for c in main_containers(pod))


def _final(seen: ContainerView, policy: str) -> bool:
    return seen.ended and (policy == "Never" or (policy == "OnFailure" and seen.exit_code == 0))


def failed(view: PodView) -> bool:
    """Whether a pod that is over has failed."""
    everyone = [c for c in (*init_containers(view.pod), *main_containers(view.pod)) if not is_sidecar(c)]
    return any(view.of(c["name"]).ended and view.of(c["name"]).exit_code != 0 for c in everyone)


def _leave(view: PodView) -> list[Action]:
    stopping = _stop_all(view, "Killing")
    if stopping:
        return stopping
    return [Action(do="clean"), Action(do="forget")]


def _stop_all(view: PodView, reason: str) -> list[Action]:
    """Everything that runs; sidecars only once the others have ended."""
    sidecars = {c["name"] for c in init_containers(view.pod) if is_sidecar(c)}
    running = [name for name, seen in view.containers.items() if seen.running]
    first = [name for name in running if name not in sidecars] or running
    return [Action(do="stop", container=name, grace_s=grace_s(view.pod), reason=reason) for name in first]


def _stop_sidecars(view: PodView) -> list[Action]:
    return _stop_all(view, "Completed")


def _release(view: PodView) -> list[Action]:
    return [Action(do="release")] if view.has_sandbox else []


def _run(view: PodView) -> list[Action]:
    if not view.has_sandbox:
        return [Action(do="sandbox")]
    actions: list[Action] = []
    for container in init_containers(view.pod):
        done, more = _init(view, container)
        actions += more
        if not done:
            return actions
    for container in (*main_containers(view.pod), *(view.pod["spec"].get("ephemeralContainers") or ())):
        actions += _keep(view, container)
    return actions


def _init(view: PodView, container: Resource) -> tuple[bool, list[Action]]:
    """(whether the next one may go on, what to do for this one)."""
    seen = view.of(container["name"])
    if is_sidecar(container):
        return seen.running and seen.started, _keep(view, container)
    if seen.ended and seen.exit_code == 0:
        return True, []
    return False, _keep(view, container)


def _keep(view: PodView, container: Resource) -> list[Action]:
    """Keep one container as its policy wants it: start it, restart it after its back-off, or stop it when it is unhealthy."""
    name = container["name"]
    seen = view.of(name)
    if seen.running:
        if seen.unhealthy:
            return [
                Action(do="stop", container=name, grace_s=probe_grace_s(view.pod, container), reason=seen.unhealthy)
            ]
        return []
    policy = "Never" if "targetContainerName" in container else restart_policy(view.pod, container)
    if _final(seen, policy):
        return []
    left = backoff_left_s(seen, view.now)
    return [Action(do="wait", after_s=left, container=name)] if left > 0 else [Action(do="start", container=name)]


def probe_grace_s(pod: Resource, container: Resource) -> float:
    """How long an unhealthy container may take to end."""
    for probe in ("livenessProbe", "startupProbe"):
        own = (container.get(probe) or {}).get("terminationGracePeriodSeconds")
        if own is not None:
            return float(own)
    return grace_s(pod)


def backoff_left_s(seen: ContainerView, now: str) -> float:
    """Seconds until a container may be started again: none at first, then 10 s doubling to 5 min."""
    if seen.crashes == 0:
        return 0.0
    if seen.crashes == 1 and not seen.trouble:
        return 0.0
    times = seen.crashes - (1 if seen.trouble else 2)
    wait_s = min(FIRST_WAIT_S * 2.0 ** min(times, 30), LONGEST_WAIT_S)
    ended = seen.trouble.since if seen.trouble else (seen.current.state.finished_at if seen.current else "")
    return max(wait_s - seconds_between(ended, now), 0.0)


def is_backing_off(seen: ContainerView, now: str) -> bool:
    """Whether the container waits for its back-off."""
    return not seen.running and backoff_left_s(seen, now) > 0
