"""A whole cluster tower without a door: verbs over a memory store, with a namespace to work in."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from insula.errors import Invalid
from insula.kinds import validation
from insula.kinds.registry import Registry
from insula.model.resource import Ref
from insula.store.contract import Store
from insula.store.memory import MemoryStore
from insula.verbs.admission import load
from insula.verbs.request import Request
from insula.verbs.verbs import Verbs

PODS = Ref("", "v1", "pods")
CONFIG_MAPS = Ref("", "v1", "configmaps")
NAMESPACES = Ref("", "v1", "namespaces")
DEPLOYMENTS = Ref("apps", "v1", "deployments")
ANYONE = Request(field_manager="test")

_registry = Registry.builtin()  # what is read and made at first use is read and made outside of any event loop
for _ref in (PODS, CONFIG_MAPS, NAMESPACES, DEPLOYMENTS):
    with suppress(Invalid):
        validation.conform(_registry.by_ref(_ref), {"metadata": {}})
    validation.problems(_registry.by_ref(_ref), {"metadata": {}})


async def make_verbs(store: Store | None = None) -> Verbs:
    """Verbs with all admission steps and the namespace `default`."""
    verbs = Verbs(store or MemoryStore(), Registry.builtin(), admission=load())
    await verbs.create(ANYONE, NAMESPACES, {"metadata": {"name": "default"}})
    return verbs


def config_map(name: str = "", **data: str) -> dict[str, Any]:
    """A small object."""
    return {"metadata": {"name": name} if name else {}, "data": data}


def pod(name: str, **spec: Any) -> dict[str, Any]:
    """A pod of one container."""
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "busybox"}], **spec}}


def deployment(name: str, replicas: int = 1, image: str = "busybox") -> dict[str, Any]:
    """A deployment of one container."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    }
