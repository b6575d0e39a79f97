"""Controllers on a real cluster tower in memory: ownership, garbage, namespaces, accounts, nodes, machines. State of the world is
asserted, not calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from contract.verbs_support import (
    ANYONE,
    CONFIG_MAPS,
    DEPLOYMENTS,
    NAMESPACES,
    PODS,
    config_map,
    deployment,
    make_verbs,
)
from insula import clock, controllers
from insula.client.local import LocalClient
from insula.control.controller import Context, TypeInfo
from insula.control.loop import Manager
from insula.control.shared import SharedCaches
from insula.controllers import eventexpiry, namespace, nodelifecycle, virtualmachine
from insula.controllers.refs import EVENTS, NODES, REPLICA_SETS, SERVICE_ACCOUNTS
from insula.errors import NotFound
from insula.model.resource import Ref, Resource
from insula.tasks import Tasks
from insula.verbs.request import DeleteOptions
from insula.verbs.verbs import Verbs

NOW = "2026-01-01T01:00:00Z"
TYPES = [
    TypeInfo(CONFIG_MAPS, "ConfigMap", True),
    TypeInfo(PODS, "Pod", True),
    TypeInfo(REPLICA_SETS, "ReplicaSet", True),
    TypeInfo(DEPLOYMENTS, "Deployment", True),
    TypeInfo(SERVICE_ACCOUNTS, "ServiceAccount", True),
    TypeInfo(NAMESPACES, "Namespace", False),
    TypeInfo(NODES, "Node", False),
]


@asynccontextmanager
async def cluster(*names: str) -> AsyncIterator[Verbs]:
    """A cluster tower with these controllers (all without names)."""
    verbs = await make_verbs()
    chosen = [one for one in controllers.load() if not names or one.name in names]
    async with Tasks("test") as tasks:
        client = LocalClient(verbs)

        async def types() -> Sequence[TypeInfo]:
            return TYPES

        caches = SharedCaches(client, tasks)
        context = Context(client=client, caches=caches, settings={"root_ca": "CA"}, types=types)
        manager = Manager(context, caches, chosen)
        try:
            await manager.start()
            yield verbs
        finally:
            await manager.close()


async def soon(holds: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """Wait until a coroutine gives something true."""
    async with asyncio.timeout(timeout_s):
        while not (found := await holds()):
            await asyncio.sleep(0.01)
        return found


async def names(verbs: Verbs, ref: Ref, where: str = "default") -> set[str]:
    """The names of all objects of a type."""
    return {obj["metadata"]["name"] for obj in (await verbs.list(ref, where)).items}


async def gone(verbs: Verbs, ref: Ref, name: str, where: str = "default") -> bool:
    """Whether an object is not there."""
    with suppress(NotFound):
        await verbs.get(ref, name, where)
        return False
    return True


def owned(name: str, *owners: Resource, block: bool = True) -> Resource:
    """A ConfigMap with owners."""
    made = config_map(name)
    made["metadata"]["ownerReferences"] = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": block,
        }
        for owner in owners
    ]
    return made


async def make(verbs: Verbs, obj: Resource) -> Resource:
    """A ConfigMap, as stored."""
    return (await verbs.create(ANYONE, CONFIG_MAPS, obj, "default")).object


async def delete(verbs: Verbs, name: str, how: str) -> None:
    """Delete a ConfigMap."""
    await verbs.delete(ANYONE, CONFIG_MAPS, name, "default", options=DeleteOptions(propagation=how))


# --- garbage ----------------------------------------------------------------------------------------------------


async def test_background_deletion_takes_all_generations() -> None:
    async with cluster("garbage-collector") as verbs:
        parent = await make(verbs, config_map("parent"))
        child = await make(verbs, owned("child", parent))
        await make(verbs, owned("grandchild", child))
        await make(verbs, config_map("stranger"))
        await delete(verbs, "parent", "Background")
        await soon(lambda: gone(verbs, CONFIG_MAPS, "grandchild"))
        assert await names(verbs, CONFIG_MAPS) == {"stranger"}


async def test_a_dependent_with_another_owner_stays_and_loses_the_reference() -> None:
    async with cluster("garbage-collector") as verbs:
        one, two = await make(verbs, config_map("one")), await make(verbs, config_map("two"))
        await make(verbs, owned("child", one, two))
        for how in ("Background", "Foreground"):
            name = "one" if how == "Background" else "two"
            if how == "Foreground":
                three = await make(verbs, config_map("three"))
                child = await verbs.get(CONFIG_MAPS, "child", "default")
                references = [*child["metadata"]["ownerReferences"], *owned("x", three)["metadata"]["ownerReferences"]]
                patch = {"metadata": {"ownerReferences": references}}
                await verbs.patch(ANYONE, CONFIG_MAPS, "child", patch, "default", type="merge")
            await delete(verbs, name, how)
            await soon(lambda name=name: gone(verbs, CONFIG_MAPS, name))

            async def left() -> bool:
                child = await verbs.get(CONFIG_MAPS, "child", "default")
                return len(child["metadata"]["ownerReferences"]) == 1

            await soon(left)


async def test_foreground_deletion_waits_for_what_blocks() -> None:
    async with cluster("garbage-collector") as verbs:
        parent = await make(verbs, config_map("parent"))
        held = owned("held", parent)
        held["metadata"]["finalizers"] = ["test/hold"]
        await make(verbs, held)
        await make(verbs, owned("free", parent))
        await delete(verbs, "parent", "Foreground")
        await soon(lambda: gone(verbs, CONFIG_MAPS, "free"))
        await asyncio.sleep(0.1)
        assert await names(verbs, CONFIG_MAPS) == {"parent", "held"}
        patch = {"metadata": {"finalizers": None}}
        await verbs.patch(ANYONE, CONFIG_MAPS, "held", patch, "default", type="merge")
        await soon(lambda: gone(verbs, CONFIG_MAPS, "parent"))
        assert await names(verbs, CONFIG_MAPS) == set()


async def test_foreground_deletion_waits_for_the_third_generation_too() -> None:
    async with cluster("garbage-collector") as verbs:
        parent = await make(verbs, config_map("parent"))
        child = await make(verbs, owned("child", parent))
        last = owned("grandchild", child)
        last["metadata"]["finalizers"] = ["test/hold"]
        await make(verbs, last)
        await delete(verbs, "parent", "Foreground")

        async def marked() -> bool:
            found = await verbs.get(CONFIG_MAPS, "grandchild", "default")
            return bool(found["metadata"].get("deletionTimestamp"))

        await soon(marked)
        assert await names(verbs, CONFIG_MAPS) == {"parent", "child", "grandchild"}
        patch = {"metadata": {"finalizers": None}}
        await verbs.patch(ANYONE, CONFIG_MAPS, "grandchild", patch, "default", type="merge")
        await soon(lambda: gone(verbs, CONFIG_MAPS, "parent"))


async def test_orphans_lose_their_reference_and_stay() -> None:
    async with cluster("garbage-collector") as verbs:
        parent = await make(verbs, config_map("parent"))
        await make(verbs, owned("child", parent))
        await delete(verbs, "parent", "Orphan")
        await soon(lambda: gone(verbs, CONFIG_MAPS, "parent"))
        await asyncio.sleep(0.05)
        child = await verbs.get(CONFIG_MAPS, "child", "default")
        assert not child["metadata"].get("ownerReferences") and not child["metadata"].get("deletionTimestamp")


@pytest.mark.parametrize("how", ["Background", "Foreground"])
async def test_a_circle_of_owners_goes_as_a_whole(how: str) -> None:
    async with cluster("garbage-collector") as verbs:
        one = await make(verbs, config_map("one"))
        two = await make(verbs, owned("two", one))
        patch = {"metadata": {"ownerReferences": owned("x", two)["metadata"]["ownerReferences"]}}
        await verbs.patch(ANYONE, CONFIG_MAPS, "one", patch, "default", type="merge")
        await asyncio.sleep(0.05)
        await delete(verbs, "one", how)
        await soon(lambda: gone(verbs, CONFIG_MAPS, "one"))
        await soon(lambda: gone(verbs, CONFIG_MAPS, "two"))


async def test_an_owner_that_never_was_takes_its_dependent_and_an_unknown_kind_does_not() -> None:
    async with cluster("garbage-collector") as verbs:
        ghost = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ghost", "uid": "no-such"}}
        stranger = {"apiVersion": "other.io/v1", "kind": "Thing", "metadata": {"name": "t", "uid": "u"}}
        await make(verbs, owned("haunted", ghost))
        await make(verbs, owned("foreign", stranger))
        await soon(lambda: gone(verbs, CONFIG_MAPS, "haunted"))
        assert await names(verbs, CONFIG_MAPS) == {"foreign"}


async def test_another_object_of_the_owners_name_is_not_the_owner() -> None:
    async with cluster("garbage-collector") as verbs:
        first = await make(verbs, config_map("parent"))
        await delete(verbs, "parent", "Background")
        await make(verbs, config_map("parent"))
        await make(verbs, owned("child", first))
        await soon(lambda: gone(verbs, CONFIG_MAPS, "child"))


# --- namespaces and accounts ------------------------------------------------------------------------------------


async def test_every_namespace_gets_an_account_and_the_authority_and_gets_them_back() -> None:
    async with cluster("serviceaccount-controller") as verbs:
        await verbs.create(ANYONE, NAMESPACES, {"metadata": {"name": "n"}})

        async def complete() -> bool:
            return "default" in await names(verbs, SERVICE_ACCOUNTS, "n") and "kube-root-ca.crt" in await names(
                verbs, CONFIG_MAPS, "n"
            )

        await soon(complete)
        await verbs.delete(ANYONE, SERVICE_ACCOUNTS, "default", "n")
        await verbs.delete(ANYONE, CONFIG_MAPS, "kube-root-ca.crt", "n")
        await soon(complete)
        patch = {"data": {"ca.crt": "forged"}}
        await verbs.patch(ANYONE, CONFIG_MAPS, "kube-root-ca.crt", patch, "n", type="merge")

        async def healed() -> bool:
            return (await verbs.get(CONFIG_MAPS, "kube-root-ca.crt", "n"))["data"] == {"ca.crt": "CA"}

        await soon(healed)


async def test_a_namespace_is_emptied_says_what_holds_it_and_goes() -> None:
    async with cluster("namespace-controller") as verbs:
        await verbs.create(ANYONE, NAMESPACES, {"metadata": {"name": "n"}})
        held = config_map("held")
        held["metadata"]["finalizers"] = ["test/hold"]
        for obj in (held, config_map("free")):
            await verbs.create(ANYONE, CONFIG_MAPS, obj, "n")
        await verbs.delete(ANYONE, NAMESPACES, "n")

        async def told() -> dict[str, str]:
            status = (await verbs.get(NAMESPACES, "n")).get("status") or {}
            return {found["type"]: found["message"] for found in status.get("conditions") or ()}

        said = await soon(told)
        assert said["NamespaceFinalizersRemaining"].endswith("test/hold in 1 resource instances")
        assert await names(verbs, CONFIG_MAPS, "n") == {"held"}
        await verbs.patch(ANYONE, CONFIG_MAPS, "held", {"metadata": {"finalizers": None}}, "n", type="merge")
        await soon(lambda: gone(verbs, NAMESPACES, "n", ""))


def test_conditions_of_a_namespace_are_sentences() -> None:
    left = {"pods": [{"metadata": {"finalizers": ["a/b"]}}, {"metadata": {}}]}
    first, second = namespace.conditions([], left, NOW)
    assert first["message"] == "Some resources are remaining: pods has 2 resource instances"
    assert second["message"] == "Some content in the namespace has finalizers remaining: a/b in 1 resource instances"
    assert [c["type"] for c in namespace.conditions([first, second], {"pods": [{"metadata": {}}]}, NOW)] == [
        first["type"]
    ]


# --- sets and deployments ---------------------------------------------------------------------------------------


async def test_a_deployment_makes_its_pods_exactly_once() -> None:
    async with cluster("deployment-controller", "replicaset-controller", "serviceaccount-controller") as verbs:
        await soon(lambda: have(verbs, SERVICE_ACCOUNTS, 1))
        await verbs.create(ANYONE, DEPLOYMENTS, deployment("web", 20), "default")
        await soon(lambda: have(verbs, PODS, 20))
        await asyncio.sleep(0.2)
        assert len((await verbs.list(PODS, "default")).items) == 20
        await verbs.patch(ANYONE, DEPLOYMENTS, "web", {"spec": {"replicas": 3}}, "default", type="merge")
        await soon(lambda: have(verbs, PODS, 3))


async def have(verbs: Verbs, ref: Ref, count: int) -> bool:
    """Whether there are so many."""
    return len((await verbs.list(ref, "default")).items) == count


async def test_a_set_adopts_what_matches_and_lets_go_of_what_does_not() -> None:
    async with cluster("replicaset-controller", "serviceaccount-controller") as verbs:
        await soon(lambda: have(verbs, SERVICE_ACCOUNTS, 1))
        template = deployment("web", 2)["spec"]
        wish = {"metadata": {"name": "rs"}, "spec": {k: template[k] for k in ("replicas", "selector", "template")}}
        orphan = {"metadata": {"name": "orphan", "labels": {"app": "web"}}, "spec": template["template"]["spec"]}
        await verbs.create(ANYONE, PODS, orphan, "default")
        await verbs.create(ANYONE, REPLICA_SETS, wish, "default")
        await soon(lambda: have(verbs, PODS, 2))
        adopted = await verbs.get(PODS, "orphan", "default")
        assert adopted["metadata"]["ownerReferences"][0]["name"] == "rs"
        patch = {"metadata": {"labels": {"app": "other"}}}
        await verbs.patch(ANYONE, PODS, "orphan", patch, "default", type="merge")
        await soon(lambda: have(verbs, PODS, 3))
        assert not (await verbs.get(PODS, "orphan", "default"))["metadata"].get("ownerReferences")


async def test_a_quota_that_refuses_pods_is_told_and_tried_again_when_it_is_raised() -> None:
    quotas = Ref("", "v1", "resourcequotas")
    async with cluster("replicaset-controller", "serviceaccount-controller") as verbs:
        await soon(lambda: have(verbs, SERVICE_ACCOUNTS, 1))
        quota = {"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}}
        await verbs.create(ANYONE, quotas, quota, "default")
        status = {"metadata": {"name": "q"}, "status": {"hard": {"pods": "1"}, "used": {"pods": "0"}}}
        await verbs.patch(ANYONE, quotas, "q", status, "default", type="merge", sub="status")
        template = deployment("web", 3)["spec"]
        wish = {"metadata": {"name": "rs"}, "spec": {k: template[k] for k in ("replicas", "selector", "template")}}
        await verbs.create(ANYONE, REPLICA_SETS, wish, "default")

        async def told() -> bool:
            status = (await verbs.get(REPLICA_SETS, "rs", "default")).get("status") or {}
            return any(
                c["type"] == "ReplicaFailure" and "exceeded quota" in c["message"]
                for c in status.get("conditions") or ()
            )

        await soon(told)
        assert len((await verbs.list(PODS, "default")).items) <= 1
        await verbs.delete(ANYONE, quotas, "q", "default")
        await soon(lambda: have(verbs, PODS, 3))


# --- nodes ------------------------------------------------------------------------------------------------------


def node(ready: str = "True", *taints: dict[str, Any]) -> Resource:
    """A node."""
    meta = {"name": "n", "creationTimestamp": NOW}
    return {
        "metadata": meta,
        "spec": {"taints": list(taints)},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


def keys(taints: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Key and effect."""
    return [(taint["key"], taint["effect"]) for taint in taints]


