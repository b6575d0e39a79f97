"""What is done next for a pod and how it looks: tables of `podplan` and `podstatus`, in virtual moments."""

from __future__ import annotations

from typing import Any

import pytest

from insula import clock
from insula.agent.podcontainers import records_of
from insula.agent.podplan import Action, plan
from insula.agent.podstatus import status_of
from insula.agent.podview import ContainerView, PodView, Trouble
from insula.engine.contract import Instance, State
from insula.model.instance import InstanceConfig
from insula.model.resource import Resource

START = "2026-01-01T00:00:00.000000000Z"


def at(seconds: float) -> str:
    """A moment after START."""
    return clock.rfc3339(clock.parse_rfc3339(START) + clock.seconds(seconds))


def instance(
    state: str = "running", *, code: int = 0, ended: float = 1.0, attempt: int = 0, name: str = "c", **more: Any
) -> Instance:
    """An instance of a container."""
    over = state in ("exited", "dead")
    begun = START if state not in ("created",) else ""
    labels = {"io.kubernetes.container.name": name, "io.kubernetes.attempt": str(attempt)}
    return Instance(
        id=f"{name}{attempt}",
        config=InstanceConfig(name=name, labels=labels),
        state=State(name=state, exit_code=code, started_at=begun, finished_at=at(ended) if over else "", **more),  # type: ignore[arg-type]
        created=START,
    )


def seen(state: str = "running", **more: Any) -> ContainerView:
    """A container as the worker sees it."""
    fields = {k: more.pop(k) for k in ("code", "ended", "error", "oom_killed") if k in more}
    made = instance(state, **fields)
    running = state == "running"
    return ContainerView(
        current=made, **{"attempt": 0, "started": running, "ready": running, "crashes": 0 if running else 1, **more}
    )


def pod(*containers: dict[str, Any], phase: str = "Pending", deleted: float | None = None, **spec: Any) -> Resource:
    """A pod of one container `c`, or of these."""
    meta: dict[str, Any] = {"name": "p", "namespace": "n", "uid": "u", "generation": 1}
    if deleted is not None:
        meta |= {"deletionTimestamp": at(deleted), "deletionGracePeriodSeconds": 30}
    whole = {"containers": list(containers) or [{"name": "c", "image": "i"}], **spec}
    return {"metadata": meta, "spec": whole, "status": {"phase": phase}}


def view(wish: Resource, now: float = 2.0, *, sandbox: bool = True, **more: Any) -> PodView:
    """A pod as the worker sees it; containers by name as further words."""
    options = {k: more.pop(k) for k in ("trouble", "started_at", "ending_for_s") if k in more}
    address = "10.0.0.2" if sandbox else ""
    return PodView(
        pod=wish, now=at(now), containers=more, has_sandbox=sandbox, address=address, host_address="10.0.0.1", **options
    )


def said(actions: list[Action]) -> list[str]:
    """Actions in short."""
    return [f"{a.do} {a.container}".strip() + (f" {a.after_s:g}" if a.do == "wait" else "") for a in actions]


INIT = {"initContainers": [{"name": "i1", "image": "i"}, {"name": "i2", "image": "i"}]}
SIDE = {"initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}, {"name": "i", "image": "i"}]}
DONE = seen("exited")


# --- beginning --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (view(pod(), sandbox=False), ["sandbox"]),
        (view(pod()), ["start c"]),
        (view(pod(), c=seen()), []),
        (view(pod({"name": "a", "image": "i"}, {"name": "b", "image": "i"})), ["start a", "start b"]),
        (view(pod(**INIT)), ["start i1"]),
        (view(pod(**INIT), i1=seen()), []),
        (view(pod(**INIT), i1=DONE), ["start i2"]),
        (view(pod(**INIT), i1=DONE, i2=DONE), ["start c"]),
        (view(pod(**SIDE)), ["start s"]),
        (view(pod(**SIDE), s=seen(started=False)), []),
        (view(pod(**SIDE), s=seen()), ["start i"]),
        (view(pod(**SIDE), s=seen(), i=DONE), ["start c"]),
        (view(pod(**SIDE), s=seen("exited", code=1), i=DONE, c=seen()), ["start s"]),
        (view(pod(**SIDE), s=seen(started=False), i=DONE, c=seen("exited", code=1)), ["start c"]),
        (view(pod(ephemeralContainers=[{"name": "e", "image": "i"}]), c=seen()), ["start e"]),
        (view(pod(ephemeralContainers=[{"name": "e", "image": "i"}]), c=seen(), e=seen("exited", code=1)), []),
        (view(pod(), c=ContainerView(current=instance("created"), attempt=0)), ["start c"]),
    ],
)
def test_what_is_begun_and_in_which_order(wanted: PodView, expected: list[str]) -> None:
    assert said(plan(wanted)) == expected


