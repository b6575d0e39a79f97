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
    ephemeral_containers,
    grace_s,
    has_restart_rule,
    init_containers,
    is_sidecar,
    main_containers,
    restart_policy,
    seconds_between,
)
from insula.model.resource import Resource

FIRST_WAIT_S, LONGEST_WAIT_S, FORGET_S = 10.0, 300.0, 600.0
LAST_GRACE_S = 2.0  # what a sidecar is always given, however long the others took
DEADLINE = ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")


class Action(Struct, frozen=True, kw_only=True):
    """One thing to do. `wait` asks to look again after `after_s` seconds; `stop` ends a container within `grace_s`."""

    do: Literal["sandbox", "start", "stop", "release", "clean", "forget", "wait"]
    container: str = ""
    after_s: float = 0.0
    grace_s: float = 0.0
    reason: str = ""


def plan(view: PodView) -> list[Action]:
    """The actions that can be carried out now, side by side."""
    if view.pod["metadata"].get("deletionTimestamp"):
        return _stop_all(view) or [Action(do="clean"), Action(do="forget")]
    if view.final or killed_for(view) or is_over(view):
        return _stop_all(view) or ([Action(do="release")] if view.has_sandbox else [])
    actions = _run(view)
    left = deadline_left_s(view)
    return actions if left is None else [*actions, Action(do="wait", after_s=left)]


def killed_for(view: PodView) -> tuple[str, str] | None:
    """(reason, message) when the pod must end, whatever its containers do."""
    return DEADLINE if deadline_left_s(view) == 0 else None


def deadline_left_s(view: PodView) -> float | None:
    """Seconds left of activeDeadlineSeconds; 0 when it is over, None without one."""
    limit = view.pod["spec"].get("activeDeadlineSeconds")
    if limit is None or not view.started_at:
        return None
    return max(float(limit) - seconds_between(view.started_at, view.now), 0.0)


def is_over(view: PodView) -> bool:
    """Whether no container will ever run again."""
    for container in init_containers(view.pod):
        if not is_sidecar(container) and view.of(container["name"]).exit_code != 0 and _final(view, container):
            return True
    return all(_final(view, container) for container in main_containers(view.pod))


def _final(view: PodView, container: Resource) -> bool:
    """Whether a container has ended and its policy leaves it so."""
    seen = view.of(container["name"])
    if not seen.ended or has_restart_rule(container, seen.exit_code):
        return False
    if container in ephemeral_containers(view.pod):
        return True
    policy = restart_policy(view.pod, container)
    return policy == "Never" or (policy == "OnFailure" and seen.exit_code == 0)


def failed(view: PodView) -> bool:
    """Whether a pod that is over has failed."""
    everyone = [c for c in (*init_containers(view.pod), *main_containers(view.pod)) if not is_sidecar(c)]
    return any(view.of(c["name"]).ended and view.of(c["name"]).exit_code != 0 for c in everyone)


# --- ending -----------------------------------------------------------------------------------------------------


def _stop_all(view: PodView) -> list[Action]:
    """Everything that runs; sidecars only once the others have ended, the last one first. All share one grace period."""
    whole_s = grace_s(view.pod)
    sidecars = [c["name"] for c in init_containers(view.pod) if is_sidecar(c)]
    running = [name for name, seen in view.containers.items() if seen.running]
    first = [name for name in running if name not in sidecars]
    if first or not running:
        return [Action(do="stop", container=name, grace_s=whole_s) for name in first]
    left_s = max(whole_s - view.ending_for_s, min(whole_s, LAST_GRACE_S))
    last = max(running, key=sidecars.index)
    return [Action(do="stop", container=last, grace_s=left_s)]


# --- running ----------------------------------------------------------------------------------------------------


def _run(view: PodView) -> list[Action]:
    if not view.has_sandbox:
        return [Action(do="sandbox")]
    actions: list[Action] = []
    mains = [view.of(c["name"]) for c in main_containers(view.pod)]
    begun = any(seen.current is not None and not seen.past for seen in mains)
    for container in init_containers(view.pod):
        done, more = _init(view, container, begun=begun)
        actions += more
        if not done:
            return actions
    for container in (*main_containers(view.pod), *ephemeral_containers(view.pod)):
        actions += _keep(view, container)
    return actions


def _init(view: PodView, container: Resource, *, begun: bool) -> tuple[bool, list[Action]]:
    """(whether the next one may go on, what to do for this one). Once the main containers have begun, nothing waits for an
    init container any more; sidecars are kept beside them."""
    seen = view.of(container["name"])
    if is_sidecar(container):
        return begun or (seen.running and seen.started), _keep(view, container)
    if begun or (seen.ended and seen.exit_code == 0):
        return True, []
    return False, _keep(view, container)


def _keep(view: PodView, container: Resource) -> list[Action]:
    """Keep one container as its policy wants it: start it, restart it after its back-off, or stop it when it is unhealthy."""
    name, seen = container["name"], view.of(container["name"])
    if seen.running:
        if not seen.unhealthy:
            return []
        wait_s = probe_grace_s(view.pod, container)
        return [Action(do="stop", container=name, grace_s=wait_s, reason=seen.unhealthy)]
    if _final(view, container):
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
    """Seconds until a container may be started again. After an end: at once the first time, then 10 s doubling to 5 min from
    when it ended. After an attempt that came to nothing (no image, say): 10 s doubling to 5 min."""
    if seen.trouble is not None:
        return _left_s(seen.troubles - 1, seen.trouble.since, now)
    if seen.crashes <= 1 or seen.made or seen.current is None:
        return 0.0
    return _left_s(seen.crashes - 2, seen.current.state.finished_at or seen.current.created, now)


def _left_s(times: int, since: str, now: str) -> float:
    wait_s = min(FIRST_WAIT_S * 2.0 ** max(min(times, 30), 0), LONGEST_WAIT_S)
    return max(wait_s - seconds_between(since, now), 0.0)


def is_backing_off(seen: ContainerView, now: str) -> bool:
    """Whether the container waits for its back-off."""
    return not seen.running and backoff_left_s(seen, now) > 0