def test_taints_follow_the_health_of_a_node() -> None:
    own = {"key": "mine", "effect": "NoSchedule"}
    assert nodelifecycle.taints_for(node("True", own), silent=False, now=NOW) == [own]
    unready = nodelifecycle.taints_for(node("False", own), silent=False, now=NOW)
    assert keys(unready) == [
        ("mine", "NoSchedule"),
        (nodelifecycle.NOT_READY, "NoSchedule"),
        (nodelifecycle.NOT_READY, "NoExecute"),
    ]
    assert unready[2]["timeAdded"] == NOW
    silent = nodelifecycle.taints_for(node("True", *unready), silent=True, now=NOW)
    assert keys(silent)[1:] == [(nodelifecycle.UNREACHABLE, "NoSchedule"), (nodelifecycle.UNREACHABLE, "NoExecute")]
    assert nodelifecycle.taints_for(node("True", *silent), silent=False, now=NOW) == [own]


def test_a_users_taint_notes_since_when_it_drives_away() -> None:
    assert (
        nodelifecycle.taints_for(node("True", {"key": "k", "effect": "NoExecute"}), silent=False, now=NOW)[0][
            "timeAdded"
        ]
        == NOW
    )


@pytest.mark.parametrize(
    ("tolerations", "seconds"),
    [
        ([], 0.0),
        ([{"operator": "Exists"}], None),
        ([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 100}], 40.0),
        (
            [
                {"key": "k", "operator": "Exists", "tolerationSeconds": 100},
                {"operator": "Exists", "tolerationSeconds": 70},
            ],
            10.0,
        ),
        ([{"key": "k", "operator": "Exists", "tolerationSeconds": 30}], 0.0),
        ([{"key": "k", "value": "v"}], None),
        ([{"key": "k", "value": "other"}], 0.0),
        ([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}], 0.0),
    ],
)
def test_how_long_a_pod_may_stay(tolerations: list[dict[str, Any]], seconds: float | None) -> None:
    taint = {"key": "k", "value": "v", "effect": "NoExecute", "timeAdded": "2026-01-01T00:59:00Z"}
    assert nodelifecycle.stay_s({"spec": {"tolerations": tolerations}}, [taint], NOW) == seconds


