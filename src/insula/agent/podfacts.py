"""What a pod's variables and volumes refer to, read from the caches; tokens from the API."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import msgspec

from insula.agent.podenv import PodFacts, References
from insula.agent.podfiles import Files, config_names, files_of
from insula.agent.services import CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS, Services
from insula.model.resource import Resource

TOKEN_S = 3607


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


async def volume_files(services: Services, pod: Resource, address: str) -> dict[str, Files]:
    """The files of every written volume of a pod, by volume name."""
    references, facts = references_of(services, pod), facts_of(services, address)
    tokens = await _tokens(services, pod)
    return {
        volume["name"]: files_of(volume, pod, references, tokens, facts) for volume in pod["spec"].get("volumes") or ()
    }


async def _tokens(services: Services, pod: Resource) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for volume in pod["spec"].get("volumes") or ():
        for source in (volume.get("projected") or {}).get("sources") or ():
            if wish := source.get("serviceAccountToken"):
                tokens[f"{volume['name']}/{wish['path']}"] = await _token(services, pod, wish)
    return tokens


async def _token(services: Services, pod: Resource, wish: Resource) -> str:
    meta = pod["metadata"]
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": [wish["audience"]] if wish.get("audience") else [],
            "expirationSeconds": int(wish.get("expirationSeconds") or TOKEN_S),
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
        },
    }
    account = pod["spec"].get("serviceAccountName") or "default"
    answer = await services.client.create(SERVICE_ACCOUNTS, request, meta["namespace"], name=account, sub="token")
    return str(answer["status"]["token"])
