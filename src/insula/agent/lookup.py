"""From the API's names to this node's instances, for the endpoint of byte streams."""

from __future__ import annotations

from insula.agent.machinespec import LABEL_MACHINE, LABEL_MACHINE_NAMESPACE
from insula.agent.mirror import mirrors
from insula.agent.pods import MIRROR
from insula.agent.podspec import LABEL_ATTEMPT, LABEL_CONTAINER, LABEL_UID, sandbox_id
from insula.agent.podview import all_containers
from insula.agent.services import PODS, Services
from insula.engine.contract import Instance
from insula.errors import Conflict, Invalid, NotFound
from insula.model.resource import Resource


async def attempts(services: Services, namespace: str, pod: str, container: str) -> list[Instance]:
    """A container's instances, newest first. A mirror Pod's single container is the instance that it mirrors.
    Raises NotFound, Invalid with the kubelet's sentences."""
    obj = pod_here(services, namespace, pod)
    if MIRROR in (obj["metadata"].get("annotations") or {}):
        return [await _mirrored(services, obj)]
    names = [found["name"] for found in all_containers(obj)]
    if container not in names:
        raise Invalid(f"container {container} is not valid for pod {pod}; it has {', '.join(names)}", field="container")
    wanted = {LABEL_UID: obj["metadata"]["uid"], LABEL_CONTAINER: container}
    found = [i for i in await services.engine.list() if wanted.items() <= i.config.labels.items()]
    return sorted(found, key=lambda i: int(i.config.labels.get(LABEL_ATTEMPT, 0)), reverse=True)


def pod_here(services: Services, namespace: str, name: str) -> Resource:
    """A pod of this node. Raises NotFound."""
    obj = services.caches.get(PODS, name, namespace)
    if obj is None or obj["spec"].get("nodeName") != services.node:
        raise NotFound(f'pods "{name}" not found', kind="pods", name=name)
    return obj


async def _mirrored(services: Services, obj: Resource) -> Instance:
    name = obj["metadata"]["name"]
    instance = await services.engine.get(obj["metadata"]["annotations"][MIRROR])
    if not mirrors(obj, instance, services.node):
        raise NotFound(f'pod "{name}" mirrors no container of this node', kind="pods", name=name)
    return instance


async def network(services: Services, namespace: str, pod: str) -> tuple[str, str]:
    """(network namespace, address): the pod's sandbox; for a mirrored container its address alone; for what uses the host's
    network the host's. Raises NotFound, Conflict when there is none now."""
    obj = pod_here(services, namespace, pod)
    if MIRROR in (obj["metadata"].get("annotations") or {}):
        instance = await _mirrored(services, obj)
        if instance.config.network_mode == "host":
            return "", "127.0.0.1"
        address = next((endpoint.address for endpoint in instance.endpoints if endpoint.address), "")
        if not address:
            raise Conflict(f"container {instance.config.name} has no address that could be reached")
        return "", address
    try:
        sandbox = await services.engine.get_sandbox(sandbox_id(obj))
    except NotFound:
        raise Conflict(f"pod {pod} does not run; its ports cannot be reached") from None
    return sandbox.netns, "127.0.0.1"


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
