"""Endpoints and EndpointSlice: where a service's traffic goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import NONE, UNSET, age, column, joined
from insula.model.resource import Resource

_SHOWN = 3


def _default(obj: Resource) -> None:
    for subset in obj.get("subsets") or ():
        for port in subset.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _default_slice(obj: Resource) -> None:
    for port in obj.get("ports") or ():
        port.setdefault("name", "")
        port.setdefault("protocol", "TCP")


def _validate_slice(new: Resource, old: Resource | None) -> list[Cause]:
    found = rules.one_of("addressType", new.get("addressType"), ("IPv4", "IPv6", "FQDN"))
    if not new.get("addressType"):
        found.append(rules.required("addressType"))
    if old:
        found += rules.immutable("addressType", new.get("addressType"), old.get("addressType"))
    for index, endpoint in enumerate(new.get("endpoints") or ()):
        if not endpoint.get("addresses"):
            found.append(rules.required(f"endpoints[{index}].addresses", "must contain at least 1 address"))
    return found


def _some(values: Iterable[str], total: int) -> str:
    listed = list(values)
    shown = joined(listed[:_SHOWN])
    return f"{shown} + {total - _SHOWN} more..." if total > _SHOWN else shown


def _pairs(subsets: Iterable[Mapping[str, Any]]) -> list[str]:
    found = []
    for subset in subsets:
        ports: list[Any] = [port.get("port") for port in subset.get("ports") or ()] or [None]
        for port in ports:
            found += [
                f"{each.get('ip')}:{port}" if port is not None else str(each.get("ip"))
                for each in subset.get("addresses") or ()
            ]
    return found


def _row(obj: Resource) -> Sequence[Any]:
    pairs = _pairs(obj.get("subsets") or ())
    return _some(pairs, len(pairs)), age(obj)


def _slice_row(obj: Resource) -> Sequence[Any]:
    ports = obj.get("ports")
    addresses = [address for each in obj.get("endpoints") or () for address in each.get("addresses") or ()]
    shown_ports = [str(port.get("port", "*")) for port in ports or ()]
    return (
        obj.get("addressType", ""),
        _some(shown_ports, len(shown_ports)) if ports else UNSET,
        _some(addresses, len(addresses)) if addresses else (UNSET if obj.get("endpoints") is None else NONE),
        age(obj),
    )


KINDS = (
    replace(row("v1", "Endpoints"), default=_default, columns=(column("Endpoints"), column("Age")), row=_row),
    replace(
        row("discovery.k8s.io/v1", "EndpointSlice"),
        default=_default_slice,
        validate=_validate_slice,
        columns=(column("AddressType"), column("Ports"), column("Endpoints"), column("Age")),
        row=_slice_row,
    ),
)
