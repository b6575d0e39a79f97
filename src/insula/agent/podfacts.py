"""What a pod's variables and volumes refer to, read from the caches; tokens from the API."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable

import msgspec

from insula.agent.podenv import PodFacts, References
from insula.agent.podfiles import Files, config_names, files_of
from insula.agent.services import CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS, Services
from insula.errors import InsulaError, Invalid
from insula.model.resource import Resource

TOKEN_S = 3607
RENEW_AT = 0.8


def facts_of(services: Services, address: str) -> PodFacts:
    """The downward API's facts for a pod of this address."""
    return msgspec.structs.replace(services.facts, pod_ip=address, host_ip=services.address)


def references_of(services: Services, pod: Resource) -> References:
    """Every ConfigMap and Secret that the pod names and that exists."""
    namespace = pod["metadata"]["namespace"]
    maps: dict[str, dict[str, str]] = {}
    for plural, name in config_names(pod):
        if plural == "configmaps" and (found := services.caches.get(CONFIG_MAPS, name, namespace)):
            maps[name] = {**(found.get("data") or {}), **_text(found.get("binaryData"))}
    secrets = secrets_of(services, namespace, [name for plural, name in config_names(pod) if plural == "secrets"])
    return References(maps, secrets)


def secrets_of(services: Services, namespace: str, names: Iterable[str]) -> dict[str, dict[str, bytes]]:
    """The decoded data of those Secrets that exist."""
    found = {name: services.caches.get(SECRETS, name, namespace) for name in names}
    return {
        name: {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}
        for name, secret in found.items()
        if secret is not None
    }


def _text(binary: dict[str, str] | None) -> dict[str, str]:
    return {key: base64.b64decode(value).decode(errors="surrogateescape") for key, value in (binary or {}).items()}


class Tokens:
    """The service account tokens of one pod, each asked for again when four fifths of its life are over."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._kept: dict[str, tuple[str, float]] = {}  # VOLUME/PATH -> token, when to renew it (the loop's clock)

    async def of(self, pod: Resource) -> dict[str, str]:
        """A token that lives for every source of the pod's projected volumes, by VOLUME/PATH."""
        now_s = asyncio.get_running_loop().time()
        for place, wish in token_wishes(pod):
            if place not in self._kept or self._kept[place][1] <= now_s:
                token, life_s = await _token(self._services, pod, wish)
                self._kept[place] = token, now_s + life_s * RENEW_AT
        return {place: token for place, (token, _) in self._kept.items()}

    def renew_in_s(self) -> float | None:
        """Seconds until one of them must be renewed; None without tokens."""
        now_s = asyncio.get_running_loop().time()
        return min((max(due - now_s, 0.0) for _, due in self._kept.values()), default=None)


def token_wishes(pod: Resource) -> Iterable[tuple[str, Resource]]:
    """(VOLUME/PATH, serviceAccountToken source) of a pod's projected volumes."""
    for volume in pod["spec"].get("volumes") or ():
        for source in (volume.get("projected") or {}).get("sources") or ():
            if wish := source.get("serviceAccountToken"):
                yield f"{volume['name']}/{wish['path']}", wish


async def volume_files(services: Services, pod: Resource, tokens: Tokens, address: str) -> dict[str, Files]:
    """The files of every written volume of a pod, by volume name. Raises NotFound, Invalid naming the volume."""
    references, facts = references_of(services, pod), facts_of(services, address)
    have = await tokens.of(pod)
    found = {}
    for volume in pod["spec"].get("volumes") or ():
        try:
            found[volume["name"]] = files_of(volume, pod, references, have, facts)
        except InsulaError as fault:
            text = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {fault.message}'
            raise Invalid(text, field="spec.volumes") from fault
    return found


async def _token(services: Services, pod: Resource, wish: Resource) -> tuple[str, float]:
    """(token, seconds that it lives)."""
    meta = pod["metadata"]
    life_s = int(wish.get("expirationSeconds") or TOKEN_S)
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": [wish["audience"]] if wish.get("audience") else [],
            "expirationSeconds": life_s,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
        },
    }
    account = pod["spec"].get("serviceAccountName") or "default"
    answer = await services.client.create(SERVICE_ACCOUNTS, request, meta["namespace"], name=account, sub="token")
    return str(answer["status"]["token"]), float(life_s)
