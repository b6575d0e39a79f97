"""What a workload asks of a node, taken out of its resource once, so that deciding reads no nested mappings.

Units: CPU in millicores, memory and ephemeral storage in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct

from insula.model.quantity import parse_quantity
from insula.model.resource import Resource

# What the upstream scheduler assumes for a container that requests nothing, so that such pods spread (non-zero requests).
DEFAULT_MILLI_CPU = 100
DEFAULT_MEMORY = 200 * 1024 * 1024
DEFAULT_GUEST_MEMORY = 256 * 1024 * 1024


class Expression(Struct, frozen=True):
    """One node selector requirement: key, operator (In, NotIn, Exists, DoesNotExist, Gt, Lt) and values."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class Toleration(Struct, frozen=True):
    """Which taints do not matter. An empty key with Exists tolerates everything, an empty effect every effect."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def covers(self, key: str, value: str, effect: str) -> bool:
        """Whether this tolerates the taint."""
        if self.effect and self.effect != effect:
            return False
        if not self.key:
            return self.operator == "Exists"
        return self.key == key and (self.operator == "Exists" or self.value == value)


class AffinityTerm(Struct, frozen=True):
    """One pod affinity term: pods that `selector` matches in `namespaces` (None: in all), per value of the node label
    `topology_key`."""

    topology_key: str
    namespaces: tuple[str, ...] | None
    selector: tuple[Expression, ...]
    weight: int = 0


class Owner(Struct, frozen=True):
    """Whose terms are read."""

    namespace: str
    labels: Mapping[str, str]


SelectNamespaces = Callable[[Mapping[str, Any]], Iterable[str]]


def no_namespaces(_: Mapping[str, Any]) -> Iterable[str]:
    """For readers that know no namespaces: a selector picks none."""
    return ()


class Spread(Struct, frozen=True):
    """One topology spread constraint; `hard` is DoNotSchedule. With fewer than `min_domains` domains the least count is 0;
    `honor_affinity` and `honor_taints` leave out nodes that the workload could not use."""

    topology_key: str
    max_skew: int
    hard: bool
    selector: tuple[Expression, ...]
    min_domains: int = 1
    honor_affinity: bool = True
    honor_taints: bool = False


class Needs(Struct, frozen=True, kw_only=True):
    """Everything that filters and scores read of one workload."""

    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    milli_cpu: int = 0
    memory: int = 0
    ephemeral: int = 0
    score_milli_cpu: int = DEFAULT_MILLI_CPU
    score_memory: int = DEFAULT_MEMORY
    extended: tuple[tuple[str, int], ...] = ()
    ports: tuple[tuple[str, str, int], ...] = ()  # host IP, protocol, host port
    node_name: str = ""
    selector: tuple[Expression, ...] = ()
    any_of: tuple[tuple[Expression, ...], ...] = ()  # required node affinity: one of these terms
    preferred: tuple[tuple[int, tuple[Expression, ...]], ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    affinity: tuple[AffinityTerm, ...] = ()
    anti_affinity: tuple[AffinityTerm, ...] = ()
    preferred_affinity: tuple[AffinityTerm, ...] = ()  # a negative weight repels
    spread: tuple[Spread, ...] = ()
    images: tuple[str, ...] = ()


def matches(expressions: Iterable[Expression], labels: Mapping[str, str]) -> bool:
    """Whether labels meet all expressions of a label selector."""
    return all(_holds(expression, labels) for expression in expressions)


def _holds(expression: Expression, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression.key)
    match expression.operator:
        case "In":
            return value is not None and value in expression.values
        case "NotIn":
            return value is None or value not in expression.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return False


def selector_of(selector: Mapping[str, Any] | None) -> tuple[Expression, ...]:
    """A metav1.LabelSelector as expressions. None matches nothing, an empty one everything."""
    if selector is None:
        return (Expression("", "Nothing"),)
    exact = [Expression(key, "In", (value,)) for key, value in sorted((selector.get("matchLabels") or {}).items())]
    return (*exact, *_expressions(selector.get("matchExpressions")))


def _expressions(items: Iterable[Mapping[str, Any]] | None) -> tuple[Expression, ...]:
    return tuple(Expression(i["key"], i["operator"], tuple(i.get("values") or ())) for i in items or ())


def _term(term: Mapping[str, Any]) -> tuple[Expression, ...]:
    fields = _expressions(term.get("matchFields"))
    return (*_expressions(term.get("matchExpressions")), *fields)


def _affinity_terms(
    items: Iterable[Mapping[str, Any]] | None, owner: Owner, select: SelectNamespaces, sign: int
) -> tuple[AffinityTerm, ...]:
    terms = []
    for item in items or ():
        term = item.get("podAffinityTerm", item)
        unlike = tuple(
            Expression(key, "NotIn", (owner.labels[key],))
            for key in term.get("mismatchLabelKeys") or ()
            if key in owner.labels
        )
        terms.append(
            AffinityTerm(
                topology_key=term["topologyKey"],
                namespaces=_namespaces(term, owner, select),
                selector=(*selector_of(term.get("labelSelector")), *_alike(term, owner), *unlike),
                weight=sign * int(item.get("weight", 0)),
            )
        )
    return tuple(terms)


def _namespaces(term: Mapping[str, Any], owner: Owner, select: SelectNamespaces) -> tuple[str, ...] | None:
    """The named ones and those that the selector picks; an empty selector picks all, none at all means the workload's own."""
    named, selector = tuple(term.get("namespaces") or ()), term.get("namespaceSelector")
    if selector is None:
        return named or (owner.namespace,)
    if not selector:
        return None
    return tuple(sorted({*named, *select(selector)}))


