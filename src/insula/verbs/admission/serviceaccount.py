"""ServiceAccount: a pod without an account gets `default`, and a volume with a token, the CA and its namespace.

As the admission plugin of that name in Kubernetes: the volume is mounted at /var/run/secrets/kubernetes.io/serviceaccount in
every container that has nothing there, unless the pod or its account says `automountServiceAccountToken: false`.
"""

from __future__ import annotations

from typing import Any

from insula.model.resource import Ref, Resource
from insula.verbs import faults, meta
from insula.verbs.admission.namespacelifecycle import find
from insula.verbs.request import Admission, Attempt

PODS = Ref("", "v1", "pods")
_ACCOUNTS = Ref("", "v1", "serviceaccounts")
PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_S = 3607  # an hour, and 7 seconds by which this volume is told from one that a user asked for
_MIRROR = "kubernetes.io/config.mirror"


def is_new_pod(attempt: Attempt) -> bool:
    """Whether the attempt makes a pod that the cluster decides upon; a mirror pod only shows what runs already."""
    if attempt.verb != "create" or attempt.sub or attempt.kind.ref != PODS:
        return False
    return _MIRROR not in (attempt.obj["metadata"].get("annotations") or {})


class ServiceAccounts(Admission):
    """Gives pods their identity."""

    name = "ServiceAccount"

    async def mutate(self, attempt: Attempt) -> None:
        """Set the account and mount its token. Raises Forbidden for an account that does not exist; `default` may be
        missing for a moment, its controller is about to make it."""
        if not is_new_pod(attempt):
            return
        spec: dict[str, Any] = attempt.obj.setdefault("spec", {})
        name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
        spec["serviceAccountName"] = spec["serviceAccount"] = name
        account = await find(attempt, _ACCOUNTS, name, attempt.namespace)
        if account is None and name != "default":
            why = f'error looking up service account {attempt.namespace}/{name}: serviceaccount "{name}" not found'
            raise faults.forbidden(attempt.kind, attempt.name, why)
        if not spec.get("imagePullSecrets") and (secrets := (account or {}).get("imagePullSecrets")):
            spec["imagePullSecrets"] = [dict(one) for one in secrets]
        if _wants_token(spec, account or {}):
            _mount(spec)


def _wants_token(spec: Resource, account: Resource) -> bool:
    own = spec.get("automountServiceAccountToken")
    return bool(account.get("automountServiceAccountToken", True) if own is None else own)


def _mount(spec: Resource) -> None:
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    bare = [one for one in containers if all(mount.get("mountPath") != PATH for mount in one.get("volumeMounts") or ())]
    if not bare:
        return
    name = meta.generated_name("kube-api-access-")
    for one in bare:
        one["volumeMounts"] = [*(one.get("volumeMounts") or ()), {"name": name, "readOnly": True, "mountPath": PATH}]
    volume = {"name": name, "projected": {"defaultMode": 0o644, "sources": _sources()}}
    spec["volumes"] = [*(spec.get("volumes") or ()), volume]


def _sources() -> list[Resource]:
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    return [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_S, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
