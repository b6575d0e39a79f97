"""VirtualMachine: keeps, or does not keep, a VirtualMachineInstance of the same name, as its run strategy says.

`decide` is a pure function of the machine and its instance. Strategies and status words are KubeVirt's: Always, RerunOnFailure,
Manual, Once, Halted; start, stop and restart of the door arrive as changes of the strategy or as `status.stateChangeRequests`.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from insula import clock
from insula.control.controller import DONE, Context, Controller, Result, Watch, controlled_by, controller_of
from insula.controllers.common import delete_quietly, is_true, owner_reference, with_condition, write_status
from insula.controllers.refs import MACHINE_INSTANCES, MACHINES
from insula.errors import AlreadyExists, InsulaError
from insula.model.resource import Key, Resource

FINAL = ("Succeeded", "Failed")
FIRST_WAIT_S, LONGEST_WAIT_S = 10, 300


class Decision(Struct, frozen=True):
    """What to do about the instance now. `answered` requests are taken off the list; `paused` starts it paused."""

    action: Literal["none", "create", "delete"] = "none"
    answered: int = 0
    paused: bool = False


def strategy_of(machine: Resource) -> str:
    """The run strategy; `running` is its older form, and neither means Halted."""
    spec = machine["spec"]
    if spec.get("runStrategy"):
        return str(spec["runStrategy"])
    return "Always" if spec.get("running") else "Halted"


def decide(machine: Resource, instance: Resource | None) -> Decision:
    """Requests come first, then the strategy."""
    if machine["metadata"].get("deletionTimestamp"):
        return Decision("delete" if instance else "none")
    requests = (machine.get("status") or {}).get("stateChangeRequests") or []
    if requests:
        return _answer(requests[0], instance)
    return _follow(strategy_of(machine), machine, instance)


def _answer(request: dict[str, Any], instance: Resource | None) -> Decision:
    if request["action"] == "Stop":
        if instance is None or instance["metadata"]["uid"] != request.get("uid", instance["metadata"]["uid"]):
            return Decision(answered=1)
        return Decision("none" if instance["metadata"].get("deletionTimestamp") else "delete")
    if instance is None:
        return Decision("create", answered=1, paused=(request.get("data") or {}).get("paused") == "true")
    if _phase(instance) in FINAL:
        return Decision("delete")
    return Decision() if instance["metadata"].get("deletionTimestamp") else Decision(answered=1)


def _follow(strategy: str, machine: Resource, instance: Resource | None) -> Decision:
    phase = _phase(instance)
    if instance is not None and instance["metadata"].get("deletionTimestamp"):
        return Decision()
    match strategy:
        case "Always":
            return Decision("create" if instance is None else "delete" if phase in FINAL else "none")
        case "RerunOnFailure":
            if instance is None:
                return Decision("create" if _wants_rerun(machine) else "none")
            return Decision("delete" if phase == "Failed" else "none")
        case "Once":
            return Decision(
                "create" if instance is None and not (machine.get("status") or {}).get("created") else "none"
            )
        case "Halted":
            return Decision("delete" if instance is not None else "none")
        case _:
            return Decision()


def _wants_rerun(machine: Resource) -> bool:
    """RerunOnFailure starts a machine that has just got this strategy or whose last instance failed; one that was shut down
    or stopped stays down until it is asked to start."""
    status = machine.get("status") or {}
    return status.get("runStrategy") != "RerunOnFailure" or bool(status.get("startFailure"))


def _phase(instance: Resource | None) -> str:
    return str(((instance or {}).get("status") or {}).get("phase", ""))


def instance_of(machine: Resource, *, paused: bool) -> Resource:
    """The instance that a machine's template describes."""
    meta, template = machine["metadata"], machine["spec"]["template"]
    wanted = template.get("metadata") or {}
    spec = {**template["spec"]}
    if paused:
        spec["startStrategy"] = "Paused"
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": meta["name"],
            "labels": {**(wanted.get("labels") or {}), "vmi.kubevirt.io/id": meta["name"][:63]},
            "annotations": dict(wanted.get("annotations") or {}),
            "ownerReferences": [owner_reference(machine)],
        },
        "spec": spec,
    }


def printable(machine: Resource, instance: Resource | None, decision: Decision, failure: dict[str, Any] | None) -> str:
    """The word that `kubectl get vm` shows."""
    if machine["metadata"].get("deletionTimestamp"):
        return "Terminating"
    if instance is None:
        if failure and strategy_of(machine) in ("Always", "RerunOnFailure"):
            return "CrashLoopBackOff"
        return "Starting" if decision.action == "create" else "Stopped"
    if instance["metadata"].get("deletionTimestamp"):
        return "Stopping"
    if _phase(instance) == "Running":
        return "Paused" if is_true(instance, "Paused") else "Running"
    reasons = {
        c.get("reason") for c in (instance.get("status") or {}).get("conditions") or () if c["status"] == "False"
    }
    for reason, word in _TROUBLE.items():
        if reason in reasons:
            return word
    return "Stopped" if _phase(instance) in FINAL else "Starting"


_TROUBLE = {
    "Unschedulable": "ErrorUnschedulable",
    "ErrImagePull": "ErrImagePull",
    "ImagePullBackOff": "ImagePullBackOff",
}


