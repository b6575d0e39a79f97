"""Service accounts: every namespace gets a `default` one and the ConfigMap `kube-root-ca.crt` that pods trust the API by."""

from __future__ import annotations

from collections.abc import Iterable

from insula.control.controller import DONE, Caches, Context, Controller, Keys, Result, Watch
from insula.controllers.refs import CONFIG_MAPS, NAMESPACES, SERVICE_ACCOUNTS
from insula.errors import AlreadyExists
from insula.model.resource import Key, Ref, Resource

ROOT_CA = "kube-root-ca.crt"


def _namespace_of(name: str) -> Keys:
    def keys(obj: Resource, _: Caches) -> Iterable[Key]:
        if obj["metadata"]["name"] == name:
            yield Key("", obj["metadata"]["namespace"])

    return keys


async def reconcile(context: Context, key: Key) -> Result:
    """Make what is missing in one namespace."""
    namespace = context.caches.get(NAMESPACES, key.name)
    if namespace is None or namespace["metadata"].get("deletionTimestamp"):
        return DONE
    if context.caches.get(SERVICE_ACCOUNTS, "default", key.name) is None:
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        await _create(context, SERVICE_ACCOUNTS, account, key.name)
    wanted = {"ca.crt": context.settings["root_ca"]}
    present = context.caches.get(CONFIG_MAPS, ROOT_CA, key.name)
    if present is None:
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOT_CA}, "data": wanted}
        await _create(context, CONFIG_MAPS, config, key.name)
    elif present.get("data") != wanted:
        await context.client.patch(CONFIG_MAPS, ROOT_CA, {"data": wanted}, key.name)
    return DONE


async def _create(context: Context, ref: Ref, obj: Resource, namespace: str) -> None:
    try:
        await context.client.create(ref, obj, namespace)
    except AlreadyExists:
        return


CONTROLLER = Controller(
    name="serviceaccount-controller",
    summary="a default ServiceAccount and the cluster's CA in every namespace",
    watches=(
        Watch(ref=NAMESPACES),
        Watch(ref=SERVICE_ACCOUNTS, keys=_namespace_of("default")),
        Watch(ref=CONFIG_MAPS, keys=_namespace_of(ROOT_CA)),
    ),
    reconcile=reconcile,
)
