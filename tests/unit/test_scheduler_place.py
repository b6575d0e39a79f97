"""Placing: golden cases of every filter and score, the sentences of a refusal, and counting that agrees with recounting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.model.resource import Resource
from insula.scheduler.columns import Columns
from insula.scheduler.needs import needs_of_machine, needs_of_pod, pod_requests
from insula.scheduler.place import explain, place

HARD = "requiredDuringSchedulingIgnoredDuringExecution"
SOFT = "preferredDuringSchedulingIgnoredDuringExecution"


def node(
    name: str, *, cpu: str = "4", memory: str = "8Gi", pods: str = "110", images: Any = (), **fields: Any
) -> Resource:
    """A node. `labels` and `more` (further amounts) are taken apart, the rest is its spec."""
    labels, more = fields.pop("labels", {}), fields.pop("more", {})
    amounts = {"cpu": cpu, "memory": memory, "pods": pods, "ephemeral-storage": "100Gi", **more}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
        "spec": fields,
        "status": {"allocatable": amounts, "images": list(images)},
    }


def pod(
    name: str = "p",
    *,
    labels: dict[str, str] | None = None,
    requests: Any = None,
    namespace: str = "default",
    **spec: Any,
) -> Resource:
    """A pod of one container."""
    container: dict[str, Any] = {"name": "c", "image": spec.pop("image", "i")}
    if requests:
        container["resources"] = {"requests": requests}
    if ports := spec.pop("ports", None):
        container["ports"] = ports
    meta = {"name": name, "uid": name, "namespace": namespace, "labels": labels or {}}
    return {"kind": "Pod", "metadata": meta, "spec": {"containers": [container], **spec}}


def columns(*nodes: Resource, placed: dict[str, list[Resource]] | None = None) -> Columns:
    """Nodes with what is placed on them."""
    made = Columns(4)
    for one in nodes:
        made.set_node(one)
    for name, pods in (placed or {}).items():
        for one in pods:
            made.put(one["metadata"]["uid"], made.rows[name], needs_of_pod(one))
    return made


def where(cols: Columns, wish: Resource, **options: Any) -> set[str]:
    """Every node that would take a pod: taken away one after another."""
    found = set()
    needs = needs_of_pod(wish, **options)
    while (chosen := place(cols, needs)).node:
        found.add(chosen.node)
        cols.remove_node(chosen.node)
    return found


def affinity(kind: str, *terms: dict[str, Any]) -> dict[str, Any]:
    """Required pod affinity or anti-affinity."""
    return {"affinity": {kind: {HARD: list(terms)}}}


def term(key: str = "zone", **fields: Any) -> dict[str, Any]:
    """A term for pods labelled app=web."""
    return {"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}, **fields}


WEB = {"app": "web"}
ZONES = [
    node("a1", labels={"zone": "a"}),
    node("a2", labels={"zone": "a"}),
    node("b1", labels={"zone": "b"}),
    node("none"),
]


# --- filters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerations", "expected"),
    [
        ([], {"clean", "soft"}),
        ([{"operator": "Exists"}], {"clean", "soft", "hard", "exec", "cordoned"}),
        ([{"key": "k", "operator": "Exists"}], {"clean", "soft", "hard", "exec"}),
        ([{"key": "k", "value": "v", "effect": "NoSchedule"}], {"clean", "soft", "hard"}),
        ([{"key": "k", "value": "other"}], {"clean", "soft"}),
        ([{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}], {"clean", "soft", "cordoned"}),
    ],
)
def test_taints_repel_what_does_not_tolerate_them(tolerations: list[dict[str, Any]], expected: set[str]) -> None:
    def tainted(effect: str) -> list[dict[str, str]]:
        return [{"key": "k", "value": "v", "effect": effect}]

    nodes = [
        node("clean"),
        node("soft", taints=tainted("PreferNoSchedule")),
        node("hard", taints=tainted("NoSchedule")),
        node("exec", taints=tainted("NoExecute")),
        node("cordoned", unschedulable=True),
    ]
    assert where(columns(*nodes), pod(tolerations=tolerations)) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ({"key": "zone", "operator": "In", "values": ["a", "c"]}, {"a"}),
        ({"key": "zone", "operator": "NotIn", "values": ["a"]}, {"b", "bare"}),
        ({"key": "zone", "operator": "Exists"}, {"a", "b"}),
        ({"key": "zone", "operator": "DoesNotExist"}, {"bare"}),
        ({"key": "cores", "operator": "Gt", "values": ["4"]}, {"b"}),
        ({"key": "cores", "operator": "Lt", "values": ["5"]}, {"a"}),
    ],
)
def test_node_affinity_operators(expression: dict[str, Any], expected: set[str]) -> None:
    nodes = [
        node("a", labels={"zone": "a", "cores": "4"}),
        node("b", labels={"zone": "b", "cores": "16"}),
        node("bare"),
    ]
    wish = {"affinity": {"nodeAffinity": {HARD: {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}}
    assert where(columns(*nodes), pod(**wish)) == expected


def test_terms_are_alternatives_selectors_add_and_an_empty_term_matches_nothing() -> None:
    nodes = [
        node("a", labels={"zone": "a", "disk": "ssd"}),
        node("b", labels={"zone": "b", "disk": "ssd"}),
        node("c", labels={"zone": "a"}),
    ]
    terms = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in "ab"]
    either = {"affinity": {"nodeAffinity": {HARD: {"nodeSelectorTerms": terms}}}}
    assert where(columns(*nodes), pod(nodeSelector={"disk": "ssd"}, **either)) == {"a", "b"}
    empty = {"affinity": {"nodeAffinity": {HARD: {"nodeSelectorTerms": [{}]}}}}
    assert where(columns(*nodes), pod(**empty)) == set()
    by_name = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["c"]}]}
    assert where(columns(*nodes), pod(affinity={"nodeAffinity": {HARD: {"nodeSelectorTerms": [by_name]}}})) == {"c"}


@pytest.mark.parametrize(
    ("taken", "asked", "fits"),
    [
        ({"hostPort": 80}, {"hostPort": 80}, False),
        ({"hostPort": 80}, {"hostPort": 81}, True),
        ({"hostPort": 80}, {"hostPort": 80, "protocol": "UDP"}, True),
        ({"hostPort": 80, "hostIP": "10.0.0.1"}, {"hostPort": 80, "hostIP": "10.0.0.2"}, True),
        ({"hostPort": 80, "hostIP": "10.0.0.1"}, {"hostPort": 80}, False),
        ({"hostPort": 80}, {"hostPort": 80, "hostIP": "10.0.0.1"}, False),
    ],
)
def test_host_ports(taken: dict[str, Any], asked: dict[str, Any], fits: bool) -> None:
    cols = columns(node("n"), placed={"n": [pod("old", ports=[taken])]})
    assert bool(place(cols, needs_of_pod(pod("new", ports=[asked]))).node) is fits


def test_extended_resources_and_their_withdrawal() -> None:
    gpu = {"requests": {"vendor.com/gpu": "1"}}
    nodes = [node("plain"), node("gpu", more={"vendor.com/gpu": "1"})]
    cols = columns(*nodes)
    assert place(cols, needs_of_pod(pod(**gpu))).node == "gpu"
    cols.put("x", cols.rows["gpu"], needs_of_pod(pod("x", **gpu)))
    assert "Insufficient vendor.com/gpu" in place(cols, needs_of_pod(pod(**gpu))).reason
    cols.take_away("x")
    cols.set_node(node("gpu"))
    assert not place(cols, needs_of_pod(pod(**gpu))).node


def test_requests_count_init_containers_sidecars_overhead_and_the_pod_as_a_whole() -> None:
    def asks(cpu: str, **fields: Any) -> dict[str, Any]:
        return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **fields}

    spec: dict[str, Any] = {"containers": [asks("1"), asks("500m")], "initContainers": [asks("2")]}
    assert pod_requests(spec)["cpu"] == 2000
    spec["initContainers"] = [asks("300m", restartPolicy="Always"), asks("1")]
    assert pod_requests(spec)["cpu"] == 1800
    spec["overhead"] = {"cpu": "50m"}
    assert pod_requests(spec)["cpu"] == 1850
    spec["resources"] = {"requests": {"cpu": "1"}}
    assert pod_requests(spec)["cpu"] == 1050
    assert pod_requests({"containers": [{"name": "c", "resources": {"limits": {"cpu": "250m"}}}]})["cpu"] == 250


def test_affinity_keeps_near_and_lets_the_first_of_a_group_begin() -> None:
    near = affinity("podAffinity", term())
    assert where(columns(*ZONES, placed={"a1": [pod("w", labels=WEB)]}), pod(**near)) == {"a1", "a2"}
    assert where(columns(*ZONES), pod(**near)) == set()
    assert where(columns(*ZONES), pod(labels=WEB, **near)) == {"a1", "a2", "b1"}
    other = columns(*ZONES, placed={"a1": [pod("w", labels=WEB, namespace="other")]})
    assert where(other, pod(**near)) == set()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, set()),
        ({"namespaces": ["other"]}, {"a1", "a2"}),
        ({"namespaceSelector": {}}, {"a1", "a2"}),
        ({"namespaceSelector": {"matchLabels": {"team": "x"}}}, {"a1", "a2"}),
    ],
)
def test_affinity_sees_the_namespaces_that_it_names(fields: dict[str, Any], expected: set[str]) -> None:
    cols = columns(*ZONES, placed={"a1": [pod("w", labels=WEB, namespace="other")]})
    wish = pod(**affinity("podAffinity", term(**fields)))
    assert where(cols, wish, select=lambda selector: ["other"]) == expected


def test_anti_affinity_holds_in_both_directions() -> None:
    away = affinity("podAntiAffinity", term())
    placed = {"a1": [pod("w", labels=WEB)]}
    assert where(columns(*ZONES, placed=placed), pod(**away)) == {"b1", "none"}
    shy = {"a1": [pod("shy", **away)]}
    assert where(columns(*ZONES, placed=shy), pod(labels=WEB)) == {"b1", "none"}
    assert where(columns(*ZONES, placed=shy), pod()) == {"a1", "a2", "b1", "none"}


def test_match_label_keys_compare_with_the_pods_own() -> None:
    placed = {"a1": [pod("old", labels={**WEB, "v": "1"})]}
    away = affinity("podAntiAffinity", term(matchLabelKeys=["v"]))
    assert where(columns(*ZONES, placed=placed), pod(labels={**WEB, "v": "2"}, **away)) == {"a1", "a2", "b1", "none"}
    assert where(columns(*ZONES, placed=placed), pod(labels={**WEB, "v": "1"}, **away)) == {"b1", "none"}


def spread(skew: int = 1, **fields: Any) -> dict[str, Any]:
    """A hard spread constraint over zones."""
    constraint = {
        "topologyKey": "zone",
        "maxSkew": skew,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": WEB},
        **fields,
    }
    return {"topologySpreadConstraints": [constraint]}


def test_spread_keeps_the_skew_and_leaves_out_nodes_without_the_label() -> None:
    placed = {"a1": [pod("w1", labels=WEB)]}
    assert where(columns(*ZONES, placed=placed), pod(labels=WEB, **spread())) >= {"b1"}
    cols = columns(*ZONES, placed=placed)
    assert place(cols, needs_of_pod(pod(labels=WEB, **spread()))).node == "b1"
    assert where(columns(*ZONES, placed=placed), pod(labels=WEB, **spread(2))) == {"a1", "a2", "b1"}


def test_spread_does_not_count_a_pod_that_its_own_selector_leaves_out() -> None:
    placed = {"a1": [pod("w1", labels=WEB)]}
    cols = columns(*ZONES, placed=placed)
    cols.remove_node("b1")
    cols.set_node(node("b1", labels={"zone": "b"}, cpu="0"))
    assert place(cols, needs_of_pod(pod(requests={"cpu": "1"}, **spread()))).node in ("a1", "a2")


def test_spread_with_too_few_domains_counts_from_nothing() -> None:
    placed = {"a1": [pod("w1", labels=WEB)], "b1": [pod("w2", labels=WEB)]}
    assert place(columns(*ZONES, placed=placed), needs_of_pod(pod(labels=WEB, **spread()))).node
    few = columns(*ZONES, placed=placed)
    assert not place(few, needs_of_pod(pod(labels=WEB, **spread(minDomains=3)))).node


def test_spread_honors_taints_only_when_told() -> None:
    tainted = [
        node("a1", labels={"zone": "a"}),
        node("b1", labels={"zone": "b"}, taints=[{"key": "k", "effect": "NoSchedule"}]),
    ]
    placed = {"a1": [pod("w", labels=WEB)]}
    assert not place(columns(*tainted, placed=placed), needs_of_pod(pod(labels=WEB, **spread()))).node
    honest = pod(labels=WEB, **spread(nodeTaintsPolicy="Honor"))
    assert place(columns(*tainted, placed=placed), needs_of_pod(honest)).node == "a1"


# --- sentences --------------------------------------------------------------------------------------------------


def test_a_refusal_counts_each_node_at_its_first_reason() -> None:
    nodes = [
        node("cordoned", unschedulable=True),
        node("tainted", taints=[{"key": "k", "effect": "NoSchedule"}]),
        node("elsewhere"),
        node("small", labels={"zone": "a"}, cpu="1", memory="1Gi"),
        node("full", labels={"zone": "a"}, pods="0"),
    ]
    wish = pod(nodeSelector={"zone": "a"}, requests={"cpu": "2", "memory": "2Gi"})
    assert explain(columns(*nodes), needs_of_pod(wish)) == (
        "0/5 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods, "
        "1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable."
    )


def test_without_nodes_the_sentence_is_another() -> None:
    assert explain(columns(), needs_of_pod(pod())) == "no nodes available to schedule pods"


# --- scores -----------------------------------------------------------------------------------------------------


def test_the_emptier_node_is_better() -> None:
    busy = [pod(f"b{n}", requests={"cpu": "1", "memory": "1Gi"}) for n in range(3)]
    assert place(columns(node("busy"), node("idle"), placed={"busy": busy}), needs_of_pod(pod())).node == "idle"


def test_pods_that_ask_for_nothing_spread_too() -> None:
    cols, seen = columns(node("a"), node("b")), []
    for number in range(4):
        needs = needs_of_pod(pod(f"p{number}"))
        chosen = place(cols, needs)
        cols.put(f"p{number}", chosen.row, needs)
        seen.append(chosen.node)
    assert sorted(seen) == ["a", "a", "b", "b"]


def test_preferences_decide_between_equals() -> None:
    nodes = [node("a", labels={"zone": "a"}), node("b", labels={"zone": "b"})]
    prefer = {"weight": 50, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}}
    assert place(columns(*nodes), needs_of_pod(pod(affinity={"nodeAffinity": {SOFT: [prefer]}}))).node == "b"
    soft_taint = [node("a", taints=[{"key": "k", "effect": "PreferNoSchedule"}]), node("b")]
    assert place(columns(*soft_taint), needs_of_pod(pod())).node == "b"
    weighted = {"weight": 100, "podAffinityTerm": term()}
    placed = {"b": [pod("w", labels=WEB)]}
    assert (
        place(columns(*nodes, placed=placed), needs_of_pod(pod(affinity={"podAffinity": {SOFT: [weighted]}}))).node
        == "b"
    )
    assert (
        place(columns(*nodes, placed=placed), needs_of_pod(pod(affinity={"podAntiAffinity": {SOFT: [weighted]}}))).node
        == "a"
    )


def test_a_soft_spread_prefers_the_emptier_zone() -> None:
    placed = {"a1": [pod("w", labels=WEB)]}
    wish = pod(labels=WEB, **spread(whenUnsatisfiable="ScheduleAnyway"))
    assert place(columns(*ZONES[:3], placed=placed), needs_of_pod(wish)).node == "b1"


def test_a_node_that_has_the_image_is_better() -> None:
    big = [{"names": ["i"], "sizeBytes": 900 * 1024 * 1024}]
    assert place(columns(node("a"), node("b", images=big)), needs_of_pod(pod(image="i"))).node == "b"


def test_machines_ask_for_their_guests_memory() -> None:
    machine = {
        "metadata": {"name": "m", "uid": "m", "namespace": "d"},
        "spec": {"domain": {"memory": {"guest": "16Gi"}}, "nodeSelector": {"zone": "a"}},
    }
    needs = needs_of_machine(machine)
    assert (needs.memory, needs.milli_cpu) == (16 << 30, 0)
    assert "Insufficient memory" in place(columns(ZONES[0]), needs).reason


# --- counting ---------------------------------------------------------------------------------------------------

PODS = st.builds(
    lambda name, labels, cpu, port, shy: pod(
        name,
        labels=labels,
        requests={"cpu": f"{cpu}m", "vendor.com/gpu": "1"} if cpu else None,
        ports=[{"hostPort": port}] if port else None,
        **(affinity("podAntiAffinity", term()) if shy else {}),
    ),
    st.sampled_from([f"p{n}" for n in range(6)]),
    st.sampled_from([{}, WEB, {"app": "db"}]),
    st.sampled_from([0, 100, 250]),
    st.sampled_from([0, 80, 81]),
    st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(["a", "b", "c", "d", "e", "f"]), PODS),
        st.tuples(st.just("take"), st.sampled_from([f"p{n}" for n in range(6)]), st.none()),
        st.tuples(st.just("drop"), st.sampled_from(["a", "b", "c"]), st.none()),
        st.tuples(st.just("add"), st.sampled_from(["a", "b", "c"]), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_counting_as_things_change_agrees_with_counting_anew(changes: list[tuple[str, str, Any]]) -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    cols = columns(*(node(name, labels={"zone": name}) for name in names))
    present: dict[str, tuple[str, Resource]] = {}
    for verb, what, wish in changes:
        if verb == "put" and what in cols.rows:
            cols.put(wish["metadata"]["uid"], cols.rows[what], needs_of_pod(wish))
            present[wish["metadata"]["uid"]] = (what, wish)
        elif verb == "take":
            cols.take_away(what)
            present.pop(what, None)
        elif verb == "drop":
            cols.remove_node(what)
            present = {uid: found for uid, found in present.items() if found[0] != what}
        elif verb == "add":
            cols.set_node(node(what, labels={"zone": what}))
    fresh = columns(*(node(name, labels={"zone": name}) for name in cols.rows))
    for where_, wish in present.values():
        fresh.put(wish["metadata"]["uid"], fresh.rows[where_], needs_of_pod(wish))
    assert _seen(cols) == _seen(fresh)


def _seen(cols: Columns) -> dict[str, Any]:
    """All that filters and scores read, by node name."""
    rows = sorted((name, row) for name, row in cols.rows.items())
    row_name = {row: name for name, row in rows}
    amounts = {
        (kind, key): [int(column[row]) for _, row in rows]
        for kind, table in (("used", cols.used), ("scored", cols.scored))
        for key, column in table.items()
        if any(column[row] for _, row in rows)
    }
    taken = {port: [bool(cols.taken_port("", "TCP", port)[row]) for _, row in rows] for port in (80, 81)}
    groups = {key: {row_name[row]: n for row, n in counts.items()} for key, counts in cols.groups.items()}
    repelling = {key: {row_name[row]: n for row, n in counts.items()} for key, counts in cols.repelling.items()}
    return {
        "amounts": amounts,
        "taken": taken,
        "groups": groups,
        "repelling": repelling,
        "live": int(np.sum(cols.live)),
    }


def test_columns_grow_and_rows_are_used_again() -> None:
    cols = Columns(2)
    for number in range(50):
        cols.set_node(node(f"n{number}", labels={"zone": str(number)}))
    assert int(cols.live.sum()) == 50
    for number in range(25):
        cols.remove_node(f"n{number}")
    size = len(cols.live)
    for number in range(100, 125):
        cols.set_node(node(f"n{number}"))
    assert len(cols.live) == size and int(cols.live.sum()) == 50
    wish = {"key": "zone", "operator": "Exists"}
    chosen = {"affinity": {"nodeAffinity": {HARD: {"nodeSelectorTerms": [{"matchExpressions": [wish]}]}}}}
    assert len(where(cols, pod(**chosen))) == 25
