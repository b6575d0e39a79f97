"""ReplicaSet and Deployment: who is made and given up, the steps of a rollout, the status it amounts to. Pure tables."""

from __future__ import annotations

from typing import Any

import pytest

from insula import clock
from insula.controllers import replicaset, rollout, rolloutstatus
from insula.controllers.rollout import DESIRED, MAX, REVISION
from insula.model.resource import Resource

NOW = "2026-01-01T01:00:00Z"
EARLIER = "2026-01-01T00:00:00Z"


def later(seconds: float) -> str:
    """A moment after EARLIER."""
    return clock.rfc3339(clock.parse_rfc3339(EARLIER) + clock.seconds(seconds))


# --- ReplicaSet -------------------------------------------------------------------------------------------------


def replicas_of(count: int, **spec: Any) -> Resource:
    """A ReplicaSet."""
    template = {"metadata": {"labels": {"app": "a"}, "name": "dropped"}, "spec": {"containers": []}}
    meta = {"name": "rs", "namespace": "default", "uid": "u", "generation": 3}
    whole = {"replicas": count, "selector": {"matchLabels": {"app": "a"}}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta, "spec": whole}


def pod(name: str, *, node: str = "n", phase: str = "Running", ready: str = EARLIER, **meta: Any) -> Resource:
    """A pod; `ready` is since when, empty for not at all."""
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": ready}] if ready else []
    restarts = meta.pop("restarts", 0)
    return {
        "metadata": {"name": name, "uid": name, "creationTimestamp": EARLIER, "labels": {"app": "a"}, **meta},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "conditions": conditions, "containerStatuses": [{"restartCount": restarts}]},
    }


@pytest.mark.parametrize(
    ("wanted", "have", "make", "give_up"), [(3, 0, 3, 0), (3, 3, 0, 0), (1, 3, 0, 2), (0, 2, 0, 2), (2000, 0, 500, 0)]
)
def test_a_set_makes_what_is_missing_and_gives_up_what_is_too_much(
    wanted: int, have: int, make: int, give_up: int
) -> None:
    steps = replicaset.plan(replicas_of(wanted), [pod(f"p{n}") for n in range(have)], NOW)
    assert (steps.create, len(steps.delete)) == (make, give_up)


def test_pods_that_have_ended_or_are_ending_do_not_count() -> None:
    ended = [pod("a", phase="Succeeded"), pod("b", phase="Failed"), pod("c", deletionTimestamp=NOW)]
    assert replicaset.plan(replicas_of(2), ended, NOW).create == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pod("x", node=""), pod("y", phase="Pending", ready="")),
        (pod("x", phase="Pending", ready=""), pod("y", phase="Running", ready="")),
        (pod("x", ready=""), pod("y")),
        (pod("x", annotations={replicaset.DELETION_COST: "-5"}), pod("y", annotations={replicaset.DELETION_COST: "x"})),
        (pod("x", ready=later(100)), pod("y", ready=EARLIER)),
        (pod("x", restarts=5), pod("y", restarts=1)),
        (pod("x", creationTimestamp=later(10)), pod("y", creationTimestamp=EARLIER)),
    ],
    ids=["unassigned", "pending", "not ready", "cheaper", "ready for less", "restarted", "younger"],
)
def test_the_order_in_which_pods_are_given_up(first: Resource, second: Resource) -> None:
    for pods in ([first, second], [second, first]):
        assert replicaset.plan(replicas_of(1), pods, NOW).delete == [first]


def test_pods_on_crowded_nodes_go_first() -> None:
    pods = [pod("a", node="lonely"), pod("b", node="full"), pod("c", node="full")]
    assert replicaset.plan(replicas_of(2), pods, NOW).delete[0]["metadata"]["name"] in ("b", "c")


