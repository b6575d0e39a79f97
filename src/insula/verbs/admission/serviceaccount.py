"""ServiceAccount: a pod without an account gets `default`, and a volume with a token, the CA and its namespace.

As the admission plugin of that name in Kubernetes: the volume is mounted at /var/run/secrets/kubernetes.io/serviceaccount in
every container that has nothing there, unless the pod or its account says `automountServiceAccountToken: false`.
"""

from __future__ import annotations

import secrets

from insula.errors import Forbidden, NotFound
from insula.model.resource import Ref, Resource
from insula.verbs.request import Admission, Attempt

ORDER = 10
PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_S = 3607
_ACCOUNTS = Ref("", "v1", "serviceaccounts")
_MIRROR = "kubernetes.io/config.mirror"


class ServiceAccounts(Admission):
    """Gives pods their identity."""

    name = "ServiceAccount"

    async def mutate(self, attempt: Attempt) -> None:
        """Set the account and mount its token. Raises Forbidden for an account that does not exist."""
        pod = attempt.obj
        if attempt.kind.ref != Ref("", "v1", "pods") or attempt.verb != "create" or attempt.sub or _is_mirror(pod):
            return
        spec = pod["spec"]
        name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
        spec["serviceAccountName"] = spec["serviceAccount"] = name
        account = await _account(attempt, name)
        if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
            spec["imagePullSecrets"] = [dict(found) for found in account["imagePullSecrets"]]
        if _wants_token(spec, account):
            _mount(spec)


def _is_mirror(pod: Resource) -> bool:
    return _MIRROR in (pod["metadata"].get("annotations") or {})


async def _account(attempt: Attempt, name: str) -> Resource:
    try:
        return await attempt.verbs.get(_ACCOUNTS, name, attempt.namespace)
    except NotFound:
        if name == "default":
            return {}  # its controller is about to make it
        raise Forbidden(
            f'error looking up service account {attempt.namespace}/{name}: serviceaccount "{name}" not found'
        ) from None


def _wants_token(spec: Resource, account: Resource) -> bool:
    own = spec.get("automountServiceAccountToken")
    wanted = account.get("automountServiceAccountToken", True) if own is None else own
    return bool(wanted)


def _mount(spec: Resource) -> None:
    volume = f"kube-api-access-{secrets.token_hex(3)[:5]}"
    used = False
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        mounts = container.setdefault("volumeMounts", [])
        if not any(mount.get("mountPath") == PATH for mount in mounts):
            mounts.append({"name": volume, "readOnly": True, "mountPath": PATH})
            used = True
    if used:
        spec.setdefault("volumes", []).append({"name": volume, "projected": _projection()})


def _projection() -> Resource:
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    return {
        "defaultMode": 0o644,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_S, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [namespace]}},
        ],
    }


ADMISSION = ServiceAccounts()
