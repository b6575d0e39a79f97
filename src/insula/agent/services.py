"""What the parts of the agent share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from insula import clock
from insula.agent.podenv import PodFacts
from insula.client.contract import Client
from insula.control.shared import SharedCaches
from insula.engine.contract import Engine
from insula.errors import InsulaError
from insula.model.resource import Ref, Resource

PODS = Ref("", "v1", "pods")
NODES = Ref("", "v1", "nodes")
EVENTS = Ref("", "v1", "events")
CONFIG_MAPS = Ref("", "v1", "configmaps")
SECRETS = Ref("", "v1", "secrets")
SERVICE_ACCOUNTS = Ref("", "v1", "serviceaccounts")
NAMESPACES = Ref("", "v1", "namespaces")
MACHINES = Ref("kubevirt.io", "v1", "virtualmachineinstances")
COMPONENT = "insula-agent"


@dataclass(frozen=True, kw_only=True)
class Services:
    """One node's agent in plain words: its name and address, the API, the engine, a folder of its own."""

    node: str
    address: str
    client: Client
    caches: SharedCaches
    engine: Engine
    folder: Path
    facts: PodFacts = field(default_factory=PodFacts)
    service_env: dict[str, str] = field(default_factory=dict)

    def pod_folder(self, uid: str) -> Path:
        """Where a pod's volumes live."""
        return self.folder / "pods" / uid

    async def record(self, obj: Resource, reason: str, message: str, kind: str = "Normal") -> None:
        """Write an Event about an object; an API that is away loses it, as events may be lost."""
        meta, now = obj["metadata"], clock.rfc3339(clock.now())
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta['name'][:200]}.", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": obj["apiVersion"],
                "kind": obj["kind"],
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "reason": reason,
            "message": message[:1024],
            "type": kind,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": COMPONENT, "host": self.node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self.node,
        }
        try:
            await self.client.create(EVENTS, event, meta["namespace"])
        except InsulaError:
            return