def test_a_node_without_a_lease_is_never_silent() -> None:
    assert nodelifecycle.silent_for(None, node(), NOW) is None
    assert nodelifecycle.silent_for({"spec": {"renewTime": "2026-01-01T00:59:00.000000Z"}}, node(), NOW) == 60


async def test_a_silent_node_is_tainted_and_its_pods_are_marked_and_leave() -> None:
    leases = Ref("coordination.k8s.io", "v1", "leases")
    async with cluster("node-lifecycle-controller", "serviceaccount-controller") as verbs:
        await soon(lambda: have(verbs, SERVICE_ACCOUNTS, 1))
        await verbs.create(ANYONE, NAMESPACES, {"metadata": {"name": "kube-node-lease"}})
        await verbs.create(ANYONE, NODES, {"metadata": {"name": "n"}})
        status = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        await verbs.patch(ANYONE, NODES, "n", status, type="merge", sub="status")
        for name, seconds in (("stays", None), ("leaves", 0)):
            toleration: dict[str, Any] = {"operator": "Exists"}
            if seconds is not None:
                toleration |= {"effect": "NoExecute", "tolerationSeconds": seconds}
            spec = {"nodeName": "n", "containers": [{"name": "c", "image": "i"}], "tolerations": [toleration]}
            await verbs.create(ANYONE, PODS, {"metadata": {"name": name}, "spec": spec}, "default")
            ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
            await verbs.patch(ANYONE, PODS, name, ready, "default", type="merge", sub="status")
        lease = {"metadata": {"name": "n"}, "spec": {"renewTime": "2020-01-01T00:00:00.000000Z"}}
        await verbs.create(ANYONE, leases, lease, "kube-node-lease")

        async def marked() -> bool:
            found = await verbs.get(NODES, "n")
            leaving = await verbs.get(PODS, "leaves", "default")
            ready = next(c["status"] for c in found["status"]["conditions"] if c["type"] == "Ready")
            return (
                ready == "Unknown"
                and bool(found["spec"].get("taints"))
                and bool(leaving["metadata"].get("deletionTimestamp"))
            )

        await soon(marked)

        async def unready() -> bool:
            staying = await verbs.get(PODS, "stays", "default")
            assert not staying["metadata"].get("deletionTimestamp")
            return any(
                c.get("reason") == "NodeNotReady" for c in staying["status"]["conditions"] if c["type"] == "Ready"
            )

        await soon(unready)


