"""Defaults of pods and pod templates, as kube-apiserver fills them in.

Source: Kubernetes `pkg/apis/core/v1/defaults.go`. Two functions: `template` for what every pod spec gets, `pod` for what only a
Pod itself gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MODE = 0o644
_VOLUME_MODES = ("secret", "configMap", "downwardAPI", "projected")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_PROBE_DEFAULTS = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
Spec = dict[str, Any]


def containers(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every container of a pod spec: init, main, ephemeral."""
    for field in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(field) or ()


def pull_policy(image: str) -> str:
    """Always for `latest` or no tag, else IfNotPresent; a digest counts as a tag."""
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return "Always" if not digest and tag in ("", "latest") else "IfNotPresent"


def template(owner: dict[str, Any]) -> None:
    """Fill in the `spec` of a pod or of a pod template, in place."""
    spec = owner.get("spec")
    if not isinstance(spec, dict):
        return
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    if spec.get("securityContext") is None:
        spec["securityContext"] = {}
    _service_account(spec)
    for each in containers(spec):
        container(each)
    if spec.get("hostNetwork"):
        for each in containers(spec):
            for port in each.get("ports") or ():
                if not port.get("hostPort") and port.get("containerPort"):
                    port["hostPort"] = port["containerPort"]
    for volume in spec.get("volumes") or ():
        _volume(volume)


def _service_account(spec: Spec) -> None:
    name = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if name:
        spec["serviceAccountName"] = spec["serviceAccount"] = name


def container(one: dict[str, Any]) -> None:
    """Fill in one container, in place."""
    if one.get("image"):
        one.setdefault("imagePullPolicy", pull_policy(one["image"]))
    one.setdefault("terminationMessagePath", "/dev/termination-log")
    one.setdefault("terminationMessagePolicy", "File")
    if one.get("resources") is None:
        one["resources"] = {}
    for port in one.get("ports") or ():
        port.setdefault("protocol", "TCP")
    for variable in one.get("env") or ():
        source = variable.get("valueFrom") or {}
        if isinstance(source.get("fieldRef"), dict):
            source["fieldRef"].setdefault("apiVersion", "v1")
        if isinstance(source.get("resourceFieldRef"), dict):
            source["resourceFieldRef"].setdefault("divisor", "0")
    for name in _PROBES:
        if isinstance(probe := one.get(name), dict):
            for word, value in _PROBE_DEFAULTS.items():
                if not probe.get(word):
                    probe[word] = value
            _http(probe.get("httpGet"))
            if isinstance(probe.get("grpc"), dict):
                probe["grpc"].setdefault("service", "")
    for hook in ("postStart", "preStop"):
        _http(((one.get("lifecycle") or {}).get(hook) or {}).get("httpGet"))


def _http(action: Any) -> None:
    if isinstance(action, dict):
        action.setdefault("path", "/")
        action.setdefault("scheme", "HTTP")


def _volume(volume: dict[str, Any]) -> None:
    if not any(value is not None for name, value in volume.items() if name != "name"):
        volume["emptyDir"] = {}
    for name in _VOLUME_MODES:
        if isinstance(source := volume.get(name), dict):
            source.setdefault("defaultMode", _MODE)
    if isinstance(path := volume.get("hostPath"), dict):
        path.setdefault("type", "")
    _field_refs((volume.get("downwardAPI") or {}).get("items"))
    for source in (volume.get("projected") or {}).get("sources") or ():
        if isinstance(token := source.get("serviceAccountToken"), dict):
            token.setdefault("expirationSeconds", 3600)
        _field_refs((source.get("downwardAPI") or {}).get("items"))
    claim = ((volume.get("ephemeral") or {}).get("volumeClaimTemplate") or {}).get("spec")
    if isinstance(claim, dict):
        claim.setdefault("volumeMode", "Filesystem")
    if isinstance(image := volume.get("image"), dict) and image.get("reference"):
        image.setdefault("pullPolicy", pull_policy(image["reference"]))


def _field_refs(items: Any) -> None:
    for item in items or ():
        if isinstance(item.get("fieldRef"), dict):
            item["fieldRef"].setdefault("apiVersion", "v1")


def pod(obj: dict[str, Any]) -> None:
    """Fill in a Pod, in place."""
    template(obj)
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    spec.setdefault("enableServiceLinks", True)
    for each in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        resources = each.get("resources") or {}
        for name, value in (resources.get("limits") or {}).items():
            requests = resources.get("requests")
            if requests is None:
                requests = resources["requests"] = {}
            requests.setdefault(name, value)


# --- what the API server computes --------------------------------------------------------------------------------------

_COUNTED = ("cpu", "memory")


def qos_class(spec: Mapping[str, Any]) -> str:
    """Guaranteed, Burstable or BestEffort, from the containers' cpu and memory."""
    requests: dict[str, Any] = {}
    guaranteed, any_set = True, False
    for each in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        resources = each.get("resources") or {}
        limits, wanted = resources.get("limits") or {}, resources.get("requests") or {}
        for name in _COUNTED:
            limit, request = limits.get(name), wanted.get(name, limits.get(name))
            any_set = any_set or limit is not None or request is not None
            if limit is None or str(limit) != str(request):
                guaranteed = False
        requests |= wanted
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"
