"""The status of a pod from what the engine says of its containers. Pure; words and rules are the kubelet's."""

from __future__ import annotations

from typing import Any

from insula.agent.podplan import failed, is_backing_off, is_over, killed_for
from insula.agent.podview import (
    CANNOT_RUN,
    LOST,
    ContainerView,
    PodView,
    as_kubernetes_time,
    ephemeral_containers,
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
    debug = [_container(view, c, main=True) for c in ephemeral_containers(pod)]
    dropped = ("reason", "message") if view.final else ("reason", "message", "podIP", "podIPs")
    status: dict[str, Any] = {k: v for k, v in old.items() if k not in dropped}
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
    if phase == "Failed" and (why := killed_for(view) or _said(old)):
        status["reason"], status["message"] = why
    status["conditions"] = _conditions(view, phase, inits, mains)
    return status


def _said(old: dict[str, Any]) -> tuple[str, str] | None:
    """Why a pod that has failed before did so."""
    return (old["reason"], old.get("message", "")) if old.get("phase") == "Failed" and old.get("reason") else None


def phase_of(view: PodView) -> str:
    """Pending, Running, Succeeded or Failed; a final phase never changes again. Rules: the kubelet's `getPhase`."""
    if view.final:
        return view.final
    everyone = [*init_containers(view.pod), *main_containers(view.pod)]
    busy = any(view.of(c["name"]).running for c in everyone)
    if killed_for(view):
        return "Running" if busy else "Failed"
    if view.containers and is_over(view):
        return "Running" if busy else "Failed" if failed(view) else "Succeeded"
    return "Running" if _all_begun(view) else "Pending"


def _all_begun(view: PodView) -> bool:
    """Whether every main container runs or has run; before that a pod is pending, even if some of it runs already."""
    begun = (view.of(c["name"]) for c in main_containers(view.pod))
    return all(seen.running or seen.ended or seen.previous is not None for seen in begun)


def _container(view: PodView, container: Resource, *, main: bool) -> dict[str, Any]:
    seen = view.of(container["name"])
    if view.final and seen.current is None and (shown := _shown(view, container["name"])):
        return shown
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


def _shown(view: PodView, name: str) -> dict[str, Any] | None:
    """What the API shows of a container, for a pod that is over and of which nothing is left here."""
    status = view.pod["status"]
    for part in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for found in status.get(part) or ():
            if found["name"] == name and "running" not in found["state"]:
                result: dict[str, Any] = found
                return result
    return None


def _state(view: PodView, container: Resource, seen: ContainerView, *, main: bool) -> dict[str, Any]:
    if seen.running:
        assert seen.current is not None
        return {"running": {"startedAt": as_kubernetes_time(seen.current.state.started_at)}}
    if seen.trouble and not view.final:
        return {"waiting": {"reason": seen.trouble.reason, "message": seen.trouble.message[:MESSAGE_LIMIT]}}
    if seen.ended:
        if is_backing_off(seen, view.now) and not (view.final or is_over(view) or _leaving(view)):
            name = f"{view.pod['metadata']['name']}_{view.pod['metadata']['namespace']}({view.pod['metadata']['uid']})"
            text = f"back-off restarting failed container={container['name']} pod={name}"
            return {"waiting": {"reason": "CrashLoopBackOff", "message": text}}
        return {"terminated": _terminated(seen, seen.current)}
    return {"waiting": _waiting(view, main=main)}


def _leaving(view: PodView) -> bool:
    return bool(view.pod["metadata"].get("deletionTimestamp"))


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
        return {"terminated": _terminated(seen, seen.current)}
    if seen.previous is not None and (seen.previous.state.finished_at or seen.previous.state.error):
        return {"terminated": _terminated(seen, seen.previous)}
    return {}


def _terminated(seen: ContainerView, instance: Instance | None) -> dict[str, Any]:
    if instance is None:
        text = "The container could not be located; how it ended is not known"
        return {
            "exitCode": LOST,
            "reason": "ContainerStatusUnknown",
            "message": text,
            "startedAt": None,
            "finishedAt": None,
        }
    state = instance.state
    if not state.finished_at:
        times = {"startedAt": as_kubernetes_time(instance.created), "finishedAt": as_kubernetes_time(instance.created)}
        ended: dict[str, Any] = {"exitCode": CANNOT_RUN, "reason": "StartError", **times}
    else:
        reason = "OOMKilled" if state.oom_killed else "Completed" if state.exit_code == 0 else "Error"
        times = {"startedAt": as_kubernetes_time(state.started_at), "finishedAt": as_kubernetes_time(state.finished_at)}
        ended = {"exitCode": state.exit_code, "reason": reason, **times}
    ended["containerID"] = ID_PREFIX + instance.id
    if message := seen.messages.get(instance.id) or state.error:
        ended["message"] = message[:MESSAGE_LIMIT]
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
