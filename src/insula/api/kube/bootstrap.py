"""The roles and bindings that every cluster starts with, and the namespaces and services that clients rely on.

Source: Kubernetes' documentation, "Using RBAC Authorization", default roles. Made at each start where absent; a role whose
annotation `rbac.authorization.kubernetes.io/autoupdate` is `true` gets back the rules that it lacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from insula.model.resource import Resource

GROUP = "rbac.authorization.k8s.io"
_API = f"{GROUP}/v1"
_READ = ("get", "list", "watch")
_WRITE = ("create", "delete", "deletecollection", "patch", "update")
_LABELS = {"kubernetes.io/bootstrapping": "rbac-defaults"}
AUTO_UPDATE = "rbac.authorization.kubernetes.io/autoupdate"
_AUTO = {AUTO_UPDATE: "true"}


def rule(verbs: Iterable[str], groups: Iterable[str], resources: Iterable[str], names: Iterable[str] = ()) -> Resource:
    """One policy rule on resources."""
    out: dict[str, Any] = {"apiGroups": list(groups), "resources": list(resources), "verbs": list(verbs)}
    if named := list(names):
        out["resourceNames"] = named
    return out


def paths(verbs: Iterable[str], urls: Iterable[str]) -> Resource:
    """One policy rule on non-resource URLs."""
    return {"nonResourceURLs": list(urls), "verbs": list(verbs)}


def _role(
    name: str, rules: Sequence[Resource], *, labels: dict[str, str] | None = None, aggregate: str = ""
) -> Resource:
    out: Resource = {
        "apiVersion": _API,
        "kind": "ClusterRole",
        "metadata": {"name": name, "labels": {**_LABELS, **(labels or {})}, "annotations": dict(_AUTO)},
        "rules": list(rules),
    }
    if aggregate:
        out["aggregationRule"] = {"clusterRoleSelectors": [{"matchLabels": {aggregate: "true"}}]}
    return out


def _binding(name: str, subjects: Sequence[tuple[str, str]], role: str = "") -> Resource:
    return {
        "apiVersion": _API,
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": dict(_LABELS), "annotations": dict(_AUTO)},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role or name},
        "subjects": [{"apiGroup": GROUP, "kind": kind, "name": subject} for kind, subject in subjects],
    }


_TO = f"{GROUP}/aggregate-to-"
_VIEW_CORE = [
    "configmaps",
    "endpoints",
    "persistentvolumeclaims",
    "persistentvolumeclaims/status",
    "pods",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "serviceaccounts",
    "services",
    "services/status",
    "bindings",
    "events",
    "limitranges",
    "namespaces/status",
    "pods/log",
    "pods/status",
    "replicationcontrollers/status",
    "resourcequotas",
    "resourcequotas/status",
    "namespaces",
]
_VIEW_APPS = [
    "controllerrevisions",
    "daemonsets",
    "daemonsets/status",
    "deployments",
    "deployments/scale",
    "deployments/status",
    "replicasets",
    "replicasets/scale",
    "replicasets/status",
    "statefulsets",
    "statefulsets/scale",
    "statefulsets/status",
]
_EDIT_CORE = [
    "configmaps",
    "events",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "secrets",
    "serviceaccounts",
    "services",
    "services/proxy",
    "pods",
    "pods/attach",
    "pods/exec",
    "pods/portforward",
    "pods/proxy",
    "endpoints",
]
_EDIT_APPS = [
    "daemonsets",
    "deployments",
    "deployments/rollback",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
    "statefulsets",
    "statefulsets/scale",
]
_KUBEVIRT = ("kubevirt.io",)
_MACHINES = ("virtualmachines", "virtualmachineinstances")
_MACHINE_VIEWS = (
    "virtualmachineinstances/guestosinfo",
    "virtualmachineinstances/filesystemlist",
    "virtualmachineinstances/userlist",
)
_MACHINE_ACTS = [
    "virtualmachineinstances/console",
    "virtualmachineinstances/vnc",
    "virtualmachineinstances/pause",
    "virtualmachineinstances/unpause",
    "virtualmachineinstances/softreboot",
    "virtualmachineinstances/portforward",
    "virtualmachines/start",
    "virtualmachines/stop",
    "virtualmachines/restart",
    "virtualmachines/portforward",
]


def _view() -> list[Resource]:
    return [
        rule(_READ, [""], _VIEW_CORE),
        rule(_READ, ["discovery.k8s.io"], ["endpointslices"]),
        rule(_READ, ["apps"], _VIEW_APPS),
        rule(_READ, ["autoscaling"], ["horizontalpodautoscalers", "horizontalpodautoscalers/status"]),
        rule(_READ, ["batch"], ["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
        rule(_READ, ["policy"], ["poddisruptionbudgets", "poddisruptionbudgets/status"]),
        rule(_READ, ["networking.k8s.io"], ["ingresses", "ingresses/status", "networkpolicies"]),
        rule(_READ, ["metrics.k8s.io"], ["pods", "nodes"]),
        rule(_READ, _KUBEVIRT, _MACHINES),
        rule(["get"], ["subresources.kubevirt.io"], _MACHINE_VIEWS),
    ]


def _edit() -> list[Resource]:
    return [
        rule(_READ, [""], ["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"]),
        rule(["impersonate"], [""], ["serviceaccounts"]),
        rule(_WRITE, [""], _EDIT_CORE),
        rule(["create"], [""], ["pods/eviction", "serviceaccounts/token"]),
        rule(_WRITE, ["apps"], _EDIT_APPS),
        rule(_WRITE, ["autoscaling"], ["horizontalpodautoscalers"]),
        rule(_WRITE, ["batch"], ["cronjobs", "jobs"]),
        rule(_WRITE, ["policy"], ["poddisruptionbudgets"]),
        rule(_WRITE, ["networking.k8s.io"], ["ingresses", "networkpolicies"]),
        rule((*_READ, *_WRITE), ["coordination.k8s.io"], ["leases"]),
        rule(_WRITE, _KUBEVIRT, _MACHINES),
        rule(["get", "update"], ["subresources.kubevirt.io"], _MACHINE_ACTS),
    ]


def _admin() -> list[Resource]:
    return [
        rule(["create"], ["authorization.k8s.io"], ["localsubjectaccessreviews"]),
        rule((*_READ, *_WRITE), [GROUP], ["rolebindings", "roles"]),
    ]


def _node() -> list[Resource]:
    return [
        rule(["create"], ["authentication.k8s.io"], ["tokenreviews"]),
        rule(["create"], ["authorization.k8s.io"], ["localsubjectaccessreviews", "subjectaccessreviews"]),
        rule(_READ, [""], ["services", "secrets", "configmaps", "persistentvolumeclaims", "persistentvolumes"]),
        rule(["create", *_READ], [""], ["nodes"]),
        rule(["patch", "update"], [""], ["nodes", "nodes/status"]),
        rule(["create", "patch", "update"], [""], ["events"]),
        rule(["create", "delete", *_READ], [""], ["pods"]),
        rule(["patch", "update"], [""], ["pods/status"]),
        rule(["create"], [""], ["pods/eviction", "serviceaccounts/token"]),
        rule(["get"], [""], ["endpoints", "serviceaccounts"]),
        rule(["create", "delete", "get", "patch", "update"], ["coordination.k8s.io"], ["leases"]),
        rule(_READ, ["node.k8s.io"], ["runtimeclasses"]),
        rule((*_READ, *_WRITE), ["storage.k8s.io"], ["csinodes"]),
        rule(_READ, ["storage.k8s.io"], ["csidrivers", "volumeattachments"]),
        rule(["create", *_READ], ["certificates.k8s.io"], ["certificatesigningrequests"]),
        rule((*_READ, "patch", "update"), _KUBEVIRT, ["virtualmachineinstances", "virtualmachineinstances/status"]),
    ]


_DISCOVERY = (
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
)
_SELF = ("selfsubjectaccessreviews", "selfsubjectrulesreviews")


def cluster_roles() -> list[Resource]:
    """The default ClusterRoles."""
    everything = [rule("*", "*", "*"), paths("*", "*")]
    return [
        _role("cluster-admin", everything),
        _role("admin", [], aggregate=f"{_TO}admin"),
        _role("edit", [], labels={f"{_TO}admin": "true"}, aggregate=f"{_TO}edit"),
        _role("view", [], labels={f"{_TO}edit": "true"}, aggregate=f"{_TO}view"),
        _role("system:aggregate-to-admin", _admin(), labels={f"{_TO}admin": "true"}),
        _role("system:aggregate-to-edit", _edit(), labels={f"{_TO}edit": "true"}),
        _role("system:aggregate-to-view", _view(), labels={f"{_TO}view": "true"}),
        _role("system:discovery", [paths(["get"], [*_DISCOVERY, "/version/"])]),
        _role(
            "system:basic-user",
            [
                rule(["create"], ["authorization.k8s.io"], _SELF),
                rule(["create"], ["authentication.k8s.io"], ["selfsubjectreviews"]),
            ],
        ),
        _role(
            "system:public-info-viewer", [paths(["get"], ["/healthz", "/livez", "/readyz", "/version", "/version/"])]
        ),
        _role(
            "system:monitoring",
            [paths(["get"], ["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/readyz", "/readyz/*"])],
        ),
        _role(
            "system:service-account-issuer-discovery",
            [paths(["get"], ["/.well-known/openid-configuration", "/openid/v1/jwks"])],
        ),
        _role("system:node", _node()),
        _role(
            "system:auth-delegator",
            [
                rule(["create"], ["authentication.k8s.io"], ["tokenreviews"]),
                rule(["create"], ["authorization.k8s.io"], ["subjectaccessreviews"]),
            ],
        ),
    ]


def cluster_role_bindings() -> list[Resource]:
    """The default ClusterRoleBindings."""
    known, unknown = ("Group", "system:authenticated"), ("Group", "system:unauthenticated")
    return [
        _binding("cluster-admin", [("Group", "system:masters")]),
        _binding("system:basic-user", [known]),
        _binding("system:discovery", [known]),
        _binding("system:monitoring", [("Group", "system:monitoring")]),
        _binding("system:node", [("Group", "system:nodes")]),
        _binding("system:public-info-viewer", [known, unknown]),
        _binding("system:service-account-issuer-discovery", [("Group", "system:serviceaccounts")]),
    ]


def api_service(group: str, version: str, group_at: int, version_at: int) -> Resource:
    """The APIService of a group version that this server serves itself; earlier ones come first in discovery."""
    spec: dict[str, Any] = {
        "version": version,
        "groupPriorityMinimum": 18000 - 50 * group_at,
        "versionPriority": max(1, 15 - version_at),
    }
    if group:
        spec["group"] = group
    available = {
        "type": "Available",
        "status": "True",
        "reason": "Local",
        "message": "Local APIServices are always available",
    }
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {
            "name": f"{version}.{group}",
            "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"},
        },
        "spec": spec,
        "status": {"conditions": [available]},
    }
