"""What the `insula vm` commands ask of the doors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from insula.cli import machines
from insula.cli.paths import Paths
from insula.errors import Conflict, NotFound

if TYPE_CHECKING:
    from insula.cli.doors import Door

WAIT_S = 300.0
MACHINES, INSTANCES = "virtualmachines", "virtualmachineinstances"


def collection(kind: str, namespace: str) -> str:
    """The path of all objects of a KubeVirt kind in a namespace; all namespaces when that is empty."""
    return f"{machines.GROUP}/namespaces/{namespace}/{kind}" if namespace else f"{machines.GROUP}/{kind}"


def subresource(kind: str, name: str, namespace: str, verb: str) -> str:
    """The path of a verb of KubeVirt's, such as start or console."""
    return f"{machines.SUBRESOURCES}/namespaces/{namespace}/{kind}/{name}/{verb}"


async def labelled(paths: Paths, image: str) -> machines.Boot:
    """How an image that is here wants to be started; one that is not here is taken for a disk."""
    from insula.cli import doors  # late: an HTTP client takes longer to import than all else here

    async with doors.docker(paths) as door:
        try:
            found = await door.call("GET", f"/images/{quote(image, safe='')}/json")
        except NotFound:
            return machines.Boot()
        return machines.boot_of((found.get("Config") or {}).get("Labels") or {})


async def create(door: Door, wish: machines.Wish) -> dict[str, Any]:
    """Make the Secret first, for the machine needs it at once; then hand it to the machine, to be deleted with it."""
    secrets = f"/api/v1/namespaces/{wish.namespace}/secrets"
    if machines.has_secret(wish):
        await door.call("POST", secrets, machines.secret(wish))
    own = f"{secrets}/{machines.secret_name(wish.name)}"
    try:
        made: dict[str, Any] = await door.call("POST", collection(MACHINES, wish.namespace), machines.machine(wish))
    except BaseException:
        if machines.has_secret(wish):
            await door.call("DELETE", own)
        raise
    if machines.has_secret(wish):
        merge = {"Content-Type": "application/merge-patch+json"}
        await door.call("PATCH", own, machines.owned_by(made), headers=merge)
    return made


async def get(door: Door, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
    """One object, None where there is none."""
    try:
        found: dict[str, Any] = await door.call("GET", f"{collection(kind, namespace)}/{name}")
    except NotFound:
        return None
    return found


async def until_running(door: Door, name: str, namespace: str) -> None:
    """Wait for the guest to run. Raises NotFound, Conflict saying why it will not, DeadlineExceeded."""
    made = await get(door, MACHINES, name, namespace)
    instance = await get(door, INSTANCES, name, namespace)

    def settled(found: dict[str, Any] | None) -> bool:
        nonlocal instance
        instance = found
        return machines.is_running(found) or (found is not None and bool(machines.trouble(made, found)))

    if not machines.is_running(instance) and not machines.trouble(made, instance):
        click.echo(f"waiting for {name} to start", err=True)
        await door.until(collection(INSTANCES, namespace), name, settled, WAIT_S)
    if problem := machines.trouble(made, instance):
        fault = NotFound if made is None and instance is None else Conflict
        hint = f"insula vm start {name}" if problem == "is stopped" else None
        raise fault(f'the machine "{name}" {problem}', hint=hint)
