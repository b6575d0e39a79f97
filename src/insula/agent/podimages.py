"""Images for containers: the pull policy, pull secrets, and the reasons that `kubectl get pods` shows when it fails."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from insula.agent.podview import Trouble
from insula.agent.services import SECRETS, SERVICE_ACCOUNTS, Services
from insula.errors import InsulaError, NotFound
from insula.images.contract import Auth
from insula.model.resource import Resource

INDEX = ("docker.io", "index.docker.io", "https://index.docker.io/v1/", "registry-1.docker.io")


class ImageError(Exception):
    """An image is not there: the waiting reason and message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message

    def trouble(self, now: str) -> Trouble:
        """As a waiting state."""
        return Trouble(self.reason, self.message, now)


async def ensure(services: Services, pod: Resource, container: Resource) -> None:
    """Make sure that the container's image is on this node. Raises ImageError."""
    image, policy = container["image"], container.get("imagePullPolicy") or default_policy(container["image"])
    present = await _present(services, image)
    if present and policy != "Always":
        return
    if policy == "Never":
        raise ImageError("ErrImageNeverPull", f'Container image "{image}" is not present with pull policy of Never')
    try:
        auth = auth_for(image, await _credentials(services, pod))
        services.record(pod, "Pulling", f'Pulling image "{image}"')
        await services.engine.images.pull(image, auth=auth)
    except InsulaError as fault:
        services.record(pod, "Failed", f'Failed to pull image "{image}": {fault.message}', "Warning")
        raise ImageError("ErrImagePull", f'failed to pull image "{image}": {fault.message}') from fault
    services.record(pod, "Pulled", f'Successfully pulled image "{image}"')


def default_policy(image: str) -> str:
    """Always for `latest` or no tag, else IfNotPresent; the API server fills this in, other servers may not have."""
    last = image.rsplit("/", 1)[-1]
    return "Always" if "@" not in image and (":" not in last or last.endswith(":latest")) else "IfNotPresent"


async def _present(services: Services, image: str) -> bool:
    try:
        await services.engine.images.get(image)
    except NotFound:
        return False
    return True


async def _credentials(services: Services, pod: Resource) -> dict[str, Any]:
    """Registry host → entry of a docker configuration, from the pod's and its service account's pull secrets."""
    namespace = pod["metadata"]["namespace"]
    account = services.caches.get(SERVICE_ACCOUNTS, pod["spec"].get("serviceAccountName", "default"), namespace) or {}
    found: dict[str, Any] = {}
    for reference in (*(account.get("imagePullSecrets") or ()), *(pod["spec"].get("imagePullSecrets") or ())):
        secret = services.caches.get(SECRETS, reference["name"], namespace)
        text = ((secret or {}).get("data") or {}).get(".dockerconfigjson")
        if text:
            found.update(msgspec.json.decode(base64.b64decode(text)).get("auths") or {})
    return found


def auth_for(image: str, entries: dict[str, Any]) -> Auth | None:
    """The credentials for the image's registry."""
    head = image.split("/", 1)[0]
    host = head if "/" in image and ("." in head or ":" in head or head == "localhost") else "docker.io"
    names = INDEX if host in INDEX else (host, f"https://{host}", f"http://{host}")
    entry = next((entries[name] for name in entries if name.rstrip("/") in names or name in names), None)
    if entry is None:
        return None
    if entry.get("auth"):
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        return Auth(username=user, password=password)
    return Auth(username=entry.get("username", ""), password=entry.get("password", ""))