def status_of(machine: Resource, instance: Resource | None, decision: Decision, now: str) -> dict[str, Any]:
    """The whole status that machine and instance amount to."""
    old = machine.get("status") or {}
    failure = _failure(old.get("startFailure"), instance, now)
    generation = machine["metadata"].get("generation", 1)
    status: dict[str, Any] = {
        k: v for k, v in old.items() if k not in ("startFailure", "stateChangeRequests", "ready", "created")
    }
    status.update(
        printableStatus=printable(machine, instance, decision, failure),
        runStrategy=strategy_of(machine),
        observedGeneration=generation,
        desiredGeneration=generation,
        conditions=_conditions(old.get("conditions") or [], instance, now),
    )
    if instance is not None:
        status["created"] = True
        status["ready"] = is_true(instance, "Ready")
    elif strategy_of(machine) == "Once" and old.get("created"):
        status["created"] = True
    if failure:
        status["startFailure"] = failure
    if left := (old.get("stateChangeRequests") or [])[decision.answered :]:
        status["stateChangeRequests"] = left
    return status


def _failure(old: dict[str, Any] | None, instance: Resource | None, now: str) -> dict[str, Any] | None:
    """Count instances that failed in a row; running for a while forgets them."""
    if instance is None:
        return old
    if _phase(instance) == "Running":
        return None if is_true(instance, "Ready") else old
    uid = instance["metadata"]["uid"]
    if _phase(instance) != "Failed" or (old or {}).get("lastFailedVMIUID") == uid:
        return old
    count = int((old or {}).get("consecutiveFailCount", 0)) + 1
    wait_s = min(FIRST_WAIT_S * 2 ** (count - 1), LONGEST_WAIT_S)
    again = clock.rfc3339(clock.parse_rfc3339(now) + clock.seconds(wait_s))
    return {"consecutiveFailCount": count, "lastFailedVMIUID": uid, "retryAfterTimestamp": again}


def _conditions(old: list[dict[str, Any]], instance: Resource | None, now: str) -> list[dict[str, Any]]:
    kept = [found for found in old if found["type"] in ("Failure", "RestartRequired")]
    if instance is None:
        base = [found for found in old if found["type"] == "Ready"]
        return [*with_condition(base, "Ready", "False", "VMINotExists", "VMI does not exist", now), *kept]
    copied = [
        found for found in (instance.get("status") or {}).get("conditions") or () if found["type"] != "Synchronized"
    ]
    return [*copied, *kept]


def wait_s(machine: Resource, now: str) -> float:
    """How long to wait before the next start, after failures."""
    failure = (machine.get("status") or {}).get("startFailure") or {}
    if not failure.get("retryAfterTimestamp"):
        return 0.0
    left = clock.parse_rfc3339(failure["retryAfterTimestamp"]) - clock.parse_rfc3339(now)
    return max(left.total_seconds(), 0.0)


async def reconcile(context: Context, key: Key) -> Result:
    """One step: make or delete the instance, then write the status."""
    machine = context.caches.get(MACHINES, key.name, key.namespace)
    if machine is None:
        return DONE
    instance = own(machine, context.caches.get(MACHINE_INSTANCES, key.name, key.namespace))
    now = clock.rfc3339(clock.now())
    decision = decide(machine, instance)
    pause_s = wait_s(machine, now) if decision.action == "create" and not decision.answered else 0.0
    if pause_s:
        decision = Decision()
    status = status_of(machine, instance, decision, now)
    await _act(context, machine, instance, decision)
    await write_status(context.client, MACHINES, machine, status)
    return Result(pause_s or None)


def own(machine: Resource, instance: Resource | None) -> Resource | None:
    """The instance if it is this machine's. One of the same name that a user made by itself is not touched."""
    owner = controller_of(instance) if instance is not None else None
    return instance if owner is not None and owner["uid"] == machine["metadata"]["uid"] else None


async def _act(context: Context, machine: Resource, instance: Resource | None, decision: Decision) -> None:
    namespace, name = machine["metadata"]["namespace"], machine["metadata"]["name"]
    if decision.action == "create":
        try:
            await context.client.create(MACHINE_INSTANCES, instance_of(machine, paused=decision.paused), namespace)
        except AlreadyExists:
            present = await context.client.get(MACHINE_INSTANCES, name, namespace)
            if own(machine, present) is not None:
                return
            text = f"a virtual machine instance {name} that this virtual machine does not own is there already"
            context.events.record(machine, "FailedCreate", text, "Warning")
            raise
        except InsulaError as fault:
            context.events.record(machine, "FailedCreate", str(fault), "Warning")
            raise
        text = f"Started the virtual machine by creating the new virtual machine instance {name}"
        context.events.record(machine, "SuccessfulCreate", text)
    elif decision.action == "delete" and instance is not None and not instance["metadata"].get("deletionTimestamp"):
        await delete_quietly(context.client, MACHINE_INSTANCES, instance)
        text = f"Stopped the virtual machine by deleting the virtual machine instance with uid {instance['metadata']['uid']}"
        context.events.record(machine, "SuccessfulDelete", text)


CONTROLLER = Controller(
    name="virtualmachine-controller",
    summary="keeps a VirtualMachine's instance as its run strategy says",
    watches=(Watch(ref=MACHINES), Watch(ref=MACHINE_INSTANCES, keys=controlled_by("VirtualMachine"))),
    reconcile=reconcile,
)
