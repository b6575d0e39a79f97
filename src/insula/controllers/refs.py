"""The resource types that controllers speak of."""

from __future__ import annotations

from insula.model.resource import Ref

PODS = Ref("", "v1", "pods")
NODES = Ref("", "v1", "nodes")
NAMESPACES = Ref("", "v1", "namespaces")
SERVICE_ACCOUNTS = Ref("", "v1", "serviceaccounts")
CONFIG_MAPS = Ref("", "v1", "configmaps")
EVENTS = Ref("", "v1", "events")
LEASES = Ref("coordination.k8s.io", "v1", "leases")
REPLICA_SETS = Ref("apps", "v1", "replicasets")
DEPLOYMENTS = Ref("apps", "v1", "deployments")
MACHINES = Ref("kubevirt.io", "v1", "virtualmachines")
MACHINE_INSTANCES = Ref("kubevirt.io", "v1", "virtualmachineinstances")
