"""What there is to ask for: groups, versions and resources, in the old form (one document each) and the aggregated one.

Source: `meta/v1` APIGroupList and APIResourceList; `apidiscovery.k8s.io/v2` APIGroupDiscoveryList. Documents are made once per
generation of the registry and carry an ETag.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from insula.api.kube.answers import encode, respond
from insula.api.kube.negotiate import parse
from insula.errors import NotFound
from insula.kinds.kind import Kind
from insula.kinds.registry import Registry

AGGREGATED = "apidiscovery.k8s.io"
_PART = ("get", "patch", "update")
_STREAM = ("create", "get")
_PROXY = ("create", "delete", "get", "patch", "update")
# subresource → (group, version, kind) that it answers with (empty: the resource's own), verbs
_SUBRESOURCES: dict[str, tuple[tuple[str, str, str] | None, Sequence[str]]] = {
    "status": (None, _PART),
    "scale": (("autoscaling", "v1", "Scale"), _PART),
    "approval": (None, _PART),
    "finalize": (None, ("update",)),
    "binding": (("", "v1", "Binding"), ("create",)),
    "eviction": (("policy", "v1", "Eviction"), ("create",)),
    "token": (("authentication.k8s.io", "v1", "TokenRequest"), ("create",)),
    "ephemeralcontainers": (None, _PART),
    "resize": (None, _PART),
    "log": (None, ("get",)),
    "attach": (("", "v1", "PodAttachOptions"), _STREAM),
    "exec": (("", "v1", "PodExecOptions"), _STREAM),
    "portforward": (("", "v1", "PodPortForwardOptions"), _STREAM),
    "proxy": (("", "v1", "ProxyOptions"), _PROXY),
}


def subresource_facts(kind: Kind, sub: str) -> tuple[tuple[str, str, str], Sequence[str]]:
    """The kind that a subresource answers with and its verbs."""
    answer, verbs = _SUBRESOURCES.get(sub, (None, ("get",)))
    if sub == "proxy":
        answer = ("", "v1", f"{kind.kind}ProxyOptions")
    return answer or (kind.ref.group, kind.ref.version, kind.kind), verbs


def wants_aggregated(accept: str) -> str:
    """The version of the aggregated form that a client prefers over the old one; empty for the old."""
    for media in parse(accept):
        parameters = media.parameters
        if parameters.get("as") == "APIGroupDiscoveryList" and parameters.get("g") == AGGREGATED:
            if parameters.get("v") in ("v2", "v2beta1"):
                return parameters["v"]
        elif media.type in ("application/json", "*/*", "application/*") and not parameters.get("as"):
            return ""
    return ""


class Discovery:
    """The documents of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._generation = -1
        self._kept: dict[str, tuple[bytes, str]] = {}

    async def answer(self, request: web.Request, path: str) -> web.StreamResponse:
        """Answer one of the discovery paths. Raises NotFound."""
        version = wants_aggregated(request.headers.get("Accept", "")) if path in ("/api", "/apis") else ""
        body, tag = self._document(path, version, request.host)
        if version:
            kind = f"application/json;g={AGGREGATED};v={version};as=APIGroupDiscoveryList"
            if request.headers.get("If-None-Match", "").strip('"') == tag:
                return web.Response(status=304, headers={"ETag": f'"{tag}"'})
            response = await respond(request, body, content_type=kind)
            response.headers["ETag"] = f'"{tag}"'
        else:
            response = await respond(request, body)
        response.headers["Vary"] = "Accept"
        return response

    def _document(self, path: str, version: str, host: str) -> tuple[bytes, str]:
        if self._generation != self._registry.generation:
            self._kept.clear()
            self._generation = self._registry.generation
        key = f"{version} {path}" + (host if path == "/api" and not version else "")
        known = self._kept.get(key)
        if known is None:
            made = self.aggregated(path, version) if version else self.legacy(path, host)
            body = encode(made) + b"\n"
            known = (body, hashlib.sha256(body).hexdigest())
            if len(self._kept) < 256:
                self._kept[key] = known
        return known

    # --- the old form -------------------------------------------------------------------------------------------------

    def legacy(self, path: str, host: str = "") -> dict[str, Any]:
        """The document at a path of the old form. Raises NotFound."""
        match path.strip("/").split("/"):
            case ["api"]:
                address = {"clientCIDR": "0.0.0.0/0", "serverAddress": host}
                return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [address]}
            case ["apis"]:
                groups = [self._group(name) for name in self._registry.groups() if name]
                return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
            case ["apis", group] if group in self._registry.groups():
                return {"kind": "APIGroup", "apiVersion": "v1", **self._group(group)}
            case ["api", version]:
                return self._resources("", version)
            case ["apis", group, version]:
                return self._resources(group, version)
        raise NotFound("the server could not find the requested resource")

    def _group(self, group: str) -> dict[str, Any]:
        versions = [
            {"groupVersion": f"{group}/{version}", "version": version} for version in self._registry.groups()[group]
        ]
        return {"name": group, "versions": versions, "preferredVersion": versions[0]}

    def _resources(self, group: str, version: str) -> dict[str, Any]:
        kinds = self._registry.in_version(group, version)
        if not kinds:
            raise NotFound("the server could not find the requested resource")
        listed: list[dict[str, Any]] = []
        for kind in sorted(kinds, key=lambda each: each.ref.plural):
            listed.append(_resource(kind))
            listed += [_subresource(kind, sub) for sub in sorted(kind.subresources)]
        name = f"{group}/{version}" if group else version
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": listed}

    # --- the aggregated form ------------------------------------------------------------------------------------------

    def aggregated(self, path: str, version: str) -> dict[str, Any]:
        """All groups of `/api` or `/apis` in one document."""
        names = [name for name in self._registry.groups() if bool(name) == (path == "/apis")]
        return {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": f"{AGGREGATED}/{version}",
            "metadata": {},
            "items": [self._aggregated_group(name) for name in names],
        }

    def _aggregated_group(self, group: str) -> dict[str, Any]:
        versions = [
            {
                "version": version,
                "freshness": "Current",
                "resources": [
                    _aggregated_resource(kind)
                    for kind in sorted(self._registry.in_version(group, version), key=lambda each: each.ref.plural)
                ],
            }
            for version in self._registry.groups()[group]
        ]
        return {"metadata": {"name": group} if group else {}, "versions": versions}


