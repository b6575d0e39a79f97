"""Discovery and version of the group subresources.kubevirt.io."""

from __future__ import annotations

from typing import Any

GROUP = "subresources.kubevirt.io"
VERSIONS = ("v1", "v1alpha3")
KUBEVIRT = "v1.9.0"


def group() -> dict[str, Any]:
    """The APIGroup."""
    versions = [{"groupVersion": f"{GROUP}/{version}", "version": version} for version in VERSIONS]
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": GROUP,
        "versions": versions,
        "preferredVersion": versions[0],
    }


def resources(version: str, routes: list[tuple[str, str]]) -> dict[str, Any]:
    """The APIResourceList of one version. `routes`: resource path (`virtualmachines/start`) and verb."""
    found = [
        {"name": name, "singularName": "", "namespaced": True, "kind": "", "verbs": [verb]} for name, verb in routes
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{version}", "resources": found}


def version(insula: str) -> dict[str, str]:
    """What `virtctl version` shows: the level of the API, and that this is Insula."""
    return {
        "gitVersion": f"{KUBEVIRT}+insula.{insula}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "",
        "platform": "linux/amd64",
    }