def test_init_containers_run_again_in_a_sandbox_that_was_made_anew() -> None:
    old = ContainerView(current=instance("exited", code=255), attempt=0, crashes=1, past=True)
    again = ContainerView(previous=instance("exited"), attempt=0, past=True)
    assert said(plan(view(pod(**INIT), i1=again, i2=again, c=old))) == ["start i1"]
    assert said(plan(view(pod(**INIT), i1=DONE, i2=DONE, c=old))) == ["start c"]


# --- restarting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "code", "expected", "phase"),
    [
        ("Always", 0, ["start c"], "Running"),
        ("Always", 1, ["start c"], "Running"),
        ("OnFailure", 0, ["release"], "Succeeded"),
        ("OnFailure", 1, ["start c"], "Running"),
        ("Never", 0, ["release"], "Succeeded"),
        ("Never", 1, ["release"], "Failed"),
    ],
)
def test_restart_policies(policy: str, code: int, expected: list[str], phase: str) -> None:
    found = view(pod(restartPolicy=policy), c=seen("exited", code=code))
    assert said(plan(found)) == expected
    assert status_of(found)["phase"] == phase


def test_a_containers_own_policy_and_rules_come_before_the_pods() -> None:
    own = {"name": "c", "image": "i", "restartPolicy": "Never"}
    assert said(plan(view(pod(own, restartPolicy="Always"), c=seen("exited", code=1)))) == ["release"]
    rule = {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}
    ruled = {**own, "restartPolicyRules": [rule]}
    assert said(plan(view(pod(ruled), c=seen("exited", code=42)))) == ["start c"]
    assert said(plan(view(pod(ruled), c=seen("exited", code=1)))) == ["release"]


@pytest.mark.parametrize(("crashes", "wait"), [(1, None), (2, 9), (3, 19), (4, 39), (6, 159), (7, 299), (50, 299)])
def test_the_first_restart_is_at_once_the_next_ones_wait_longer_and_longer(crashes: int, wait: int | None) -> None:
    found = view(pod(), c=seen("exited", code=1, crashes=crashes))
    assert said(plan(found)) == (["start c"] if wait is None else [f"wait c {wait}"])
    state = status_of(found)["containerStatuses"][0]["state"]
    assert ("waiting" in state) == (wait is not None)


def test_attempts_that_came_to_nothing_wait_on_their_own_count() -> None:
    trouble = Trouble("ErrImagePull", "no", at(0))
    found = view(pod(), now=4, c=ContainerView(trouble=trouble, troubles=1))
    assert said(plan(found)) == ["wait c 6"]
    assert said(plan(view(pod(), now=4, c=ContainerView(trouble=trouble, troubles=3)))) == ["wait c 36"]
    assert said(plan(view(pod(), now=11, c=ContainerView(trouble=trouble, troubles=1)))) == ["start c"]


def test_a_container_that_is_gone_counts_as_ended_with_137() -> None:
    lost = ContainerView(attempt=2, vanished=True)
    assert said(plan(view(pod(restartPolicy="Always"), c=lost))) == ["start c"]
    never = view(pod(restartPolicy="Never"), c=lost)
    assert said(plan(never)) == ["release"]
    ended = status_of(never)["containerStatuses"][0]
    assert (ended["state"]["terminated"]["exitCode"], ended["state"]["terminated"]["reason"]) == (
        137,
        "ContainerStatusUnknown",
    )
    assert ended["restartCount"] == 2


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_is_over_never_runs_again_whatever_is_left_of_it(phase: str) -> None:
    assert said(plan(view(pod(phase=phase), sandbox=False))) == []
    assert said(plan(view(pod(phase=phase)))) == ["release"]
    assert said(plan(view(pod(phase=phase), c=seen()))) == ["stop c"]
    assert status_of(view(pod(phase=phase), sandbox=False))["phase"] == phase


def test_an_unhealthy_container_is_stopped_within_its_probes_grace() -> None:
    probe = {"name": "c", "image": "i", "livenessProbe": {"terminationGracePeriodSeconds": 5}}
    (action,) = plan(view(pod(probe), c=seen(unhealthy="Liveness probe failed: x")))
    assert (action.do, action.grace_s, action.reason) == ("stop", 5.0, "Liveness probe failed: x")


