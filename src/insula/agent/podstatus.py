"""The status of a pod from what the engine says of its containers. Pure; words and rules are the kubelet's."""

from __future__ import annotations

from typing import Any

from insula.agent.podplan import failed, is_backing_off, is_over
from insula.agent.podview import (
    ContainerView,
    PodView,
    as_kubernetes_time,
    init_containers,
    is_sidecar,
    main_containers,
)
from insula.engine.contract import Instance
from insula.model.resource import Resource

ID_PREFIX = "insula://"
MESSAGE_LIMIT = 4096


def status_of(view: PodView) -> dict[str, Any]:
    """The whole status, conditions included; what others wrote (PodScheduled, QoS class) is kept."""
    pod, old = view.pod, view.pod.get("status") or {}
    phase = phase_of(view)
    mains = [_container(view, c, main=True) for c in main_containers(pod)]
    inits = [_container(view, c, main=False) for c in init_containers(pod)]
    debug = [_container(view, c, main=True) for c in pod["spec"].get("ephemeralContainers") or ()]
    status: dict[str, Any] = {k: v for k, v in old.items() if k not in ("reason", "message", "podIP", "podIPs")}
    status.update(phase=phase, containerStatuses=mains, startTime=view.started_at or view.now)
    status["observedGeneration"] = pod["metadata"].get("generation", 1)
    for name, found in (("initContainerStatuses", inits), ("ephemeralContainerStatuses", debug)):
        if found:
            status[name] = found
    if view.host_address:
        status["hostIP"] = view.host_address
        status["hostIPs"] = [{"ip": view.host_address}]
    if view.address:
        status["podIP"] = view.address
        status["podIPs"] = [{"ip": view.address}]
    if view.killed_for and phase == "Failed":
        status["reason"], status["message"] = view.killed_for
    status["conditions"] = _conditions(view, phase, inits, mains)
    return status


def phase_of(view: PodView) -> str:
    """Pending, Running, Succeeded or Failed; a final phase never changes again."""
    old = (view.pod.get("status") or {}).get("phase", "Pending")
    if old in ("Succeeded", "Failed"):
        return str(old)
    running = any(seen.running for seen in view.containers.values())
    if view.killed_for:
        return "Running" if running else "Failed"
    if view.containers and is_over(view):
        busy = any(view.of(c["name"]).running for c in (*init_containers(view.pod), *main_containers(view.pod)))
        return "Running" if busy else "Failed" if failed(view) else "Succeeded"
    inits_done = all(
        view.of(c["name"]).started if is_sidecar(c) else view.of(c["name"]).ended and view.of(c["name"]).exit_code == 0
        for c in init_containers(view.pod)
    )
    begun = any(view.of(c["name"]).current and view.of(c["name"]).attempt >= 0 for c in main_containers(view.pod))
    ran = any(view.of(c["name"]).running or view.of(c["name"]).ended for c in main_containers(view.pod))
    return "Running" if inits_done and begun and ran else "Pending"


def _container(view: PodView, container: Resource, *, main: bool) -> dict[str, Any]:
    seen = view.of(container["name"])
    state = _state(view, container, seen, main=main)
    status: dict[str, Any] = {
        "name": container["name"],
        "state": state,
        "lastState": _last(seen, state),
        "ready": seen.ready if main or is_sidecar(container) else seen.ended and seen.exit_code == 0,
        "started": seen.running and seen.started,
        "restartCount": max(seen.attempt, 0),
        "image": container["image"],
        "imageID": "",
    }
    if seen.current is not None:
        status["containerID"] = ID_PREFIX + seen.current.id
        if seen.current.image is not None:
            status["imageID"] = next(iter(seen.current.image.digests), seen.current.image.id)
    return status


def _state(view: PodView, container: Resource, seen: ContainerView, *, main: bool) -> dict[str, Any]:
    if seen.running:
        assert seen.current is not None
        return {"running": {"startedAt": as_kubernetes_time(seen.current.state.started_at)}}
    if seen.trouble:
        return {"waiting": {"reason": seen.trouble.reason, "message": seen.trouble.message[:MESSAGE_LIMIT]}}
    if seen.ended:
        assert seen.current is not None
        if is_backing_off(seen, view.now) and not is_over(view):
            name = f"{view.pod['metadata']['name']}_{view.pod['metadata']['namespace']}({view.pod['metadata']['uid']})"
            text = f"back-off restarting failed container={container['name']} pod={name}"
            return {"waiting": {"reason": "CrashLoopBackOff", "message": text}}
        return {"terminated": _terminated(seen.current)}
    return {"waiting": _waiting(view, main=main)}


