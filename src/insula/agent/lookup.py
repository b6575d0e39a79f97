"""From the API's names to this node's instances, for the endpoint of byte streams."""

from __future__ import annotations

from insula.agent.machinespec import LABEL_MACHINE, LABEL_MACHINE_NAMESPACE
from insula.agent.pods import MIRROR
from insula.agent.podspec import LABEL_ATTEMPT, LABEL_CONTAINER, LABEL_NAMESPACE, LABEL_POD
from insula.agent.services import PODS, Services
from insula.engine.contract import Instance
from insula.errors import Invalid, NotFound


async def attempts(services: Services, namespace: str, pod: str, container: str) -> list[Instance]:
    """A container's instances, newest first. A mirror Pod's single container is the instance that it mirrors.
    Raises NotFound, Invalid with the kubelet's sentences."""
    obj = services.caches.get(PODS, pod, namespace)
    if obj is None:
        raise NotFound(f'pods "{pod}" not found', kind="pods", name=pod)
    if mirrored := (obj["metadata"].get("annotations") or {}).get(MIRROR):
        return [await services.engine.get(mirrored)]
    spec = obj["spec"]
    names = [
        c["name"] for part in ("containers", "initContainers", "ephemeralContainers") for c in spec.get(part) or ()
    ]
    if container not in names:
        raise Invalid(f"container {container} is not valid for pod {pod}; it has {', '.join(names)}", field="container")
    wanted = {LABEL_POD: pod, LABEL_NAMESPACE: namespace, LABEL_CONTAINER: container}
    found = [i for i in await services.engine.list() if wanted.items() <= i.config.labels.items()]
    return sorted(found, key=lambda i: int(i.config.labels.get(LABEL_ATTEMPT, 0)), reverse=True)


async def running(services: Services, namespace: str, pod: str, container: str) -> Instance:
    """The container's running instance. Raises NotFound when it does not run."""
    for instance in await attempts(services, namespace, pod, container):
        if instance.state.name in ("running", "paused"):
            return instance
    raise NotFound(f"container not found: {container} in pod {pod}_{namespace} is not running")


async def machine(services: Services, namespace: str, name: str) -> Instance:
    """The running instance of a VirtualMachineInstance. Raises NotFound, Invalid when it does not run."""
    wanted = {LABEL_MACHINE: name, LABEL_MACHINE_NAMESPACE: namespace}
    for instance in await services.engine.list():
        if wanted.items() <= instance.config.labels.items() and instance.state.name in ("running", "paused"):
            return instance
    raise NotFound(f'virtualmachineinstances "{name}" is not running', kind="virtualmachineinstances", name=name)