# --- ending -----------------------------------------------------------------------------------------------------


def test_a_deleted_pod_ends_its_sidecars_last_in_reverse_and_shares_one_grace_period() -> None:
    two = {"initContainers": [{"name": n, "image": "i", "restartPolicy": "Always"} for n in ("s1", "s2")]}
    wish = pod(deleted=30, **two)
    first = plan(view(wish, s1=seen(), s2=seen(), c=seen()))
    assert (said(first), first[0].grace_s) == (["stop c"], 30)
    second = plan(view(wish, s1=seen(), s2=seen(), c=DONE, ending_for_s=10))
    assert (said(second), second[0].grace_s) == (["stop s2"], 20)
    third = plan(view(wish, s1=seen(), s2=DONE, c=DONE, ending_for_s=40))
    assert (said(third), third[0].grace_s) == (["stop s1"], 2)
    assert said(plan(view(wish, s1=DONE, s2=DONE, c=DONE))) == ["clean", "forget"]


def test_a_pod_that_never_began_is_cleaned_at_once() -> None:
    assert said(plan(view(pod(deleted=0), sandbox=False))) == ["clean", "forget"]


def test_the_deadline_counts_from_the_start_and_survives_a_restart_of_the_agent() -> None:
    wish = pod(activeDeadlineSeconds=60)
    assert said(plan(view(wish, 20, c=seen(), started_at=at(0)))) == ["wait 40"]
    assert said(plan(view(wish, 61, c=seen(), started_at=at(0)))) == ["stop c"]
    over = view(wish, 61, c=seen("exited", code=137, crashes=1), started_at=at(0))
    assert said(plan(over)) == ["release"]
    found = status_of(over)
    assert (found["phase"], found["reason"]) == ("Failed", "DeadlineExceeded")


# --- status -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "phase"),
    [
        (view(pod(), sandbox=False), "Pending"),
        (view(pod(), c=seen()), "Running"),
        (view(pod({"name": "a", "image": "i"}, {"name": "b", "image": "i"}), a=seen()), "Pending"),
        (view(pod(**INIT), i1=seen()), "Pending"),
        (view(pod(**INIT, restartPolicy="Never"), i1=seen("exited", code=1)), "Failed"),
        (view(pod(**INIT), i1=seen("exited", code=1)), "Pending"),
        (view(pod(**SIDE, restartPolicy="Never"), s=seen(), i=DONE, c=DONE), "Running"),
        (view(pod(**SIDE, restartPolicy="Never"), s=seen("exited", code=143), i=DONE, c=DONE), "Succeeded"),
    ],
)
def test_phases(wanted: PodView, phase: str) -> None:
    assert status_of(wanted)["phase"] == phase


def conditions(status: dict[str, Any]) -> dict[str, str]:
    """Status by type."""
    return {found["type"]: found["status"] for found in status["conditions"]}


def test_the_status_of_a_running_pod() -> None:
    found = status_of(view(pod(), c=seen(), started_at=at(0)))
    assert found["podIP"] == "10.0.0.2" and found["hostIP"] == "10.0.0.1" and found["startTime"] == at(0)
    assert set(conditions(found).values()) == {"True"}
    one = found["containerStatuses"][0]
    assert one["state"] == {"running": {"startedAt": at(0)}} and one["containerID"] == "insula://c0"
    assert (one["ready"], one["started"], one["restartCount"], one["lastState"]) == (True, True, 0, {})


def test_ready_follows_the_containers_and_the_readiness_gates() -> None:
    unready = status_of(view(pod(), c=seen(ready=False)))
    assert (conditions(unready)["Ready"], conditions(unready)["ContainersReady"]) == ("False", "False")
    gated = pod(readinessGates=[{"conditionType": "test/gate"}])
    held = conditions(status_of(view(gated, c=seen())))
    assert (held["Ready"], held["ContainersReady"]) == ("False", "True")
    gated["status"]["conditions"] = [{"type": "test/gate", "status": "True"}]
    opened = conditions(status_of(view(gated, c=seen())))
    assert (opened["Ready"], opened["test/gate"]) == ("True", "True")


