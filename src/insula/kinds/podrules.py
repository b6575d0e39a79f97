"""What makes a pod or pod template invalid beyond its schema. Pure.

Source: Kubernetes `pkg/apis/core/validation`; the rules that people meet, in its words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.model.quantity import parse_quantity
from insula.model.resource import Resource

_RESTART = ("Always", "OnFailure", "Never")
_DNS = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_PULL = ("Always", "IfNotPresent", "Never")
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_MESSAGE_POLICIES = ("File", "FallbackToLogsOnError")
_ACTIONS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_NOT_IN_INIT = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle")


def spec(value: Mapping[str, Any], path: str) -> list[Cause]:
    """A pod's or template's spec."""
    found = rules.one_of(f"{path}.restartPolicy", value.get("restartPolicy"), _RESTART)
    found += rules.one_of(f"{path}.dnsPolicy", value.get("dnsPolicy"), _DNS)
    found += rules.non_negative(f"{path}.terminationGracePeriodSeconds", value.get("terminationGracePeriodSeconds"))
    if (deadline := value.get("activeDeadlineSeconds")) is not None and deadline < 1:
        found.append(
            rules.invalid(f"{path}.activeDeadlineSeconds", deadline, "must be between 1 and 2147483647, inclusive")
        )
    for name in ("nodeName", "serviceAccountName"):
        if value.get(name):
            found += rules.dns_subdomain(f"{path}.{name}", value[name])
    for name in ("hostname", "subdomain"):
        if value.get(name):
            found += rules.dns_label(f"{path}.{name}", value[name])
    found += rules.labels(f"{path}.nodeSelector", value.get("nodeSelector"))
    volumes, faults = _volumes(value.get("volumes") or (), f"{path}.volumes")
    return (
        found
        + faults
        + _all_containers(value, path, volumes)
        + _tolerations(value.get("tolerations"), f"{path}.tolerations")
    )


def _volumes(volumes: Iterable[Mapping[str, Any]], path: str) -> tuple[set[str], list[Cause]]:
    names: set[str] = set()
    found: list[Cause] = []
    for index, volume in enumerate(volumes):
        where, name = f"{path}[{index}]", volume.get("name")
        faults = rules.dns_label(f"{where}.name", name)
        if not faults and name in names:
            faults = [rules.duplicate(f"{where}.name", name)]
        names.add(name or "")
        sources = [word for word, source in volume.items() if word != "name" and source is not None]
        faults += [
            rules.forbidden(f"{where}.{extra}", "may not specify more than 1 volume type") for extra in sources[1:]
        ]
        found += faults + _volume_source(volume, where)
    return names, found


def _volume_source(volume: Mapping[str, Any], path: str) -> list[Cause]:
    match volume:
        case {"hostPath": {"path": str(text)}}:
            if not text:
                return [rules.required(f"{path}.hostPath.path")]
            if ".." in text.split("/"):
                return [rules.invalid(f"{path}.hostPath.path", text, "must not contain '..'")]
        case {"secret": dict(source)} if not source.get("secretName"):
            return [rules.required(f"{path}.secret.secretName")]
        case {"configMap": dict(source)} if not source.get("name"):
            return [rules.required(f"{path}.configMap.name")]
        case {"persistentVolumeClaim": dict(source)} if not source.get("claimName"):
            return [rules.required(f"{path}.persistentVolumeClaim.claimName")]
    return []


def _all_containers(value: Mapping[str, Any], path: str, volumes: set[str]) -> list[Cause]:
    found: list[Cause] = []
    names: set[str] = set()
    if not value.get("containers"):
        found.append(rules.required(f"{path}.containers"))
    for field in ("containers", "initContainers", "ephemeralContainers"):
        for index, one in enumerate(value.get(field) or ()):
            where = f"{path}.{field}[{index}]"
            found += _container(one, where, volumes, field)
            if one.get("name") in names:
                found.append(rules.duplicate(f"{where}.name", one.get("name")))
            names.add(one.get("name") or "")
    return found + _host_ports(value, path)


def _host_ports(value: Mapping[str, Any], path: str) -> list[Cause]:
    taken: set[tuple[Any, ...]] = set()
    found = []
    for index, one in enumerate(value.get("containers") or ()):
        for at, port in enumerate(one.get("ports") or ()):
            where = f"{path}.containers[{index}].ports[{at}]"
            if not (number := port.get("hostPort")):
                continue
            if value.get("hostNetwork") and number != port.get("containerPort"):
                found.append(
                    rules.invalid(
                        f"{where}.containerPort",
                        port.get("containerPort"),
                        "must match `hostPort` when `hostNetwork` is true",
                    )
                )
            key = (number, port.get("protocol", "TCP"), port.get("hostIP", ""))
            if key in taken:
                found.append(rules.duplicate(f"{where}.hostPort", f"{number}/{key[1]}"))
            taken.add(key)
    return found


def _container(one: Mapping[str, Any], path: str, volumes: set[str], field: str) -> list[Cause]:
    found = rules.dns_label(f"{path}.name", one.get("name"))
    image = one.get("image")
    if not image:
        found.append(rules.required(f"{path}.image"))
    elif image != image.strip():
        found.append(rules.invalid(f"{path}.image", image, "must not have leading or trailing whitespace"))
    found += rules.one_of(f"{path}.imagePullPolicy", one.get("imagePullPolicy"), _PULL)
    found += rules.one_of(f"{path}.terminationMessagePolicy", one.get("terminationMessagePolicy"), _MESSAGE_POLICIES)
    found += _ports(one.get("ports") or (), f"{path}.ports") + _env(one, path) + _mounts(one, path, volumes)
    found += _resources(one.get("resources") or {}, f"{path}.resources")
    if field == "initContainers" and one.get("restartPolicy") != "Always":
        found += [
            rules.forbidden(f"{path}.{word}", "may not be set for init containers without restartPolicy=Always")
            for word in _NOT_IN_INIT
            if one.get(word)
        ]
        return found
    if field == "ephemeralContainers":
        found += [
            rules.forbidden(f"{path}.{word}", "cannot be set for an Ephemeral Container")
            for word in (*_NOT_IN_INIT, "ports")
            if one.get(word)
        ]
    return found + _probes(one, path)


def _ports(ports: Iterable[Mapping[str, Any]], path: str) -> list[Cause]:
    found: list[Cause] = []
    names: set[str] = set()
    for index, port in enumerate(ports):
        where = f"{path}[{index}]"
        if name := port.get("name"):
            found += rules.port_name(f"{where}.name", name)
            if name in names:
                found.append(rules.duplicate(f"{where}.name", name))
            names.add(name)
        if not port.get("containerPort"):
            found.append(rules.required(f"{where}.containerPort"))
        else:
            found += rules.port_number(f"{where}.containerPort", port["containerPort"])
        if port.get("hostPort"):
            found += rules.port_number(f"{where}.hostPort", port["hostPort"])
        found += rules.one_of(f"{where}.protocol", port.get("protocol"), _PROTOCOLS)
    return found


def _env(one: Mapping[str, Any], path: str) -> list[Cause]:
    found: list[Cause] = []
    for index, variable in enumerate(one.get("env") or ()):
        where = f"{path}.env[{index}]"
        found += rules.env_name(f"{where}.name", variable.get("name"))
        source = variable.get("valueFrom")
        if source is None:
            continue
        if variable.get("value"):
            found.append(rules.invalid(f"{where}.valueFrom", "", "may not be specified when `value` is not empty"))
        given = [word for word, value in source.items() if value is not None]
        if not given:
            found.append(
                rules.invalid(
                    f"{where}.valueFrom",
                    "",
                    "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
                )
            )
        elif len(given) > 1:
            found.append(
                rules.invalid(f"{where}.valueFrom", "", "may not have more than one field specified at a time")
            )
    return found


def _mounts(one: Mapping[str, Any], path: str, volumes: set[str]) -> list[Cause]:
    found: list[Cause] = []
    targets: set[str] = set()
    for index, mount in enumerate(one.get("volumeMounts") or ()):
        where, name, target = f"{path}.volumeMounts[{index}]", mount.get("name"), mount.get("mountPath")
        if not name:
            found.append(rules.required(f"{where}.name"))
        elif name not in volumes:
            found.append(rules.not_found(f"{where}.name", name))
        if not target:
            found.append(rules.required(f"{where}.mountPath"))
        elif target in targets:
            found.append(rules.invalid(f"{where}.mountPath", target, "must be unique"))
        targets.add(target or "")
        sub = mount.get("subPath")
        if sub and (sub.startswith("/") or ".." in sub.split("/")):
            found.append(rules.invalid(f"{where}.subPath", sub, "must be a relative path that does not contain '..'"))
    return found


def _resources(resources: Mapping[str, Any], path: str) -> list[Cause]:
    found: list[Cause] = []
    limits = resources.get("limits") or {}
    for field in ("limits", "requests"):
        for name, value in (resources.get(field) or {}).items():
            where, amount = f"{path}.{field}[{name}]", parse_quantity(value)
            if amount < 0:
                found.append(rules.invalid(where, str(value), "must be greater than or equal to 0"))
            limit = parse_quantity(limits[name]) if field == "requests" and name in limits else None
            if limit is not None and amount > limit:
                found.append(
                    rules.invalid(
                        f"{path}.requests", str(value), f"must be less than or equal to {name} limit of {limits[name]}"
                    )
                )
    return found


def _probes(one: Mapping[str, Any], path: str) -> list[Cause]:
    found: list[Cause] = []
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if (probe := one.get(name)) is None:
            continue
        where = f"{path}.{name}"
        found += _action(probe, where)
        for word in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
            found += rules.non_negative(f"{where}.{word}", probe.get(word))
        if name != "readinessProbe" and probe.get("successThreshold", 1) != 1:
            found.append(rules.invalid(f"{where}.successThreshold", probe["successThreshold"], "must be 1"))
    for name in ("postStart", "preStop"):
        if (hook := (one.get("lifecycle") or {}).get(name)) is not None:
            found += _action(hook, f"{path}.lifecycle.{name}")
    return found


def _action(owner: Mapping[str, Any], path: str) -> list[Cause]:
    given = [word for word in _ACTIONS if owner.get(word) is not None]
    if not given:
        return [rules.required(path, "must specify a handler type")]
    if len(given) > 1:
        return [rules.forbidden(f"{path}.{given[1]}", "may not specify more than 1 handler type")]
    action, where = owner[given[0]], f"{path}.{given[0]}"
    if given[0] == "exec" and not action.get("command"):
        return [rules.required(f"{where}.command")]
    if given[0] in ("httpGet", "tcpSocket", "grpc"):
        return rules.port(f"{where}.port", action.get("port"))
    return []


def _tolerations(values: Iterable[Mapping[str, Any]] | None, path: str) -> list[Cause]:
    found: list[Cause] = []
    for index, each in enumerate(values or ()):
        where = f"{path}[{index}]"
        found += rules.one_of(f"{where}.operator", each.get("operator") or None, ("Exists", "Equal", "Gt", "Lt"))
        found += rules.one_of(f"{where}.effect", each.get("effect") or None, _EFFECTS)
        if not each.get("key") and (each.get("operator") or "Equal") != "Exists":
            found.append(
                rules.invalid(
                    f"{where}.operator",
                    each.get("operator", ""),
                    'operator must be Exists when `key` is empty, which means "match all values and all keys"',
                )
            )
        if each.get("tolerationSeconds") is not None and each.get("effect") != "NoExecute":
            found.append(
                rules.invalid(
                    f"{where}.effect",
                    each.get("effect", ""),
                    "effect must be 'NoExecute' when `tolerationSeconds` is set",
                )
            )
    return found


# --- updates -----------------------------------------------------------------------------------------------------------

_UPDATE_SAYS = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
_OWNED_ELSEWHERE = ("activeDeadlineSeconds", "tolerations", "ephemeralContainers", "schedulingGates", "nodeName")


def update(new: Resource, old: Resource) -> list[Cause]:
    """What a write to the pod itself may not change."""
    fresh, before = new["spec"], old["spec"]
    found: list[Cause] = []
    if _frozen(fresh) != _frozen(before):
        found.append(Cause("spec", "FieldValueForbidden", f"Forbidden: {_UPDATE_SAYS}"))
    if before.get("nodeName") and fresh.get("nodeName") != before["nodeName"]:
        found.append(Cause("spec", "FieldValueForbidden", f"Forbidden: {_UPDATE_SAYS}"))
    have = [_keyed(each) for each in fresh.get("tolerations") or ()]
    if any(_keyed(each) not in have for each in before.get("tolerations") or ()):
        found.append(
            rules.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")
        )
    gates = {each.get("name") for each in before.get("schedulingGates") or ()}
    for index, gate in enumerate(fresh.get("schedulingGates") or ()):
        if gate.get("name") not in gates:
            found.append(
                rules.forbidden(
                    f"spec.schedulingGates[{index}].name", "only deletion is allowed, but found new scheduling gate"
                )
            )
    return found


def _keyed(toleration: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(toleration.get(word) or "" for word in ("key", "operator", "value", "effect"))


def _frozen(spec: Mapping[str, Any]) -> dict[str, Any]:
    kept = {word: value for word, value in spec.items() if word not in _OWNED_ELSEWHERE}
    for field in ("containers", "initContainers"):
        if field in kept:
            kept[field] = [
                {word: value for word, value in one.items() if word not in ("image", "resources", "resizePolicy")}
                for one in kept[field] or ()
            ]
    return kept