def test_the_status_counts_available_only_after_min_ready_seconds() -> None:
    pods = [pod("a", ready=EARLIER), pod("b", ready=NOW), pod("c", ready=""), pod("d", labels={})]
    status = replicaset.status_of(replicas_of(4, minReadySeconds=10), pods, NOW)
    assert status == {
        "replicas": 4,
        "fullyLabeledReplicas": 3,
        "readyReplicas": 3,
        "availableReplicas": 2,
        "observedGeneration": 3,
    }


def test_a_failure_is_a_condition_until_it_is_over() -> None:
    wish = replicas_of(1)
    wish["status"] = replicaset.status_of(wish, [], NOW, "quota exceeded")
    assert wish["status"]["conditions"][0]["message"] == "quota exceeded"
    assert "conditions" not in replicaset.status_of(wish, [], NOW)


def test_a_new_pod_takes_only_what_a_template_may_give() -> None:
    made = replicaset.pod_of(replicas_of(1))
    assert made["metadata"]["generateName"] == "rs-" and "name" not in made["metadata"]
    assert (
        made["metadata"]["ownerReferences"][0] | {"uid": "u", "controller": True}
        == made["metadata"]["ownerReferences"][0]
    )


# --- Deployment -------------------------------------------------------------------------------------------------


def deployment(replicas: int = 10, **spec: Any) -> Resource:
    """A Deployment whose template has the label v=new."""
    template = {"metadata": {"labels": {"app": "a", "v": "new"}}, "spec": {"containers": []}}
    whole = {"replicas": replicas, "selector": {"matchLabels": {"app": "a"}}, "template": template, **spec}
    meta = {"name": "d", "namespace": "default", "uid": "u", "generation": 1}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": whole}


def made(
    name: str, size: int, available: int | None = None, *, desired: int | None = 10, most: int = 13, age: float = 0.0
) -> Resource:
    """A ReplicaSet of the deployment. `age`: seconds after EARLIER that it was made."""
    available = size if available is None else available
    notes = {} if desired is None else {DESIRED: str(desired), MAX: str(most)}
    template = {"metadata": {"labels": {"app": "a", "v": name}}, "spec": {"containers": []}}
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": name,
            "creationTimestamp": later(age),
            "annotations": notes,
        },
        "spec": {"replicas": size, "template": template},
        "status": {"replicas": size, "readyReplicas": available, "availableReplicas": available},
    }


def steps(*arguments: Any, **options: Any) -> dict[str, int]:
    """The planned sizes by set."""
    return {step.replicas["metadata"]["name"]: step.to for step in rollout.plan(*arguments, **options)}


def rolling(surge: Any, unavailable: Any) -> dict[str, Any]:
    """A strategy."""
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "expected"),
    [
        (10, "25%", "25%", (13, 8)),
        (1, "25%", "25%", (2, 1)),
        (4, 0, 1, (4, 3)),
        (4, "0%", "0%", (4, 3)),
        (3, "100%", 0, (6, 3)),
        (3, 1, 50, (4, 0)),
        (0, "25%", "25%", (0, 0)),
        (10, "1%", 0, (11, 10)),
    ],
)
def test_bounds_round_surge_up_and_unavailable_down(
    replicas: int, surge: Any, unavailable: Any, expected: tuple[int, int]
) -> None:
    assert rollout.limits(deployment(replicas, strategy=rolling(surge, unavailable))) == expected


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        (made("new", 0), [], {"new": 10}),
        (made("new", 0), [made("old", 10)], {"new": 3}),
        (made("new", 3, 0), [made("old", 10)], {"old": 8}),
        (made("new", 3, 0), [made("old", 8)], {"new": 5}),
        (made("new", 5, 0), [made("old", 8)], {}),
        (made("new", 5, 5), [made("old", 8)], {"old": 3}),
        (made("new", 10, 10), [made("old", 3)], {"old": 0}),
        (made("new", 10, 10), [], {}),
        (made("new", 12, 12), [], {"new": 10}),
    ],
)
def test_a_rolling_update_moves_within_its_bounds(new: Resource, old: list[Resource], expected: dict[str, int]) -> None:
    assert steps(deployment(strategy=rolling("25%", "25%")), new, old) == expected


