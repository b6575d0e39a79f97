"""start, stop and restart of a VirtualMachine: what changes in its spec or status. Pure.

Rules and sentences are KubeVirt's: strategies that run by themselves are changed in the spec, the others get a request in
`status.stateChangeRequests`, which the controller answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from insula.errors import Conflict, Invalid
from insula.model.resource import Resource

FINAL = ("Succeeded", "Failed")


class Change(Struct, frozen=True):
    """Merge patches for the machine's spec and status; None leaves that part alone."""

    spec: dict[str, Any] | None = None
    status: dict[str, Any] | None = None


def strategy_of(machine: Resource) -> str:
    """The run strategy, `running` being its older form."""
    spec = machine["spec"]
    return str(spec.get("runStrategy") or ("Always" if spec.get("running") else "Halted"))


def _active(instance: Resource | None) -> bool:
    return instance is not None and (instance.get("status") or {}).get("phase") not in FINAL


def start(machine: Resource, instance: Resource | None, options: Mapping[str, Any]) -> Change:
    """Raises Conflict when it runs, or when its strategy starts it by itself."""
    strategy = strategy_of(machine)
    if _active(instance):
        raise Conflict("VM is already running")
    data = {"data": {"paused": "true"}} if options.get("paused") else {}
    match strategy:
        case "Always" | "Once":
            raise Conflict(f"{strategy} does not support manual start requests")
        case "Halted":
            if data:
                return Change(_running(machine, True), {"stateChangeRequests": [{"action": "Start", **data}]})
            return Change(_running(machine, True))
        case _:
            return Change(status={"stateChangeRequests": [{"action": "Start", **data}]})


def stop(machine: Resource, instance: Resource | None, options: Mapping[str, Any]) -> Change:
    """Raises Conflict when it does not run."""
    strategy = strategy_of(machine)
    if options.get("gracePeriod") is not None and int(options["gracePeriod"]) < 0:
        raise Invalid("gracePeriod has to be greater or equal to 0", field="gracePeriod")
    if not _active(instance) and strategy in ("Halted", "Manual", "RerunOnFailure"):
        raise Conflict("VM is not running")
    match strategy:
        case "Halted":
            if options.get("gracePeriod") is None:
                raise Conflict("VM is not running")
            return Change()
        case "Always" | "Once":
            return Change(_running(machine, False))
        case _:
            assert instance is not None
            return Change(status={"stateChangeRequests": [{"action": "Stop", "uid": instance["metadata"]["uid"]}]})


def restart(machine: Resource, instance: Resource | None, options: Mapping[str, Any]) -> Change:
    """Raises Conflict when there is nothing to restart, Invalid for a grace period that is not 0."""
    strategy = strategy_of(machine)
    grace = options.get("gracePeriodSeconds")
    if grace is not None and int(grace) != 0:
        wrong = "greater" if int(grace) > 0 else "smaller"
        raise Invalid(
            f"For force restart, only gracePeriod=0 is supported for now; {grace} is {wrong}",
            field="gracePeriodSeconds",
        )
    if strategy in ("Halted", "Once"):
        raise Conflict(f"RunStategy {strategy} does not support manual restart requests")
    if not _active(instance):
        raise Conflict(f"VM is not running: {strategy}")
    assert instance is not None
    requests = [{"action": "Stop", "uid": instance["metadata"]["uid"]}, {"action": "Start"}]
    return Change(status={"stateChangeRequests": requests})


def _running(machine: Resource, wanted: bool) -> dict[str, Any]:
    if machine["spec"].get("runStrategy"):
        return {"runStrategy": "Always" if wanted else "Halted"}
    return {"running": wanted}