# --- events -----------------------------------------------------------------------------------------------------


def test_an_event_lives_for_an_hour_after_it_was_last_seen() -> None:
    base = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}
    assert eventexpiry.expired(base, NOW)
    assert not eventexpiry.expired(base, "2026-01-01T00:59:59Z")
    assert not eventexpiry.expired({**base, "lastTimestamp": "2026-01-01T00:30:00Z"}, NOW)
    assert not eventexpiry.expired({**base, "series": {"lastObservedTime": "2026-01-01T00:30:00.000000Z"}}, NOW)


async def test_old_events_are_deleted_and_young_ones_kept() -> None:
    verbs = await make_verbs()
    old = clock.rfc3339(clock.now() - clock.seconds(4000))
    for name, moment in (("old", old), ("young", clock.rfc3339(clock.now()))):
        about = {"apiVersion": "v1", "kind": "Pod", "name": "p", "namespace": "default"}
        event = {"metadata": {"name": name}, "involvedObject": about, "lastTimestamp": moment, "firstTimestamp": moment}
        await verbs.create(ANYONE, EVENTS, event, "default")
    async with Tasks("test") as tasks:
        client = LocalClient(verbs)
        await eventexpiry.reconcile(Context(client=client, caches=SharedCaches(client, tasks)), "")
    assert await names(verbs, EVENTS) == {"young"}