def test_sick_old_pods_are_given_up_first_oldest_set_first() -> None:
    old = [made("older", 5, 1, age=1), made("newer", 5, 5, age=2)]
    assert steps(deployment(strategy=rolling(3, 2)), made("new", 3, 3), old) == {"older": 0}


def test_a_whole_rollout_keeps_its_bounds_and_comes_to_an_end() -> None:
    wish = deployment(10, strategy=rolling("25%", "25%"))
    new, old = made("new", 0), made("old", 10)
    for _ in range(50):
        planned = steps(wish, new, [old])
        for name, size in planned.items():
            rs = {"new": new, "old": old}[name]
            rs["spec"]["replicas"] = size
        total = rollout.size_of(new) + rollout.size_of(old)
        for rs in (new, old):  # at most one pod of a set becomes available at a time; given up pods are gone at once
            size = rollout.size_of(rs)
            now = min(size, rollout.counted(rs, "availableReplicas") + 1)
            rs["status"] = {"replicas": size, "readyReplicas": now, "availableReplicas": now}
        available = sum(rollout.counted(rs, "availableReplicas") for rs in (new, old))
        assert total <= 13 and available >= 8
        if rollout.size_of(old) == 0 and rollout.counted(new, "availableReplicas") == 10:
            return
    pytest.fail("the rollout did not end")


def test_recreate_waits_until_the_old_pods_are_gone() -> None:
    wish = deployment(3, strategy={"type": "Recreate"})
    assert steps(wish, made("new", 0), [made("old", 3)]) == {"old": 0}
    assert steps(wish, made("new", 0), [made("old", 0)], old_pods=True) == {}
    assert steps(wish, made("new", 0), [made("old", 0)]) == {"new": 3}
    assert steps(wish, made("new", 3), []) == {}


def test_while_paused_only_the_size_follows() -> None:
    wish = deployment(5, paused=True)
    assert steps(wish, None, [made("old", 3, desired=3)]) == {"old": 5}
    assert steps(wish, None, []) == {}
    assert steps(deployment(10, paused=True), made("new", 2), [made("old", 8)]) == {"old": 11, "new": 2}


def test_scaling_in_the_middle_of_a_rollout_is_shared_in_proportion() -> None:
    """The documentation's example: 10 replicas with maxSurge 3, of which 8 old and 5 new, are scaled to 15."""
    wish = deployment(15, strategy=rolling(3, 2))
    assert steps(wish, made("new", 5, 0), [made("old", 8)]) == {"old": 11, "new": 7}
    smaller = deployment(5, strategy=rolling(3, 2))
    found = steps(smaller, made("new", 5, 0), [made("old", 8)])
    assert sum(found.values()) == 8


def test_scaling_to_nothing_takes_everything() -> None:
    assert steps(deployment(0), made("new", 5), [made("old", 8)]) == {"old": 0, "new": 0}


def test_a_new_set_is_named_and_labelled_by_its_template() -> None:
    wish = deployment(2)
    wish["metadata"]["annotations"] = {"kubernetes.io/change-cause": "why", rollout.LAST_APPLIED: "x", REVISION: "9"}
    found = rollout.set_of(wish, 3)
    name = found["metadata"]["labels"][rollout.HASH_LABEL]
    assert found["metadata"]["name"] == f"d-{name}" and len(name) == 10
    assert found["spec"]["selector"]["matchLabels"][rollout.HASH_LABEL] == name
    assert found["metadata"]["annotations"] == {
        "kubernetes.io/change-cause": "why",
        REVISION: "3",
        DESIRED: "2",
        MAX: "3",
    }
    assert rollout.HASH_LABEL not in wish["spec"]["template"]["metadata"]["labels"]
    assert rollout.newest(wish, [found | {"metadata": {**found["metadata"], "creationTimestamp": NOW}}])
    collided = rollout.set_of({**wish, "status": {"collisionCount": 1}}, 3)
    assert collided["metadata"]["name"] != found["metadata"]["name"]