def _waiting(view: PodView, *, main: bool) -> dict[str, str]:
    if view.trouble:
        return {"reason": view.trouble.reason, "message": view.trouble.message[:MESSAGE_LIMIT]}
    waits_for_init = main and any(
        not (view.of(c["name"]).ended and view.of(c["name"]).exit_code == 0) and not view.of(c["name"]).started
        for c in init_containers(view.pod)
    )
    return {"reason": "PodInitializing" if waits_for_init else "ContainerCreating"}


def _last(seen: ContainerView, state: dict[str, Any]) -> dict[str, Any]:
    if "waiting" in state and seen.ended:
        assert seen.current is not None
        return {"terminated": _terminated(seen.current)}
    if seen.previous is not None and seen.previous.state.finished_at:
        return {"terminated": _terminated(seen.previous)}
    return {}


def _terminated(instance: Instance) -> dict[str, Any]:
    state = instance.state
    reason = "OOMKilled" if state.oom_killed else "Completed" if state.exit_code == 0 else "Error"
    ended: dict[str, Any] = {
        "exitCode": state.exit_code,
        "reason": reason,
        "startedAt": as_kubernetes_time(state.started_at),
        "finishedAt": as_kubernetes_time(state.finished_at),
        "containerID": ID_PREFIX + instance.id,
    }
    if state.error:
        ended["message"] = state.error[:MESSAGE_LIMIT]
    return ended


def _conditions(view: PodView, phase: str, inits: list[Any], mains: list[Any]) -> list[dict[str, Any]]:
    over = phase in ("Succeeded", "Failed")
    unready_inits = [c["name"] for c in inits if not c["ready"]]
    unready = [c["name"] for c in mains if not c["ready"]]
    gates = [gate["conditionType"] for gate in view.pod["spec"].get("readinessGates") or ()]
    old = {c["type"]: c for c in (view.pod.get("status") or {}).get("conditions") or ()}
    open_gates = [gate for gate in gates if (old.get(gate) or {}).get("status") != "True"]
    initialized = _truth(
        not unready_inits or phase == "Succeeded", "ContainersNotInitialized", "incomplete", unready_inits
    )
    if over:
        done = "PodCompleted" if phase == "Succeeded" else "PodFailed"
        containers = ready = ("False", done, "")
    else:
        containers = _truth(not unready, "ContainersNotReady", "unready", unready)
        ready = (
            containers
            if containers[0] == "False"
            else _truth(not open_gates, "ReadinessGatesNotReady", "gates", open_gates)
        )
    sandbox = ("True", "", "") if view.has_sandbox and view.address else ("False", "", "")
    wanted = {
        "PodReadyToStartContainers": sandbox,
        "Initialized": initialized,
        "Ready": ready,
        "ContainersReady": containers,
        "PodScheduled": ("True", "", ""),
    }
    mine = [_condition(old.get(type_), type_, *value, view.now) for type_, value in wanted.items()]
    return [*mine, *(found for type_, found in old.items() if type_ not in wanted)]


def _truth(holds: bool, reason: str, word: str, names: list[str]) -> tuple[str, str, str]:
    if holds:
        return ("True", "", "")
    kind = "containers with incomplete status" if word == "incomplete" else "containers with unready status"
    text = f"{kind}: [{' '.join(names)}]" if word != "gates" else f"readiness gates not met: [{' '.join(names)}]"
    return ("False", reason, text)


def _condition(
    old: dict[str, Any] | None, type_: str, status: str, reason: str, message: str, now: str
) -> dict[str, Any]:
    same = old is not None and old["status"] == status
    since = old["lastTransitionTime"] if old is not None and same and old.get("lastTransitionTime") else now
    found: dict[str, Any] = {"type": type_, "status": status, "lastProbeTime": None, "lastTransitionTime": since}
    if reason:
        found["reason"] = reason
    if message:
        found["message"] = message
    return found
