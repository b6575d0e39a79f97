"""What happens to a write: names, defaults, locks, generations, deletions, subresources, admission."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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
    pod,
)
from insula.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    InsulaError,
    Invalid,
    NotFound,
    StaleRevision,
    TooManyRequests,
    Unsupported,
)
from insula.model.resource import Ref
from insula.verbs.request import DeleteOptions, Preconditions, Request
from insula.verbs.verbs import Verbs


@pytest.fixture
async def verbs() -> AsyncIterator[Verbs]:
    made = await make_verbs()
    yield made
    await made.store.close()


async def make(verbs: Verbs, obj: dict[str, Any], ref: Ref = CONFIG_MAPS) -> dict[str, Any]:
    return (await verbs.create(ANYONE, ref, obj, "default" if ref != NAMESPACES else "")).object


# --- create -----------------------------------------------------------------------------------------------------


async def test_a_new_object_gets_its_server_fields(verbs: Verbs) -> None:
    sent = deployment("web")
    sent["status"] = {"replicas": 99}
    sent["metadata"] |= {"uid": "mine", "generation": 7, "creationTimestamp": "2000-01-01T00:00:00Z"}
    made = await make(verbs, sent, DEPLOYMENTS)
    meta = made["metadata"]
    assert meta["uid"] != "mine" and meta["generation"] == 1 and meta["creationTimestamp"] > "2020"
    assert meta["namespace"] == "default" and meta["resourceVersion"].isdigit()
    assert "replicas" not in (made.get("status") or {})
    assert made == await verbs.get(DEPLOYMENTS, "web", "default")


async def test_generated_names(verbs: Verbs) -> None:
    made = [await make(verbs, {"metadata": {"generateName": "x" * 70}}) for _ in range(3)]
    names = {one["metadata"]["name"] for one in made}
    assert len(names) == 3 and all(len(name) == 63 for name in names)


@pytest.mark.parametrize(
    ("obj", "sentence"),
    [
        ({}, 'ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required'),
        (
            {"metadata": {"name": "A"}},
            'ConfigMap "A" is invalid: metadata.name: Invalid value: "A": a lowercase RFC 1123',
        ),
        ({"metadata": {"name": "../x"}}, "lowercase RFC 1123 subdomain"),
        ({"metadata": {"name": "a/b"}}, "lowercase RFC 1123 subdomain"),
        ({"metadata": {"name": "a\n"}}, "lowercase RFC 1123 subdomain"),
        ({"metadata": {"name": "x" * 254}}, "no more than 253"),
        ({"metadata": {"name": "a", "namespace": "other"}}, "does not match the namespace sent on the request"),
        (
            {"metadata": {"name": "a", "resourceVersion": "1"}},
            "resourceVersion should not be set on objects to be created",
        ),
        ({"metadata": {"name": "a", "labels": {"-": "x"}}}, "metadata.labels: Invalid value"),
        ({"metadata": {"name": "a", "labels": {"a": 1}}}, "cannot be handled as a ConfigMap"),
        ({"metadata": {"name": "a", "annotations": {"a": "x" * 300_000}}}, "metadata.annotations: Too long"),
        ({"metadata": {"name": "a", "ownerReferences": [{"kind": "X"}]}}, "must not be empty"),
        ({"metadata": "x"}, "cannot be handled"),
        ({"kind": "Secret", "metadata": {"name": "a"}}, "does not match the expected kind"),
        ({"apiVersion": "v2", "metadata": {"name": "a"}}, "does not match the expected API version"),
        ([], "must hold an object"),
    ],
)
async def test_bad_objects_are_refused_in_words(verbs: Verbs, obj: Any, sentence: str) -> None:
    with pytest.raises(Invalid) as caught:
        await verbs.create(ANYONE, CONFIG_MAPS, obj, "default")
    assert sentence in caught.value.message


async def test_a_taken_name(verbs: Verbs) -> None:
    await make(verbs, config_map("a"))
    with pytest.raises(AlreadyExists, match=r'^configmaps "a" already exists$') as caught:
        await make(verbs, config_map("a"))
    assert (caught.value.kind, caught.value.name) == ("configmaps", "a")


async def test_unknown_fields_by_mode(verbs: Verbs) -> None:
    answer = await verbs.create(ANYONE, CONFIG_MAPS, {"metadata": {"name": "a"}, "dta": {}}, "default")
    assert answer.warnings == ('unknown field "dta"',)
    assert "dta" not in answer.object
    with pytest.raises(Invalid, match="strict decoding error"):
        strict = Request(field_validation="Strict")
        await verbs.create(strict, CONFIG_MAPS, {"metadata": {"name": "b"}, "dta": {}}, "default")


async def test_a_dry_run_does_everything_but_store(verbs: Verbs) -> None:
    before = await verbs.revision()
    dry = Request(dry_run=True, field_manager="test")
    made = await verbs.create(dry, CONFIG_MAPS, config_map("a"), "default")
    assert made.object["metadata"]["uid"]
    with pytest.raises(NotFound):
        await verbs.get(CONFIG_MAPS, "a", "default")
    await make(verbs, config_map("a"))
    with pytest.raises(AlreadyExists):
        await verbs.create(dry, CONFIG_MAPS, config_map("a"), "default")
    changed = await verbs.patch(dry, CONFIG_MAPS, "a", {"data": {"x": "1"}}, "default", type="merge")
    assert changed.object["data"] == {"x": "1"}
    await verbs.delete(dry, CONFIG_MAPS, "a", "default")
    assert "data" not in await verbs.get(CONFIG_MAPS, "a", "default") or int(before) + 1 == int(await verbs.revision())


async def test_two_creations_at_once(verbs: Verbs) -> None:
    outcomes = await asyncio.gather(*(make(verbs, config_map("a", n=str(n))) for n in range(9)), return_exceptions=True)
    assert sum(isinstance(one, dict) for one in outcomes) == 1
    assert sum(isinstance(one, AlreadyExists) for one in outcomes) == 8


# --- update and patch -------------------------------------------------------------------------------------------


async def test_an_update_guards_with_its_revision(verbs: Verbs) -> None:
    first = await make(verbs, config_map("a", x="1"))
    await verbs.update(ANYONE, CONFIG_MAPS, "a", {**first, "data": {"x": "2"}}, "default")
    with pytest.raises(StaleRevision) as caught:
        await verbs.update(ANYONE, CONFIG_MAPS, "a", {**first, "data": {"x": "3"}}, "default")
    assert caught.value.message == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the '
        "latest version and try again"
    )
    await verbs.update(ANYONE, CONFIG_MAPS, "a", config_map("a", x="4"), "default")
    assert (await verbs.get(CONFIG_MAPS, "a", "default"))["data"] == {"x": "4"}


async def test_an_update_that_changes_nothing_makes_no_revision(verbs: Verbs) -> None:
    made = await make(verbs, config_map("a", x="1"))
    again = (await verbs.update(ANYONE, CONFIG_MAPS, "a", made, "default")).object
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"] == await verbs.revision()
    patched = await verbs.patch(ANYONE, CONFIG_MAPS, "a", {"data": {"x": "1"}}, "default", type="merge")
    assert patched.object == made


async def test_identity_cannot_change(verbs: Verbs) -> None:
    made = await make(verbs, config_map("a"))
    with pytest.raises(Invalid, match="does not match the name on the URL"):
        await verbs.update(ANYONE, CONFIG_MAPS, "a", config_map("b"), "default")
    other = {**made, "metadata": {**made["metadata"], "uid": "0"}}
    with pytest.raises(Conflict, match="Precondition failed: UID"):
        await verbs.update(ANYONE, CONFIG_MAPS, "a", other, "default")
    patch = {"metadata": {"creationTimestamp": None, "generation": 9}}
    kept = await verbs.patch(ANYONE, CONFIG_MAPS, "a", patch, "default", type="merge")
    assert kept.object["metadata"]["creationTimestamp"] == made["metadata"]["creationTimestamp"]
    with pytest.raises(NotFound, match=r'^configmaps "b" not found$'):
        await verbs.update(ANYONE, CONFIG_MAPS, "b", config_map("b"), "default")


async def test_spec_and_status_are_separate_writes(verbs: Verbs) -> None:
    await make(verbs, deployment("web"), DEPLOYMENTS)
    both = {"spec": {"replicas": 3}, "status": {"replicas": 3, "observedGeneration": 1}}
    main = (await verbs.patch(ANYONE, DEPLOYMENTS, "web", both, "default", type="merge")).object
    assert main["spec"]["replicas"] == 3 and not main.get("status")
    assert main["metadata"]["generation"] == 2
    both["spec"]["replicas"] = 9
    status = (await verbs.patch(ANYONE, DEPLOYMENTS, "web", both, "default", type="merge", sub="status")).object
    assert status["spec"]["replicas"] == 3 and status["status"]["replicas"] == 3
    assert status["metadata"]["generation"] == 2


async def test_patches_meet_concurrent_writers(verbs: Verbs) -> None:
    await make(verbs, config_map("a"))

    async def count(number: int) -> None:
        await verbs.patch(ANYONE, CONFIG_MAPS, "a", {"data": {f"k{number}": "x"}}, "default", type="merge")

    await asyncio.gather(*(count(number) for number in range(6)))
    assert len((await verbs.get(CONFIG_MAPS, "a", "default"))["data"]) == 6
    stale = {"metadata": {"resourceVersion": "1"}, "data": {"y": "1"}}
    with pytest.raises(StaleRevision):
        await verbs.patch(ANYONE, CONFIG_MAPS, "a", stale, "default", type="merge")


async def test_each_patch_type(verbs: Verbs) -> None:
    await make(verbs, deployment("web"), DEPLOYMENTS)
    side = {"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s"}]}}}}
    got = (await verbs.patch(ANYONE, DEPLOYMENTS, "web", side, "default", type="strategic")).object
    assert [one["name"] for one in got["spec"]["template"]["spec"]["containers"]] == ["c", "side"]
    ops = [{"op": "replace", "path": "/spec/replicas", "value": 4}]
    assert (await verbs.patch(ANYONE, DEPLOYMENTS, "web", ops, "default", type="json")).object["spec"]["replicas"] == 4
    with pytest.raises(Invalid):
        await verbs.patch(ANYONE, DEPLOYMENTS, "web", [{"op": "remove", "path": "/metadata"}], "default", type="json")


async def test_scale(verbs: Verbs) -> None:
    await make(verbs, deployment("web", 2), DEPLOYMENTS)
    scale = await verbs.get(DEPLOYMENTS, "web", "default", sub="scale")
    assert (scale["kind"], scale["spec"]["replicas"], scale["status"]["selector"]) == ("Scale", 2, "app=web")
    scale["spec"]["replicas"] = 5
    answer = await verbs.update(ANYONE, DEPLOYMENTS, "web", scale, "default", sub="scale")
    assert answer.object["spec"]["replicas"] == 5
    patched = await verbs.patch(
        ANYONE, DEPLOYMENTS, "web", {"spec": {"replicas": 6}}, "default", type="merge", sub="scale"
    )
    assert patched.object["kind"] == "Scale"
    assert (await verbs.get(DEPLOYMENTS, "web", "default"))["spec"]["replicas"] == 6
    with pytest.raises(StaleRevision):
        await verbs.update(ANYONE, DEPLOYMENTS, "web", scale, "default", sub="scale")
    with pytest.raises(Invalid):
        await verbs.patch(ANYONE, DEPLOYMENTS, "web", {"spec": {"replicas": -1}}, "default", type="merge", sub="scale")
    with pytest.raises(NotFound):
        await verbs.get(CONFIG_MAPS, "web", "default", sub="scale")


# --- apply ------------------------------------------------------------------------------------------------------


def by(name: str, force: bool = False) -> Request:
    return Request(field_manager=name, force=force)


async def test_apply_makes_changes_and_removes(verbs: Verbs) -> None:
    config = deployment("web", 2)
    config["metadata"]["labels"] = {"a": "1"}
    answer = await verbs.patch(by("a"), DEPLOYMENTS, "web", config, "default", type="apply")
    assert answer.created and answer.object["spec"]["replicas"] == 2
    again = await verbs.patch(by("a"), DEPLOYMENTS, "web", config, "default", type="apply")
    assert not again.created
    assert again.object["metadata"]["resourceVersion"] == answer.object["metadata"]["resourceVersion"]
    less = deployment("web", 2)
    del less["spec"]["replicas"]
    got = (await verbs.patch(by("a"), DEPLOYMENTS, "web", less, "default", type="apply")).object
    assert not got["metadata"].get("labels")
    assert got["spec"]["replicas"] == 1  # nobody owns it: the default


async def test_apply_conflicts(verbs: Verbs) -> None:
    await verbs.create(by("kubectl-client-side-apply"), DEPLOYMENTS, deployment("web", 2), "default")
    with pytest.raises(Conflict) as caught:
        await verbs.patch(by("a"), DEPLOYMENTS, "web", deployment("web", 3), "default", type="apply")
    assert caught.value.message == (
        'Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using apps/v1: .spec.replicas'
    )
    forced = await verbs.patch(by("a", True), DEPLOYMENTS, "web", deployment("web", 3), "default", type="apply")
    assert forced.object["spec"]["replicas"] == 3
    rows = {row["manager"]: row for row in forced.object["metadata"]["managedFields"]}
    assert rows["a"]["operation"] == "Apply"
    assert "f:replicas" not in rows["kubectl-client-side-apply"]["fieldsV1"]["f:spec"]


async def test_apply_of_status_leaves_spec_alone(verbs: Verbs) -> None:
    await make(verbs, deployment("web", 2), DEPLOYMENTS)
    config = {**deployment("web", 9), "status": {"replicas": 2}}
    got = (await verbs.patch(by("node"), DEPLOYMENTS, "web", config, "default", type="apply", sub="status")).object
    assert (got["spec"]["replicas"], got["status"]["replicas"]) == (2, 2)
    (row,) = [row for row in got["metadata"]["managedFields"] if row["manager"] == "node"]
    assert (row["subresource"], row["fieldsV1"]) == ("status", {"f:status": {"f:replicas": {}}})


async def test_apply_refusals(verbs: Verbs) -> None:
    with pytest.raises(Invalid, match="fieldManager: Required value"):
        await verbs.patch(Request(), DEPLOYMENTS, "web", deployment("web"), "default", type="apply")
    with pytest.raises(Invalid, match="apiVersion and kind"):
        await verbs.patch(by("a"), DEPLOYMENTS, "web", {"metadata": {}}, "default", type="apply")
    with pytest.raises(Invalid, match="managedFields must be nil"):
        config = deployment("web")
        config["metadata"]["managedFields"] = [{}]
        await verbs.patch(by("a"), DEPLOYMENTS, "web", config, "default", type="apply")
    with pytest.raises(Conflict, match="uid mismatch"):
        config = deployment("web")
        config["metadata"]["uid"] = "x"
        await verbs.patch(by("a"), DEPLOYMENTS, "web", config, "default", type="apply")


async def test_managed_fields_can_be_reset(verbs: Verbs) -> None:
    await make(verbs, config_map("a", x="1"))
    patch = [{"op": "replace", "path": "/metadata/managedFields", "value": [{}]}]
    got = (await verbs.patch(ANYONE, CONFIG_MAPS, "a", patch, "default", type="json")).object
    assert "managedFields" not in got["metadata"]


# --- delete -----------------------------------------------------------------------------------------------------


async def test_a_deletion_and_its_preconditions(verbs: Verbs) -> None:
    made = await make(verbs, config_map("a"))
    wrong = DeleteOptions(preconditions=Preconditions(uid="x"))
    with pytest.raises(StaleRevision, match="UID in precondition: x"):
        await verbs.delete(ANYONE, CONFIG_MAPS, "a", "default", options=wrong)
    old = DeleteOptions(preconditions=Preconditions(revision="1"))
    with pytest.raises(StaleRevision):
        await verbs.delete(ANYONE, CONFIG_MAPS, "a", "default", options=old)
    right = DeleteOptions(preconditions=Preconditions(uid=made["metadata"]["uid"]))
    assert (await verbs.delete(ANYONE, CONFIG_MAPS, "a", "default", options=right)).deleted
    with pytest.raises(NotFound):
        await verbs.delete(ANYONE, CONFIG_MAPS, "a", "default")


async def test_finalizers_hold_an_object(verbs: Verbs) -> None:
    held = config_map("a")
    held["metadata"]["finalizers"] = ["example.com/x"]
    await make(verbs, held)
    answer = await verbs.delete(ANYONE, CONFIG_MAPS, "a", "default")
    assert not answer.deleted and answer.object["metadata"]["deletionTimestamp"]
    revision = await verbs.revision()
    await verbs.delete(ANYONE, CONFIG_MAPS, "a", "default")
    assert await verbs.revision() == revision
    with pytest.raises(AlreadyExists, match="object is being deleted"):
        await make(verbs, config_map("a"))
    more = {"metadata": {"finalizers": ["example.com/x", "example.com/y"]}}
    with pytest.raises(Invalid, match="no new finalizers can be added"):
        await verbs.patch(ANYONE, CONFIG_MAPS, "a", more, "default", type="merge")
    gone = await verbs.patch(ANYONE, CONFIG_MAPS, "a", {"metadata": {"finalizers": None}}, "default", type="merge")
    assert gone.deleted
    with pytest.raises(NotFound):
        await verbs.get(CONFIG_MAPS, "a", "default")


@pytest.mark.parametrize(("policy", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")])
async def test_propagation_becomes_a_finalizer(verbs: Verbs, policy: Any, finalizer: str) -> None:
    await make(verbs, deployment("web"), DEPLOYMENTS)
    answer = await verbs.delete(ANYONE, DEPLOYMENTS, "web", "default", options=DeleteOptions(propagation=policy))
    assert answer.object["metadata"]["finalizers"] == [finalizer]
    last = await verbs.delete(ANYONE, DEPLOYMENTS, "web", "default", options=DeleteOptions(propagation="Background"))
    assert last.deleted


async def bind(verbs: Verbs, name: str, node: str = "n1") -> None:
    await verbs.create(ANYONE, PODS, {"target": {"kind": "Node", "name": node}}, "default", name=name, sub="binding")


async def test_a_bound_pod_ends_gracefully(verbs: Verbs) -> None:
    await make(verbs, pod("p", terminationGracePeriodSeconds=20), PODS)
    await bind(verbs, "p")
    got = await verbs.get(PODS, "p", "default")
    assert got["spec"]["nodeName"] == "n1" and got["status"]["conditions"][-1]["type"] == "PodScheduled"
    marked = await verbs.delete(ANYONE, PODS, "p", "default")
    assert (marked.deleted, marked.object["metadata"]["deletionGracePeriodSeconds"]) == (False, 20)
    shorter = await verbs.delete(ANYONE, PODS, "p", "default", options=DeleteOptions(grace_s=5))
    assert shorter.object["metadata"]["deletionGracePeriodSeconds"] == 5
    longer = await verbs.delete(ANYONE, PODS, "p", "default", options=DeleteOptions(grace_s=50))
    assert longer.object["metadata"]["deletionGracePeriodSeconds"] == 5
    await verbs.patch(ANYONE, PODS, "p", {"status": {"phase": "Running"}}, "default", type="merge", sub="status")
    assert (await verbs.delete(ANYONE, PODS, "p", "default", options=DeleteOptions(grace_s=0))).deleted


async def test_an_unbound_pod_goes_at_once(verbs: Verbs) -> None:
    await make(verbs, pod("p"), PODS)
    assert (await verbs.delete(ANYONE, PODS, "p", "default")).deleted


async def test_a_pod_is_bound_once(verbs: Verbs) -> None:
    await make(verbs, pod("p"), PODS)
    outcomes = await asyncio.gather(*(bind(verbs, "p", f"n{n}") for n in range(5)), return_exceptions=True)
    assert sum(one is None for one in outcomes) == 1
    assert sum(isinstance(one, Conflict) for one in outcomes) == 4
    with pytest.raises(Conflict, match="already assigned to node"):
        await bind(verbs, "p")


async def test_delete_collection(verbs: Verbs) -> None:
    for number in range(4):
        obj = config_map(f"c{number}")
        obj["metadata"]["labels"] = {"odd": str(number % 2)}
        await make(verbs, obj)
    gone = await verbs.delete_collection(ANYONE, CONFIG_MAPS, "default", labels="odd=1")
    assert [one["metadata"]["name"] for one in gone.items] == ["c1", "c3"]
    assert [one["metadata"]["name"] for one in (await verbs.list(CONFIG_MAPS, "default")).items] == ["c0", "c2"]


# --- admission --------------------------------------------------------------------------------------------------


async def test_a_namespace_must_be_there_and_stay(verbs: Verbs) -> None:
    with pytest.raises(NotFound, match=r'^namespaces "none" not found$'):
        await verbs.create(ANYONE, CONFIG_MAPS, config_map("a"), "none")
    with pytest.raises(Forbidden, match="this namespace may not be deleted"):
        await verbs.delete(ANYONE, NAMESPACES, "default")
    await verbs.create(ANYONE, NAMESPACES, {"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}})
    marked = await verbs.delete(ANYONE, NAMESPACES, "n")
    assert not marked.deleted and marked.object["status"]["phase"] == "Terminating"
    with pytest.raises(Forbidden, match="because it is being terminated") as caught:
        await verbs.create(ANYONE, CONFIG_MAPS, config_map("a"), "n")
    assert caught.value.causes[0].reason == "NamespaceTerminating"
    done = await verbs.get(NAMESPACES, "n")
    done["spec"]["finalizers"] = []
    assert (await verbs.update(ANYONE, NAMESPACES, "n", done, sub="finalize")).deleted
    with pytest.raises(NotFound):
        await verbs.get(NAMESPACES, "n")


async def test_pods_get_an_account_and_tolerations(verbs: Verbs) -> None:
    made = await make(verbs, pod("p"), PODS)
    assert made["spec"]["serviceAccountName"] == "default"
    (mount,) = made["spec"]["containers"][0]["volumeMounts"]
    assert mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    assert made["spec"]["volumes"][0]["name"] == mount["name"]
    assert len(made["spec"]["tolerations"]) == 2
    assert made["spec"]["priority"] == 0
    bare = await make(verbs, pod("q", automountServiceAccountToken=False), PODS)
    assert not bare["spec"].get("volumes")
    with pytest.raises(Forbidden, match='serviceaccount "ghost" not found'):
        await make(verbs, pod("r", serviceAccountName="ghost"), PODS)
    with pytest.raises(Forbidden, match='RuntimeClass "ghost" not found'):
        await make(verbs, pod("r", runtimeClassName="ghost"), PODS)
    with pytest.raises(Forbidden, match="no PriorityClass with name ghost was found"):
        await make(verbs, pod("r", priorityClassName="ghost"), PODS)


async def test_limits_fill_and_bound(verbs: Verbs) -> None:
    limits = {
        "metadata": {"name": "l"},
        "spec": {
            "limits": [
                {
                    "type": "Container",
                    "default": {"cpu": "500m"},
                    "defaultRequest": {"cpu": "100m"},
                    "max": {"cpu": "1"},
                }
            ]
        },
    }
    await make(verbs, limits, Ref("", "v1", "limitranges"))
    made = await make(verbs, pod("p"), PODS)
    assert made["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}}
    big = pod("q")
    big["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "2"}, "requests": {"cpu": "2"}}
    with pytest.raises(Forbidden, match="maximum cpu usage per Container is 1, but limit is 2"):
        await make(verbs, big, PODS)


async def test_a_quota_is_never_exceeded(verbs: Verbs) -> None:
    quota = {"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "3", "requests.cpu": "1"}}}
    await make(verbs, quota, Ref("", "v1", "resourcequotas"))
    outcomes = await asyncio.gather(*(make(verbs, config_map(f"c{n}")) for n in range(8)), return_exceptions=True)
    assert sum(isinstance(one, dict) for one in outcomes) == 3
    refused = next(one for one in outcomes if isinstance(one, Forbidden))
    assert "exceeded quota: q, requested: configmaps=1, used: configmaps=3, limited: configmaps=3" in refused.message
    with pytest.raises(Forbidden, match=r"must specify requests\.cpu for: c"):
        await make(verbs, pod("p"), PODS)


async def test_eviction_asks_the_budget(verbs: Verbs) -> None:
    budgets = Ref("policy", "v1", "poddisruptionbudgets")
    obj = pod("p")
    obj["metadata"]["labels"] = {"app": "x"}
    await make(verbs, obj, PODS)
    await verbs.patch(ANYONE, PODS, "p", {"status": {"phase": "Running"}}, "default", type="merge", sub="status")
    await make(
        verbs,
        {"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}},
        budgets,
    )
    with pytest.raises(TooManyRequests, match="would violate the pod's disruption budget"):
        await verbs.create(ANYONE, PODS, {"metadata": {"name": "p"}}, "default", name="p", sub="eviction")
    await verbs.patch(
        ANYONE, budgets, "b", {"status": {"disruptionsAllowed": 1}}, "default", type="merge", sub="status"
    )
    await verbs.create(ANYONE, PODS, {"metadata": {"name": "p"}}, "default", name="p", sub="eviction")
    with pytest.raises(NotFound):
        await verbs.get(PODS, "p", "default")
    assert (await verbs.get(budgets, "b", "default"))["status"]["disruptionsAllowed"] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda verbs: verbs.get(Ref("", "v1", "nothings"), "x"),
        lambda verbs: verbs.get(PODS, "x", "default", sub="nothing"),
        lambda verbs: verbs.get(PODS, "x", "default", sub="binding"),
        lambda verbs: verbs.create(ANYONE, PODS, {}, "default", name="x", sub="nothing"),
        lambda verbs: verbs.list(Ref("authorization.k8s.io", "v1", "subjectaccessreviews")),
    ],
)
async def test_what_is_not_served(verbs: Verbs, call: Any) -> None:
    with pytest.raises((NotFound, Unsupported)) as caught:
        await call(verbs)
    assert isinstance(caught.value, InsulaError)
