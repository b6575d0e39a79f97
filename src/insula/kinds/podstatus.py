"""What `kubectl get pods` says of a pod: READY, STATUS and RESTARTS from its status, as Kubernetes' own printer does. Pure.

Source: Kubernetes `pkg/printers/internalversion`, printPod.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from insula.kinds.printing import Since
from insula.model.resource import Resource


class Summary(Struct, frozen=True):
    """The three computed cells."""

    ready: str
    status: str
    restarts: int | Since


def summary(pod: Resource) -> Summary:
    """Compute the cells of one pod."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    reader = _Reader(status.get("reason") or status.get("phase") or "Unknown", spec, status)
    initializing = reader.init_containers()
    if not initializing or reader.initialized():
        reader.containers()
    if pod["metadata"].get("deletionTimestamp"):
        gone = status.get("reason") == "NodeLost"
        if gone:
            reader.reason = "Unknown"
        elif status.get("phase") not in ("Succeeded", "Failed"):
            reader.reason = "Terminating"
    return Summary(f"{reader.ready}/{reader.total}", reader.reason, reader.restart_cell())


class _Reader:
    def __init__(self, reason: str, spec: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        self.reason = reason
        self.spec, self.status = spec, status
        self.restartable = {
            each["name"] for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"
        }
        self.total = len(spec.get("containers") or ()) + len(self.restartable)
        self.ready = 0
        self.restarts = 0
        self.sidecar_restarts = 0
        self.last_restart = ""
        self.last_sidecar_restart = ""
        gated = [each for each in status.get("conditions") or () if each.get("type") == "PodScheduled"]
        if any(each.get("reason") == "SchedulingGated" for each in gated):
            self.reason = "SchedulingGated"

    def initialized(self) -> bool:
        return any(
            each.get("type") == "Initialized" and each.get("status") == "True"
            for each in self.status.get("conditions") or ()
        )

    def init_containers(self) -> bool:
        """Look at init containers in order; True while one of them keeps the pod from starting."""
        listed = self.spec.get("initContainers") or ()
        for index, one in enumerate(self.status.get("initContainerStatuses") or ()):
            sidecar = one.get("name") in self.restartable
            count = one.get("restartCount") or 0
            self.restarts += count
            self._note(one)
            if sidecar:
                self.sidecar_restarts += count
                self.last_sidecar_restart = self.last_restart
            state = one.get("state") or {}
            ended, waiting = state.get("terminated"), state.get("waiting")
            if ended is not None and not ended.get("exitCode"):
                continue
            if sidecar and one.get("started"):
                self.ready += bool(one.get("ready"))
                continue
            if ended is not None:
                self.reason = _ended("Init:", ended)
            elif waiting and waiting.get("reason") and waiting["reason"] != "PodInitializing":
                self.reason = f"Init:{waiting['reason']}"
            else:
                self.reason = f"Init:{index}/{len(listed)}"
            return True
        return False

    def containers(self) -> None:
        """Look at the main containers, the first one's word counts most."""
        self.restarts, self.last_restart = self.sidecar_restarts, self.last_sidecar_restart
        running = False
        for one in reversed(self.status.get("containerStatuses") or ()):
            self.restarts += one.get("restartCount") or 0
            self._note(one)
            state = one.get("state") or {}
            waiting, ended = state.get("waiting") or {}, state.get("terminated")
            if waiting.get("reason"):
                self.reason = waiting["reason"]
            elif ended is not None:
                self.reason = _ended("", ended)
            elif one.get("ready") and state.get("running") is not None:
                running = True
                self.ready += 1
        if self.reason == "Completed" and running:
            self.reason = "Running" if self._pod_ready() else "NotReady"

    def _pod_ready(self) -> bool:
        return any(
            each.get("type") == "Ready" and each.get("status") == "True" for each in self.status.get("conditions") or ()
        )

    def _note(self, one: Mapping[str, Any]) -> None:
        finished = ((one.get("lastState") or {}).get("terminated") or {}).get("finishedAt") or ""
        self.last_restart = max(self.last_restart, finished)

    def restart_cell(self) -> int | Since:
        if self.restarts and self.last_restart:
            return Since(self.last_restart, f"{self.restarts} ({{}} ago)")
        return self.restarts


def _ended(prefix: str, ended: Mapping[str, Any]) -> str:
    if ended.get("reason"):
        return f"{prefix}{ended['reason']}"
    if ended.get("signal"):
        return f"{prefix}Signal:{ended['signal']}"
    return f"{prefix}ExitCode:{ended.get('exitCode', 0)}"
