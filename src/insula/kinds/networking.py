"""Ingress, IngressClass, NetworkPolicy, IPAddress, ServiceCIDR."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import NONE, age, column, get, joined, selector
from insula.model.resource import Resource

_PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")
_CLASS_NOTE = "kubernetes.io/ingress.class"


def _validate_ingress(new: Resource, _old: Resource | None) -> list[Cause]:
    spec = new.get("spec") or {}
    found: list[Cause] = []
    if not spec.get("rules") and not spec.get("defaultBackend"):
        found.append(rules.invalid("spec", spec, "either `defaultBackend` or `rules` must be specified"))
    if spec.get("defaultBackend"):
        found += _backend(spec["defaultBackend"], "spec.defaultBackend")
    for index, rule in enumerate(spec.get("rules") or ()):
        where, host = f"spec.rules[{index}]", rule.get("host") or ""
        if host:
            found += rules.dns_subdomain(f"{where}.host", host.removeprefix("*."))
        for at, path in enumerate(get(rule, "http", "paths", default=[])):
            found += _path(path, f"{where}.http.paths[{at}]")
    return found


def _path(path: Mapping[str, Any], where: str) -> list[Cause]:
    kind, text = path.get("pathType"), path.get("path") or ""
    found: list[Cause] = []
    if not kind:
        found.append(rules.required(f"{where}.pathType", "pathType must be specified"))
    elif kind not in _PATH_TYPES:
        found.append(rules.unsupported(f"{where}.pathType", kind, _PATH_TYPES))
    elif kind != "ImplementationSpecific" and not text.startswith("/"):
        found.append(rules.invalid(f"{where}.path", text, "must be an absolute path"))
    return found + _backend(path.get("backend") or {}, f"{where}.backend")


def _backend(backend: Mapping[str, Any], where: str) -> list[Cause]:
    service = backend.get("service")
    if service is None:
        return [] if backend.get("resource") else [rules.required(where, "service or resource must be specified")]
    port = service.get("port") or {}
    found = rules.dns_label(f"{where}.service.name", service.get("name"))
    if not port.get("number") and not port.get("name"):
        found.append(rules.required(f"{where}.service", "port name or number is required"))
    return found


def _ingress_row(obj: Resource) -> Sequence[Any]:
    spec = obj.get("spec") or {}
    hosts = [rule.get("host") or "*" for rule in spec.get("rules") or ()]
    addresses = [
        each.get("ip") or each.get("hostname", "") for each in get(obj, "status", "loadBalancer", "ingress", default=[])
    ]
    note = (obj["metadata"].get("annotations") or {}).get(_CLASS_NOTE)
    return (
        spec.get("ingressClassName") or note or NONE,
        joined(hosts[:3], "*") + (f" + {len(hosts) - 3} more..." if len(hosts) > 3 else ""),
        joined(addresses, ""),
        "80, 443" if spec.get("tls") else "80",
        age(obj),
    )


def _default_policy(obj: Resource) -> None:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    if spec.get("podSelector") is None:
        spec["podSelector"] = {}
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    for rule in (*(spec.get("ingress") or ()), *(spec.get("egress") or ())):
        for port in (rule or {}).get("ports") or ():
            port.setdefault("protocol", "TCP")


def _validate_policy(new: Resource, _old: Resource | None) -> list[Cause]:
    spec = new.get("spec") or {}
    found = rules.selector("spec.podSelector", spec.get("podSelector"))
    for index, kind in enumerate(spec.get("policyTypes") or ()):
        found += rules.one_of(f"spec.policyTypes[{index}]", kind, ("Ingress", "Egress"))
    for field, side in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(field) or ()):
            for at, peer in enumerate((rule or {}).get(side) or ()):
                found += _peer(peer, f"spec.{field}[{index}].{side}[{at}]")
    return found


def _peer(peer: Mapping[str, Any], where: str) -> list[Cause]:
    if not any(peer.get(name) is not None for name in ("podSelector", "namespaceSelector", "ipBlock")):
        return [rules.required(where, "must specify a peer")]
    found: list[Cause] = []
    for name in ("podSelector", "namespaceSelector"):
        if peer.get(name) is not None:
            found += rules.selector(f"{where}.{name}", peer[name])
    if block := peer.get("ipBlock"):
        if peer.get("podSelector") is not None or peer.get("namespaceSelector") is not None:
            found.append(rules.forbidden(where, "may not specify both ipBlock and another peer"))
        for text in (block.get("cidr"), *(block.get("except") or ())):
            try:
                ipaddress.ip_network(text or "")
            except ValueError:
                found.append(
                    rules.invalid(
                        f"{where}.ipBlock", text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
                    )
                )
    return found


def _parameters(obj: Resource) -> str:
    found = get(obj, "spec", "parameters")
    if not found:
        return NONE
    group = f".{found['apiGroup']}" if found.get("apiGroup") else ""
    return f"{found.get('kind')}{group}/{found.get('name')}"


def _parent(obj: Resource) -> str:
    found = get(obj, "spec", "parentRef", default={})
    parts = [found.get("resource", ""), found.get("namespace", ""), found.get("name", "")]
    return "/".join(part for part in parts if part)


KINDS = (
    replace(
        row("networking.k8s.io/v1", "Ingress"),
        validate=_validate_ingress,
        columns=(column("Class"), column("Hosts"), column("Address"), column("Ports"), column("Age")),
        row=_ingress_row,
    ),
    replace(
        row("networking.k8s.io/v1", "IngressClass"),
        columns=(column("Controller"), column("Parameters"), column("Age")),
        row=lambda obj: (get(obj, "spec", "controller", default=""), _parameters(obj), age(obj)),
    ),
    replace(
        row("networking.k8s.io/v1", "NetworkPolicy"),
        default=_default_policy,
        validate=_validate_policy,
        columns=(column("Pod-Selector"), column("Age")),
        row=lambda obj: (selector(get(obj, "spec", "podSelector", default={})), age(obj)),
    ),
    replace(
        row("networking.k8s.io/v1", "IPAddress"),
        columns=(column("ParentRef"), column("Age")),
        row=lambda obj: (_parent(obj), age(obj)),
    ),
    replace(
        row("networking.k8s.io/v1", "ServiceCIDR"),
        columns=(column("CIDRs"), column("Age")),
        row=lambda obj: (joined(get(obj, "spec", "cidrs", default=[])), age(obj)),
    ),
)