def test_a_transition_time_moves_only_with_its_status() -> None:
    wish = pod()
    wish["status"] = status_of(view(wish, 5, c=seen(ready=False), started_at=at(5)))
    wish["status"] = status_of(view(wish, 50, c=seen(ready=False), started_at=at(5)))
    times = {found["type"]: found["lastTransitionTime"] for found in wish["status"]["conditions"]}
    assert set(times.values()) == {at(5)}
    wish["status"] = status_of(view(wish, 60, c=seen(), started_at=at(5)))
    times = {found["type"]: found["lastTransitionTime"] for found in wish["status"]["conditions"]}
    assert (times["Ready"], times["Initialized"]) == (at(60), at(5))
    assert status_of(view(wish, 70, c=seen(), started_at=at(5))) == wish["status"], "nothing changed, nothing to write"


@pytest.mark.parametrize(
    ("container", "reason", "code"),
    [
        (seen("exited", code=0), "Completed", 0),
        (seen("exited", code=3), "Error", 3),
        (seen("exited", code=137, oom_killed=True), "OOMKilled", 137),
        (seen("created", error="no such file", code=127), "StartError", 128),
    ],
)
def test_why_a_container_ended(container: ContainerView, reason: str, code: int) -> None:
    ended = status_of(view(pod(restartPolicy="Never"), c=container))["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == (reason, code)


def test_words_of_those_that_wait() -> None:
    found = status_of(view(pod(**INIT), i1=seen()))
    assert found["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
    found = status_of(view(pod(), sandbox=False, trouble=Trouble("ContainerCreating", "no volume", at(0))))
    assert found["containerStatuses"][0]["state"]["waiting"] == {"reason": "ContainerCreating", "message": "no volume"}
    last = ContainerView(
        current=instance(attempt=1), previous=instance("exited", code=2), attempt=1, messages={"c0": "last words"}
    )
    shown = status_of(view(pod(), c=last))["containerStatuses"][0]
    assert (shown["restartCount"], shown["lastState"]["terminated"]["message"]) == (1, "last words")


def test_what_is_shown_of_a_pod_that_is_over_stays_when_nothing_of_it_is_left() -> None:
    wish = pod(restartPolicy="Never")
    wish["status"] = status_of(view(wish, c=seen("exited", code=3)))
    wish["status"] |= {"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}
    again = status_of(view(wish, 100, sandbox=False))
    assert again["containerStatuses"] == wish["status"]["containerStatuses"]
    assert again["podIP"] == "10.0.0.2" and again["phase"] == "Failed"


# --- after a restart of the agent -------------------------------------------------------------------------------


def test_attempts_are_known_by_their_labels() -> None:
    found = records_of(pod(), [instance(attempt=3), instance("exited", attempt=2)])["c"]
    assert (found.attempt, found.crashes) == (3, 3)
    assert found.current is not None and found.previous is not None
    assert (found.current.id, found.previous.id) == ("c3", "c2")


def test_readiness_holds_for_the_same_instance_only() -> None:
    wish = pod({"name": "c", "image": "i", "readinessProbe": {}})
    shown = {"name": "c", "ready": True, "started": True, "restartCount": 0}
    wish["status"] = {"containerStatuses": [{**shown, "containerID": "insula://c0"}]}
    assert records_of(wish, [instance()])["c"].view().ready
    wish["status"] = {"containerStatuses": [{**shown, "containerID": "insula://other"}]}
    record = records_of(wish, [])["c"]
    assert record.vanished and record.attempt == 0


def test_a_container_with_a_readiness_probe_is_never_ready_before_it_passed() -> None:
    probed = {"name": "c", "image": "i", "readinessProbe": {}}
    record = records_of(pod(probed), [instance("exited")])["c"]
    record.begun(instance(attempt=1), probed)
    assert not record.view().ready
    record.stop_probes()
    assert not record.view().ready, "nor while it is being stopped"


def test_ends_are_counted_once_and_a_long_run_forgets_them() -> None:
    record = records_of(pod(), [instance()])["c"]
    assert record.observe(instance("exited", code=1), at(1)) and not record.observe(instance("exited", code=1), at(2))
    assert record.crashes == 1
    record.begun(instance(attempt=1), {"name": "c"})
    record.observe(instance("exited", code=1, attempt=1), at(3))
    assert record.crashes == 2
    record.begun(instance(attempt=2), {"name": "c"})
    record.observe(instance("exited", code=1, attempt=2, ended=700), at(701))
    assert record.crashes == 1
    assert not record.observe(instance("exited", attempt=0), at(800)), "an older instance is no news"
