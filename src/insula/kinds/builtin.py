"""The built-in resource types of Kubernetes 1.37 as rows: names, scope, short names, categories, subresources.

Facts that the schemas do not carry. Columns of a row, separated by spaces (`-` for nothing):

    Kind  plural  N(amespaced) or C(luster)  short names  categories  subresources  flags

Flags: `create` a review, answered and forgotten; `read` only get and list; `nostatus` no status; `nogen` no generation.
Source: the API reference of Kubernetes 1.37 and what `kubectl api-resources` prints for it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from insula.kinds.kind import ALL_VERBS, Kind
from insula.model.resource import Ref

_TABLE = """
= v1
Binding bindings N - - - create
ComponentStatus componentstatuses C cs - - read
ConfigMap configmaps N cm - - nogen
Endpoints endpoints N ep - - nogen
Event events N ev - - nogen
LimitRange limitranges N limits - - nogen
Namespace namespaces C ns - status,finalize nogen
Node nodes C no - status,proxy nogen
PersistentVolume persistentvolumes C pv - status nogen
PersistentVolumeClaim persistentvolumeclaims N pvc - status nogen
Pod pods N po all attach,binding,ephemeralcontainers,eviction,exec,log,portforward,proxy,resize,status -
PodTemplate podtemplates N - - - -
ReplicationController replicationcontrollers N rc all scale,status -
ResourceQuota resourcequotas N quota - status nogen
Secret secrets N - - - nogen
Service services N svc all proxy,status nogen
ServiceAccount serviceaccounts N sa - token nogen
= apiregistration.k8s.io/v1
APIService apiservices C - api-extensions status -
= apps/v1
ControllerRevision controllerrevisions N - - - nogen
DaemonSet daemonsets N ds all status -
Deployment deployments N deploy all scale,status -
ReplicaSet replicasets N rs all scale,status -
StatefulSet statefulsets N sts all scale,status -
= events.k8s.io/v1
Event events N ev - - nogen
= authentication.k8s.io/v1
SelfSubjectReview selfsubjectreviews C - - - create
TokenReview tokenreviews C - - - create
= authorization.k8s.io/v1
LocalSubjectAccessReview localsubjectaccessreviews N - - - create
SelfSubjectAccessReview selfsubjectaccessreviews C - - - create
SelfSubjectRulesReview selfsubjectrulesreviews C - - - create
SubjectAccessReview subjectaccessreviews C - - - create
= autoscaling/v2
HorizontalPodAutoscaler horizontalpodautoscalers N hpa all status -
= autoscaling/v1
HorizontalPodAutoscaler horizontalpodautoscalers N hpa all status -
= batch/v1
CronJob cronjobs N cj all status -
Job jobs N - all status -
= certificates.k8s.io/v1
CertificateSigningRequest certificatesigningrequests C csr - approval,status nogen
ClusterTrustBundle clustertrustbundles C - - - nogen
PodCertificateRequest podcertificaterequests N - - status nogen
= certificates.k8s.io/v1beta1
ClusterTrustBundle clustertrustbundles C - - - nogen
PodCertificateRequest podcertificaterequests N - - status nogen
= networking.k8s.io/v1
Ingress ingresses N ing - status -
IngressClass ingressclasses C - - - -
IPAddress ipaddresses C ip - - -
NetworkPolicy networkpolicies N netpol - - -
ServiceCIDR servicecidrs C - - status -
= policy/v1
PodDisruptionBudget poddisruptionbudgets N pdb - status -
= rbac.authorization.k8s.io/v1
ClusterRole clusterroles C - - - nogen
ClusterRoleBinding clusterrolebindings C - - - nogen
Role roles N - - - nogen
RoleBinding rolebindings N - - - nogen
= storage.k8s.io/v1
CSIDriver csidrivers C - - - -
CSINode csinodes C - - - nogen
CSIStorageCapacity csistoragecapacities N - - - nogen
StorageClass storageclasses C sc - - nogen
VolumeAttachment volumeattachments C - - status nogen
VolumeAttributesClass volumeattributesclasses C vac - - nogen
= admissionregistration.k8s.io/v1
MutatingAdmissionPolicy mutatingadmissionpolicies C - api-extensions - -
MutatingAdmissionPolicyBinding mutatingadmissionpolicybindings C - api-extensions - -
MutatingWebhookConfiguration mutatingwebhookconfigurations C - api-extensions - -
ValidatingAdmissionPolicy validatingadmissionpolicies C - api-extensions status -
ValidatingAdmissionPolicyBinding validatingadmissionpolicybindings C - api-extensions - -
ValidatingWebhookConfiguration validatingwebhookconfigurations C - api-extensions - -
= admissionregistration.k8s.io/v1beta1
MutatingAdmissionPolicy mutatingadmissionpolicies C - api-extensions - -
MutatingAdmissionPolicyBinding mutatingadmissionpolicybindings C - api-extensions - -
= admissionregistration.k8s.io/v1alpha1
MutatingAdmissionPolicy mutatingadmissionpolicies C - api-extensions - -
MutatingAdmissionPolicyBinding mutatingadmissionpolicybindings C - api-extensions - -
= apiextensions.k8s.io/v1
CustomResourceDefinition customresourcedefinitions C crd,crds api-extensions status -
= scheduling.k8s.io/v1
PriorityClass priorityclasses C pc - - -
= scheduling.k8s.io/v1beta1
PodGroup podgroups N - - status -
Workload workloads N - - - -
= scheduling.k8s.io/v1alpha3
CompositePodGroup compositepodgroups N - - status -
PodGroup podgroups N - - status -
Workload workloads N - - - -
= coordination.k8s.io/v1
Lease leases N - - - nogen
= coordination.k8s.io/v1beta1
LeaseCandidate leasecandidates N - - - nogen
= coordination.k8s.io/v1alpha2
LeaseCandidate leasecandidates N - - - nogen
= node.k8s.io/v1
RuntimeClass runtimeclasses C - - - nogen
= discovery.k8s.io/v1
EndpointSlice endpointslices N - - - -
= flowcontrol.apiserver.k8s.io/v1
FlowSchema flowschemas C - - status -
PriorityLevelConfiguration prioritylevelconfigurations C - - status -
= resource.k8s.io/v1
DeviceClass deviceclasses C - - - -
DeviceTaintRule devicetaintrules C - - status -
ResourceClaim resourceclaims N - - status nogen
ResourceClaimTemplate resourceclaimtemplates N - - - nogen
ResourceSlice resourceslices C - - - -
= resource.k8s.io/v1beta2
DeviceClass deviceclasses C - - - -
DeviceTaintRule devicetaintrules C - - status -
ResourceClaim resourceclaims N - - status nogen
ResourceClaimTemplate resourceclaimtemplates N - - - nogen
ResourceSlice resourceslices C - - - -
= resource.k8s.io/v1beta1
DeviceClass deviceclasses C - - - -
ResourceClaim resourceclaims N - - status nogen
ResourceClaimTemplate resourceclaimtemplates N - - - nogen
ResourceSlice resourceslices C - - - -
= resource.k8s.io/v1alpha3
DeviceTaintRule devicetaintrules C - - status -
ResourcePoolStatusRequest resourcepoolstatusrequests C rpsr - status -
= storagemigration.k8s.io/v1
StorageVersionMigration storageversionmigrations C - - status -
= storagemigration.k8s.io/v1beta1
StorageVersionMigration storageversionmigrations C - - status -
= internal.apiserver.k8s.io/v1alpha1
StorageVersion storageversions C - - status -
= lifecycle.k8s.io/v1alpha1
Eviction evictions N - - status -
EvictionRequest evictionrequests N - - status -
"""

_PACKAGES = {
    "": "io.k8s.api.core",
    "apiextensions.k8s.io": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
    "apiregistration.k8s.io": "io.k8s.kube-aggregator.pkg.apis.apiregistration",
    "internal.apiserver.k8s.io": "io.k8s.api.apiserverinternal",
}


def definition_name(group: str, version: str, kind: str) -> str:
    """The name of a kind's OpenAPI definition: `io.k8s.api.apps.v1.Deployment`."""
    package = _PACKAGES.get(group) or f"io.k8s.api.{group.partition('.')[0]}"
    return f"{package}.{version}.{kind}"