def _resource(kind: Kind) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": kind.ref.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": sorted(kind.verbs),
    }
    if kind.short_names:
        out["shortNames"] = list(kind.short_names)
    if kind.categories:
        out["categories"] = list(kind.categories)
    return out


def _subresource(kind: Kind, sub: str) -> dict[str, Any]:
    (group, version, name), verbs = subresource_facts(kind, sub)
    out: dict[str, Any] = {
        "name": f"{kind.ref.plural}/{sub}",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": name,
        "verbs": list(verbs),
    }
    if (group, version) != (kind.ref.group, kind.ref.version):
        out |= {"group": group, "version": version}
    return out


def _aggregated_resource(kind: Kind) -> dict[str, Any]:
    out: dict[str, Any] = {
        "resource": kind.ref.plural,
        "responseKind": {"group": kind.ref.group, "version": kind.ref.version, "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": sorted(kind.verbs),
    }
    if kind.short_names:
        out["shortNames"] = list(kind.short_names)
    if kind.categories:
        out["categories"] = list(kind.categories)
    if kind.subresources:
        out["subresources"] = [_aggregated_subresource(kind, sub) for sub in sorted(kind.subresources)]
    return out


def _aggregated_subresource(kind: Kind, sub: str) -> dict[str, Any]:
    (group, version, name), verbs = subresource_facts(kind, sub)
    return {
        "subresource": sub,
        "responseKind": {"group": group, "version": version, "kind": name},
        "verbs": list(verbs),
    }
