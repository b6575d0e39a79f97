"""What every cluster has from its first moment: four namespaces and the priority classes of the system."""

from __future__ import annotations

from insula.client.contract import Client
from insula.errors import AlreadyExists, NotFound
from insula.model.resource import Ref, Resource

NAMESPACES = Ref("", "v1", "namespaces")
PRIORITIES = Ref("scheduling.k8s.io", "v1", "priorityclasses")


def objects() -> list[tuple[Ref, Resource]]:
    """The objects, as they are written when they are absent."""
    names = ("default", "kube-system", "kube-public", "kube-node-lease")
    found: list[tuple[Ref, Resource]] = [
        (NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}) for name in names
    ]
    for name, value in (("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)):
        priority = {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": "Used for system critical pods.",
        }
        found.append((PRIORITIES, priority))
    return found


async def first_objects(client: Client) -> None:
    """Write what is missing; objects that are there are left as their owners made them."""
    for ref, obj in objects():
        try:
            await client.get(ref, obj["metadata"]["name"])
        except NotFound:
            try:
                await client.create(ref, obj)
            except AlreadyExists:
                continue