# --- machines ---------------------------------------------------------------------------------------------------


def machine(strategy: str = "", *, running: bool | None = None, **status: Any) -> Resource:
    """A VirtualMachine."""
    spec: dict[str, Any] = {"template": {"spec": {}}}
    if strategy:
        spec["runStrategy"] = strategy
    if running is not None:
        spec["running"] = running
    return {"metadata": {"name": "m", "uid": "vm"}, "spec": spec, "status": status}


def instance(phase: str = "Running", *, uid: str = "i1", owner: str = "vm", leaving: bool = False) -> Resource:
    """Its instance."""
    meta: dict[str, Any] = {
        "name": "m",
        "uid": uid,
        "ownerReferences": [{"uid": owner, "controller": True, "kind": "VirtualMachine"}],
    }
    if leaving:
        meta["deletionTimestamp"] = NOW
    return {"metadata": meta, "status": {"phase": phase}}


STOP, START = {"action": "Stop", "uid": "i1"}, {"action": "Start"}


@pytest.mark.parametrize(
    ("vm", "vmi", "action"),
    [
        (machine("Always"), None, "create"),
        (machine(running=True), None, "create"),
        (machine("Always"), instance(), "none"),
        (machine("Always"), instance("Succeeded"), "delete"),
        (machine("Always"), instance("Failed"), "delete"),
        (machine("Always"), instance(leaving=True), "none"),
        (machine("Halted"), None, "none"),
        (machine(), None, "none"),
        (machine("Halted"), instance(), "delete"),
        (machine("Manual"), None, "none"),
        (machine("Manual"), instance(), "none"),
        (machine("Manual"), instance("Succeeded"), "none"),
        (machine("RerunOnFailure"), None, "create"),
        (machine("RerunOnFailure", runStrategy="RerunOnFailure"), None, "none"),
        (machine("RerunOnFailure", runStrategy="RerunOnFailure", startFailure={"x": 1}), None, "create"),
        (machine("RerunOnFailure"), instance("Failed"), "delete"),
        (machine("RerunOnFailure"), instance("Succeeded"), "none"),
        (machine("Once"), None, "create"),
        (machine("Once", created=True), None, "none"),
        (machine("Once"), instance("Succeeded"), "none"),
        (machine("Manual", stateChangeRequests=[START]), None, "create"),
        (machine("Manual", stateChangeRequests=[START]), instance(), "none"),
        (machine("Manual", stateChangeRequests=[START]), instance("Succeeded"), "delete"),
        (machine("Always", stateChangeRequests=[STOP, START]), instance(), "delete"),
        (machine("Always", stateChangeRequests=[STOP, START]), instance(leaving=True), "none"),
        (machine("Always", stateChangeRequests=[STOP, START]), None, "none"),
        (machine("Always", stateChangeRequests=[STOP, START]), instance(uid="i2"), "none"),
    ],
)
def test_what_a_machine_decides(vm: Resource, vmi: Resource | None, action: str) -> None:
    assert virtualmachine.decide(vm, vmi).action == action


