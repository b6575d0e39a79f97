"""What the parts of the agent share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from insula.agent.podenv import PodFacts
from insula.client.contract import Client
from insula.control.events import Recorder
from insula.control.shared import SharedCaches
from insula.engine.contract import Engine
from insula.model.resource import Ref, Resource

PODS = Ref("", "v1", "pods")
NODES = Ref("", "v1", "nodes")
CONFIG_MAPS = Ref("", "v1", "configmaps")
SECRETS = Ref("", "v1", "secrets")
SERVICE_ACCOUNTS = Ref("", "v1", "serviceaccounts")
RUNTIME_CLASSES = Ref("node.k8s.io", "v1", "runtimeclasses")
NAMESPACES = Ref("", "v1", "namespaces")
MACHINES = Ref("kubevirt.io", "v1", "virtualmachineinstances")
COMPONENT = "insula-agent"


@dataclass(frozen=True, kw_only=True)
class Services:
    """One node's agent in plain words: its name and address, the API, the engine, a folder of its own. `service_env` is where
    containers find the API server."""

    node: str
    address: str
    client: Client
    caches: SharedCaches
    engine: Engine
    folder: Path
    facts: PodFacts = field(default_factory=PodFacts)
    service_env: dict[str, str] = field(default_factory=dict)
    events: Recorder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", Recorder(self.client, COMPONENT, host=self.node))

    def pod_folder(self, uid: str) -> Path:
        """Where a pod's volumes live."""
        return self.folder / "pods" / uid

    def record(self, obj: Resource, reason: str, message: str, kind: str = "Normal") -> None:
        """Write an Event about an object, in the background."""
        self.events.record(obj, reason, message, kind)
