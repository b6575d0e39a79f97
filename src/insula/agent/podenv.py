"""The environment of a container, as the Kubernetes documentation defines it: envFrom first, then env in order, then expansion
of $(NAME) from what was defined before. Pure: what is referred to is passed in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from insula.errors import Invalid, NotFound
from insula.model.quantity import parse_quantity
from insula.model.resource import Resource

_NAME = re.compile(r"[!-<>-~ ]+\Z")  # printable ASCII but "=": relaxed names, general since Kubernetes 1.34
_EXPAND = re.compile(r"\$(\$|\(([^()]*)\))")


class References(Struct, frozen=True):
    """The objects that a pod's containers refer to, by name; absent ones are not in it. Secret data is decoded."""

    config_maps: Mapping[str, Mapping[str, str]]
    secrets: Mapping[str, Mapping[str, bytes]]


class PodFacts(Struct, frozen=True):
    """What the downward API can tell beyond the pod's own spec."""

    pod_ip: str = ""
    host_ip: str = ""
    node_cpu: int = 1
    node_memory: int = 0


def environment(
    container: Resource, pod: Resource, references: References, facts: PodFacts, service_env: Mapping[str, str]
) -> tuple[str, ...]:
    """All variables as NAME=value. Raises NotFound for a missing required reference, Invalid for one without the key."""
    defined: dict[str, str] = dict(service_env)
    for source in container.get("envFrom") or ():
        defined.update(_from_source(source, references))
    for item in container.get("env") or ():
        value = _value(item, container, pod, references, facts)
        if value is not None:
            defined[item["name"]] = expand(value, defined) if "valueFrom" not in item else value
    return tuple(f"{name}={value}" for name, value in defined.items())


def expand(text: str, defined: Mapping[str, str]) -> str:
    """Replace $(NAME) where NAME is defined; $$ is a dollar sign; everything else stays as it is."""

    def one(match: re.Match[str]) -> str:
        if match.group(1) == "$":
            return "$"
        name = match.group(2)
        return defined.get(name, match.group(0))

    return _EXPAND.sub(one, text)


def _from_source(source: Resource, references: References) -> dict[str, str]:
    prefix = source.get("prefix", "")
    if reference := source.get("configMapRef"):
        data = _lookup("configmap", references.config_maps, reference)
    elif reference := source.get("secretRef"):
        found = _lookup("secret", references.secrets, reference)
        data = {k: v.decode(errors="replace") for k, v in found.items()} if found is not None else None
    else:
        return {}
    return {prefix + key: value for key, value in (data or {}).items() if _NAME.match(prefix + key)}


def _lookup(kind: str, objects: Mapping[str, Any], reference: Resource) -> Any:
    found = objects.get(reference["name"])
    if found is None and not reference.get("optional"):
        raise NotFound(f'{kind} "{reference["name"]}" not found', kind=kind, name=reference["name"])
    return found


def _value(item: Resource, container: Resource, pod: Resource, references: References, facts: PodFacts) -> str | None:
    source = item.get("valueFrom")
    if not source:
        return str(item.get("value", ""))
    if reference := source.get("configMapKeyRef"):
        plain: str | None = _key("configmap", references.config_maps, reference, pod)
        return plain
    if reference := source.get("secretKeyRef"):
        found = _key("secret", references.secrets, reference, pod)
        return found.decode(errors="replace") if isinstance(found, bytes) else found
    if reference := source.get("fieldRef"):
        return field_value(reference["fieldPath"], pod, facts)
    if reference := source.get("resourceFieldRef"):
        return resource_value(reference, container, pod, facts)
    raise Invalid(
        f"env {item['name']}: valueFrom must name configMapKeyRef, secretKeyRef, fieldRef or resourceFieldRef"
    )


def _key(kind: str, objects: Mapping[str, Any], reference: Resource, pod: Resource) -> Any:
    found = _lookup(kind, objects, reference)
    if found is not None and reference["key"] in found:
        return found[reference["key"]]
    if reference.get("optional"):
        return None
    where = f"{pod['metadata']['namespace']}/{reference['name']}"
    raise Invalid(f"couldn't find key {reference['key']} in {'ConfigMap' if kind == 'configmap' else 'Secret'} {where}")


def field_value(path: str, pod: Resource, facts: PodFacts) -> str:
    """A downward API field. Raises Invalid naming an unknown one."""
    meta, spec = pod["metadata"], pod["spec"]
    simple = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": facts.pod_ip,
        "status.podIPs": facts.pod_ip,
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
    }
    if path in simple:
        return str(simple[path])
    for name in ("labels", "annotations"):
        values = meta.get(name) or {}
        if path == f"metadata.{name}":
            return "\n".join(f'{key}="{_escaped(value)}"' for key, value in sorted(values.items()))
        if path.startswith(f"metadata.{name}['") and path.endswith("']"):
            return str(values.get(path[len(f"metadata.{name}['") : -2], ""))
    raise Invalid(f"fieldRef {path!r} is not a field of the downward API", field="fieldPath")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource_value(reference: Resource, container: Resource, pod: Resource, facts: PodFacts) -> str:
    """A container's own request or limit in units of the divisor, rounded up; the node's amount where no limit is set."""
    wanted = reference.get("containerName")
    if wanted:
        all_of = [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
        container = next((c for c in all_of if c["name"] == wanted), container)
    kind, _, name = str(reference["resource"]).partition(".")
    amounts = (container.get("resources") or {}).get(kind) or {}
    fallback = {"cpu": facts.node_cpu, "memory": facts.node_memory} if kind == "limits" else {}
    amount = parse_quantity(amounts.get(name, fallback.get(name, 0)))
    divisor = parse_quantity(reference.get("divisor") or 1) or parse_quantity(1)
    return str(int(-(-amount // divisor)))
