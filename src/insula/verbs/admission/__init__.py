"""The steps between "valid in itself" and "stored", one or a few small ones per file. Their order is this list: the quota counts
what the others have filled in.

A step sees writes from every door and from every controller. It reads through the verbs and writes nothing but the object.
"""

from __future__ import annotations

from insula.verbs.admission.limitranger import LimitRanger
from insula.verbs.admission.namespacelifecycle import NamespaceLifecycle
from insula.verbs.admission.pods import DefaultTolerationSeconds, Priority, RuntimeClass
from insula.verbs.admission.resourcequota import ResourceQuota
from insula.verbs.admission.serviceaccount import ServiceAccounts
from insula.verbs.admission.storage import DefaultIngressClass, DefaultStorageClass
from insula.verbs.request import Admission

STEPS: tuple[type[Admission], ...] = (
    NamespaceLifecycle,
    ServiceAccounts,
    DefaultTolerationSeconds,
    Priority,
    RuntimeClass,
    LimitRanger,
    DefaultStorageClass,
    DefaultIngressClass,
    ResourceQuota,
)


def load() -> list[Admission]:
    """What an Insula API server runs: every step, fresh, for some hold locks."""
    return [step() for step in STEPS]