def test_requests_are_taken_off_the_list_one_by_one() -> None:
    wish = machine("Always", stateChangeRequests=[STOP, START])
    decision = virtualmachine.decide(wish, None)
    assert decision.answered == 1
    wish["status"] = virtualmachine.status_of(wish, None, decision, NOW)
    assert wish["status"]["stateChangeRequests"] == [START]
    decision = virtualmachine.decide(wish, None)
    assert (decision.action, decision.answered) == ("create", 1)
    assert "stateChangeRequests" not in virtualmachine.status_of(wish, None, decision, NOW)


def test_an_instance_of_the_same_name_that_a_user_made_is_not_touched() -> None:
    assert virtualmachine.own(machine("Halted"), instance(owner="somebody")) is None
    assert virtualmachine.own(machine("Halted"), {"metadata": {"name": "m", "uid": "x"}}) is None
    assert virtualmachine.own(machine("Halted"), instance()) is not None


def test_failures_in_a_row_are_waited_out_longer_and_longer() -> None:
    wish, waits = machine("Always"), []
    for number in range(7):
        wish["status"] = virtualmachine.status_of(
            wish, instance("Failed", uid=f"i{number}"), virtualmachine.Decision(), NOW
        )
        waits.append(virtualmachine.wait_s(wish, NOW))
    assert waits == [10, 20, 40, 80, 160, 300, 300]
    ready = instance()
    ready["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    assert "startFailure" not in virtualmachine.status_of(wish, ready, virtualmachine.Decision(), NOW)


@pytest.mark.parametrize(
    ("vm", "vmi", "word"),
    [
        (machine("Halted"), None, "Stopped"),
        (machine("Always"), instance("Scheduled"), "Starting"),
        (machine("Always"), instance(), "Running"),
        (machine("Always"), instance(leaving=True), "Stopping"),
        (machine("Manual"), instance("Succeeded"), "Stopped"),
    ],
)
def test_the_word_that_is_shown(vm: Resource, vmi: Resource | None, word: str) -> None:
    assert virtualmachine.status_of(vm, vmi, virtualmachine.decide(vm, vmi), NOW)["printableStatus"] == word