def _words(cell: str) -> tuple[str, ...]:
    return () if cell == "-" else tuple(cell.split(","))


def _kind(group: str, version: str, line: str) -> Kind:
    name, plural, scope, short, categories, subresources, flag = line.split()
    review, read_only = flag == "create", flag == "read"
    subs = _words(subresources)
    return Kind(
        ref=Ref(group, version, plural),
        kind=name,
        singular=name.lower(),
        namespaced=scope == "N",
        list_kind=f"{name}List",
        short_names=_words(short),
        categories=_words(categories),
        verbs=("create",) if review else ("get", "list") if read_only else ALL_VERBS,
        schema=definition_name(group, version, name),
        subresources=subs,
        status_fields=("status",) if "status" in subs else (),
        stored=not review and not read_only,
        has_generation=flag != "nogen" and not review and not read_only,
    )


@cache
def rows() -> dict[tuple[str, str], Kind]:
    """Every built-in type by (apiVersion, kind), groups and versions in the order that discovery gives them."""
    found: dict[tuple[str, str], Kind] = {}
    first: dict[
        tuple[str, str], str
    ] = {}  # the version that all versions of a kind are stored in: the one listed first
    group = version = ""
    for line in _TABLE.strip().splitlines():
        if line.startswith("= "):
            group, _, version = line[2:].rpartition("/")
            continue
        kind = _kind(group, version, line)
        preferred = first.setdefault((group, kind.kind), version)
        found[kind.gvk] = kind if preferred == version else replace(kind, storage_version=preferred)
    return found


def row(api_version: str, kind: str) -> Kind:
    """One type's row, for a kind file to build on with `dataclasses.replace`."""
    return rows()[api_version, kind]