def _alike(term: Mapping[str, Any], owner: Owner) -> tuple[Expression, ...]:
    """`matchLabelKeys`: only workloads whose value of these labels is the owner's."""
    keys = term.get("matchLabelKeys") or ()
    return tuple(Expression(key, "In", (owner.labels[key],)) for key in keys if key in owner.labels)


def _spread(constraint: Mapping[str, Any], owner: Owner) -> Spread:
    return Spread(
        constraint["topologyKey"],
        int(constraint.get("maxSkew", 1)),
        constraint.get("whenUnsatisfiable", "DoNotSchedule") == "DoNotSchedule",
        (*selector_of(constraint.get("labelSelector")), *_alike(constraint, owner)),
        min_domains=int(constraint.get("minDomains") or 1),
        honor_affinity=constraint.get("nodeAffinityPolicy", "Honor") == "Honor",
        honor_taints=constraint.get("nodeTaintsPolicy", "Ignore") == "Honor",
    )


def requests_of(container: Mapping[str, Any]) -> dict[str, int]:
    """A container's requests, CPU in millicores, the rest in units; a limit stands in for a missing request."""
    resources = container.get("resources") or {}
    wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: _amount(name, value) for name, value in wanted.items()}


def _amount(name: str, value: Any) -> int:
    amount = parse_quantity(value)
    return int(-(-(amount * 1000) // 1)) if name == "cpu" else int(-(-amount // 1))


def pod_requests(spec: Mapping[str, Any]) -> dict[str, int]:
    """What a pod takes from its node: its containers and sidecars together, or its largest init container, plus overhead."""
    total: dict[str, int] = {}
    sidecars: dict[str, int] = {}
    largest: dict[str, int] = {}
    for container in spec.get("containers") or ():
        _add(total, requests_of(container))
    for container in spec.get("initContainers") or ():
        wanted = requests_of(container)
        if container.get("restartPolicy") == "Always":
            _add(sidecars, wanted)
            wanted = {}
        for name in {*wanted, *sidecars}:
            largest[name] = max(largest.get(name, 0), wanted.get(name, 0) + sidecars.get(name, 0))
    _add(total, sidecars)
    for name, amount in largest.items():
        total[name] = max(total.get(name, 0), amount)
    whole = spec.get("resources") or {}  # said of the pod as a whole, it replaces what its containers say
    total.update(
        (name, amount) for name, amount in requests_of({"resources": whole}).items() if name in ("cpu", "memory")
    )
    _add(total, {name: _amount(name, value) for name, value in (spec.get("overhead") or {}).items()})
    return total


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount


def _placement(spec: Mapping[str, Any], owner: Owner, select: SelectNamespaces) -> dict[str, Any]:
    affinity = spec.get("affinity") or {}
    node = affinity.get("nodeAffinity") or {}
    near, far = affinity.get("podAffinity") or {}, affinity.get("podAntiAffinity") or {}
    hard, soft = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"

    def terms(of: Mapping[str, Any], which: str, sign: int = 1) -> tuple[AffinityTerm, ...]:
        return _affinity_terms(of.get(which), owner, select, sign)

    return {
        "selector": tuple(Expression(k, "In", (v,)) for k, v in sorted((spec.get("nodeSelector") or {}).items())),
        "any_of": tuple(_term(term) for term in (node.get(hard) or {}).get("nodeSelectorTerms") or ()),
        "preferred": tuple((int(p["weight"]), _term(p["preference"])) for p in node.get(soft) or ()),
        "tolerations": tuple(
            Toleration(t.get("key", ""), t.get("operator", "Equal"), t.get("value", ""), t.get("effect", ""))
            for t in spec.get("tolerations") or ()
        ),
        "affinity": terms(near, hard),
        "anti_affinity": terms(far, hard),
        "preferred_affinity": (*terms(near, soft), *terms(far, soft, -1)),
        "spread": tuple(_spread(constraint, owner) for constraint in spec.get("topologySpreadConstraints") or ()),
    }


_COUNTED = frozenset({"cpu", "memory", "ephemeral-storage"})


def needs_of_pod(pod: Resource, select: SelectNamespaces = no_namespaces) -> Needs:
    """Read a Pod. `select` gives the names of the namespaces that a label selector picks."""
    meta, spec = pod["metadata"], pod["spec"]
    owner = Owner(meta.get("namespace", ""), meta.get("labels") or {})
    wanted = pod_requests(spec)
    containers = spec.get("containers") or ()
    return Needs(
        namespace=owner.namespace,
        labels=tuple(sorted(owner.labels.items())),
        milli_cpu=wanted.get("cpu", 0),
        memory=wanted.get("memory", 0),
        ephemeral=wanted.get("ephemeral-storage", 0),
        score_milli_cpu=wanted.get("cpu") or DEFAULT_MILLI_CPU * len(containers),
        score_memory=wanted.get("memory") or DEFAULT_MEMORY * len(containers),
        extended=tuple(sorted((name, amount) for name, amount in wanted.items() if name not in _COUNTED)),
        ports=tuple(
            (port.get("hostIP", ""), port.get("protocol", "TCP"), int(port["hostPort"]))
            for container in containers
            for port in container.get("ports") or ()
            if port.get("hostPort")
        ),
        node_name=spec.get("nodeName", ""),
        images=tuple(container.get("image", "") for container in containers),
        **_placement(spec, owner, select),
    )


def needs_of_machine(machine: Resource, select: SelectNamespaces = no_namespaces) -> Needs:
    """Read a VirtualMachineInstance: guest memory, and vCPUs as CPU requests only where the user gave one (KubeVirt
    overcommits CPU likewise)."""
    meta, spec = machine["metadata"], machine["spec"]
    owner = Owner(meta.get("namespace", ""), meta.get("labels") or {})
    domain = spec.get("domain") or {}
    wanted = requests_of(domain)
    guest = (domain.get("memory") or {}).get("guest")
    memory = _amount("memory", guest) if guest else wanted.get("memory", DEFAULT_GUEST_MEMORY)
    return Needs(
        namespace=owner.namespace,
        labels=tuple(sorted(owner.labels.items())),
        milli_cpu=wanted.get("cpu", 0),
        memory=memory,
        score_milli_cpu=wanted.get("cpu") or DEFAULT_MILLI_CPU,
        score_memory=memory,
        node_name=(machine.get("status") or {}).get("nodeName", ""),
        **_placement(spec, owner, select),
    )
