"""Service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import NONE, age, column, get, joined, labels
from insula.model.resource import Resource

_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_PROTOCOLS = ("TCP", "UDP", "SCTP")


def default(obj: Resource) -> None:
    """As core/v1 fills it in. Addresses and node ports are given by who owns those ranges."""
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    spec.setdefault("sessionAffinity", "None")
    if spec["sessionAffinity"] == "ClientIP":
        config = spec.setdefault("sessionAffinityConfig", {})
        config.setdefault("clientIP", {}).setdefault("timeoutSeconds", 10800)
    spec.setdefault("type", "ClusterIP")
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if port.get("targetPort") in (None, 0, "") and port.get("port"):
            port["targetPort"] = port["port"]
    if spec["type"] != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


def prepare(new: Resource, old: Resource | None) -> None:
    """The primary address follows the list of addresses; a kept service keeps what it was given."""
    spec = new.get("spec") or {}
    if old is None:
        new["status"] = {"loadBalancer": {}}
    elif spec.get("type") != "ExternalName" and old["spec"].get("type") != "ExternalName":
        _keep(spec, old["spec"])
    if spec.get("clusterIPs") and not spec.get("clusterIP"):
        spec["clusterIP"] = spec["clusterIPs"][0]
    elif spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]


def _keep(spec: dict[str, Any], old: Mapping[str, Any]) -> None:
    for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if not spec.get(name) and old.get(name):
            spec[name] = old[name]
    if spec.get("type") not in ("NodePort", "LoadBalancer"):
        return
    before = {(each.get("port"), each.get("protocol")): each.get("nodePort") for each in old.get("ports") or ()}
    for port in spec.get("ports") or ():
        given = before.get((port.get("port"), port.get("protocol")))
        if not port.get("nodePort") and given:
            port["nodePort"] = given


def validate(new: Resource, old: Resource | None) -> list[Cause]:
    """Type, ports, addresses."""
    spec = new.get("spec") or {}
    found = rules.one_of("spec.type", spec.get("type"), _TYPES)
    found += rules.one_of("spec.sessionAffinity", spec.get("sessionAffinity"), ("None", "ClientIP"))
    found += rules.labels("spec.selector", spec.get("selector"))
    if spec.get("type") == "ExternalName":
        found += rules.dns_subdomain("spec.externalName", (spec.get("externalName") or "").rstrip("."))
    elif not spec.get("ports") and spec.get("clusterIP") != "None":
        found.append(rules.required("spec.ports"))
    found += _ports(spec)
    if (
        old
        and _address(old)
        and _address(new)
        and _address(old) != _address(new)
        and spec.get("type") != "ExternalName"
    ):
        found.append(rules.invalid("spec.clusterIPs[0]", _address(new), "may not change once set"))
    return found


def _address(obj: Resource) -> str:
    return str(get(obj, "spec", "clusterIP", default=""))


def _ports(spec: Mapping[str, Any]) -> list[Cause]:
    found: list[Cause] = []
    names: set[str] = set()
    seen: set[tuple[Any, ...]] = set()
    ports = spec.get("ports") or ()
    for index, port in enumerate(ports):
        where, name = f"spec.ports[{index}]", port.get("name")
        if len(ports) > 1 and not name:
            found.append(rules.required(f"{where}.name"))
        elif name:
            found += rules.dns_label(f"{where}.name", name)
            if name in names:
                found.append(rules.duplicate(f"{where}.name", name))
            names.add(name)
        found += rules.port_number(f"{where}.port", port.get("port"))
        found += rules.one_of(f"{where}.protocol", port.get("protocol"), _PROTOCOLS)
        if port.get("targetPort") is not None:
            found += rules.port(f"{where}.targetPort", port["targetPort"])
        if port.get("nodePort") and spec.get("type") not in ("NodePort", "LoadBalancer"):
            found.append(rules.forbidden(f"{where}.nodePort", "may not be used when `type` is 'ClusterIP'"))
        key = (port.get("port"), port.get("protocol"))
        if key in seen:
            found.append(rules.duplicate(where, {"port": key[0], "protocol": key[1]}))
        seen.add(key)
    return found


def fields(obj: Resource) -> dict[str, str]:
    """Selectable fields."""
    return {"spec.clusterIP": _address(obj), "spec.type": get(obj, "spec", "type", default="")}


def _external(obj: Resource) -> str:
    spec = obj.get("spec") or {}
    given = list(spec.get("externalIPs") or ())
    match spec.get("type"):
        case "ExternalName":
            return spec.get("externalName") or NONE
        case "LoadBalancer":
            found = get(obj, "status", "loadBalancer", "ingress", default=[])
            given = [each.get("ip") or each.get("hostname", "") for each in found] + given
            return joined(given, "<pending>")
    return joined(given)


def _port(port: Mapping[str, Any]) -> str:
    node = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port.get('port')}{node}/{port.get('protocol', 'TCP')}"


def _row(obj: Resource) -> Sequence[Any]:
    spec = obj.get("spec") or {}
    return (
        spec.get("type", ""),
        spec.get("clusterIP") or NONE,
        _external(obj),
        joined(_port(each) for each in spec.get("ports") or ()),
        age(obj),
        labels(spec.get("selector")),
    )


KIND = replace(
    row("v1", "Service"),
    default=default,
    prepare=prepare,
    validate=validate,
    fields=fields,
    columns=(
        column("Type"),
        column("Cluster-IP"),
        column("External-IP"),
        column("Port(s)"),
        column("Age"),
        column("Selector", wide=True),
    ),
    row=_row,
)