def test_the_set_of_the_present_template_is_the_oldest_of_equals() -> None:
    wish = deployment()
    sets = [made("old", 1), made("new", 1, age=5), {**made("new", 1, age=2), "mark": True}]
    assert rollout.newest(wish, sets)["mark"]  # type: ignore[index]


# --- its status -------------------------------------------------------------------------------------------------


def reasons(status: dict[str, Any]) -> dict[str, str]:
    """Condition reasons by type."""
    return {found["type"]: found["reason"] for found in status["conditions"]}


def test_the_status_of_a_rollout_from_begin_to_end() -> None:
    wish = deployment(2, progressDeadlineSeconds=60)
    wish["status"] = rolloutstatus.status_of(wish, made("new", 0), [made("new", 0)], later(0))
    assert reasons(wish["status"]) == {"Available": "MinimumReplicasUnavailable", "Progressing": "ReplicaSetUpdated"}
    assert rolloutstatus.left_s(wish, later(10)) == 50
    half = made("new", 2, 1)
    wish["status"] = rolloutstatus.status_of(wish, half, [half], later(50))
    assert rolloutstatus.left_s(wish, later(50)) == 60, "something has moved"
    done = made("new", 2, 2)
    wish["status"] = rolloutstatus.status_of(wish, done, [done], later(55))
    assert reasons(wish["status"]) == {"Available": "MinimumReplicasAvailable", "Progressing": "NewReplicaSetAvailable"}
    assert rolloutstatus.left_s(wish, later(1000)) is None
    assert rolloutstatus.complete(wish, wish["status"])


def test_a_finished_rollout_stays_finished_when_pods_fail_later() -> None:
    wish, done, sick = deployment(2, progressDeadlineSeconds=60), made("new", 2, 2), made("new", 2, 1)
    wish["status"] = rolloutstatus.status_of(wish, done, [done], later(0))
    wish["status"] = rolloutstatus.status_of(wish, sick, [sick], later(1000))
    assert reasons(wish["status"])["Progressing"] == "NewReplicaSetAvailable"


def test_a_rollout_that_stands_still_exceeds_its_deadline_once() -> None:
    wish, stuck = deployment(2, progressDeadlineSeconds=60), made("new", 2, 0)
    wish["status"] = rolloutstatus.status_of(wish, stuck, [stuck], later(0))
    before = wish["status"]
    wish["status"] = rolloutstatus.status_of(wish, stuck, [stuck], later(59))
    assert wish["status"] == before
    wish["status"] = rolloutstatus.status_of(wish, stuck, [stuck], later(60))
    assert reasons(wish["status"])["Progressing"] == "ProgressDeadlineExceeded"
    assert rolloutstatus.left_s(wish, later(61)) is None
    assert rolloutstatus.status_of(wish, stuck, [stuck], later(90)) == wish["status"]


def test_pausing_and_resuming_show() -> None:
    wish, some = deployment(2, progressDeadlineSeconds=60), made("new", 2, 1)
    wish["status"] = rolloutstatus.status_of(wish, some, [some], later(0))
    wish["spec"]["paused"] = True
    wish["status"] = rolloutstatus.status_of(wish, some, [some], later(1))
    assert reasons(wish["status"])["Progressing"] == "DeploymentPaused"
    del wish["spec"]["paused"]
    wish["status"] = rolloutstatus.status_of(wish, some, [some], later(500))
    assert reasons(wish["status"])["Progressing"] == "DeploymentResumed"
    assert rolloutstatus.left_s(wish, later(500)) == 60, "the time in pause does not count"


def test_the_failure_of_a_set_is_the_deployments() -> None:
    wish, some = deployment(2), made("new", 2, 0)
    some["status"]["conditions"] = [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "no"}
    ]
    wish["status"] = rolloutstatus.status_of(wish, some, [some], later(0))
    assert reasons(wish["status"])["ReplicaFailure"] == "FailedCreate"
    healed = made("new", 2, 0)
    assert "ReplicaFailure" not in reasons(rolloutstatus.status_of(wish, healed, [healed], later(1)))
