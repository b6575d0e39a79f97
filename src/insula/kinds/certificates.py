"""CertificateSigningRequest."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.printing import NONE, Since, age, column, get
from insula.model.resource import Resource

_PEM = b"-----BEGIN CERTIFICATE REQUEST-----"


def _validate(new: Resource, old: Resource | None) -> list[Cause]:
    spec = new.get("spec") or {}
    if old is not None:
        return rules.immutable("spec", spec, old["spec"])
    found = []
    if not spec.get("signerName"):
        found.append(rules.required("spec.signerName"))
    elif "/" not in spec["signerName"]:
        found.append(
            rules.invalid(
                "spec.signerName",
                spec["signerName"],
                'must be a fully qualified domain and path of the form "example.com/signer-name"',
            )
        )
    if not spec.get("usages"):
        found.append(rules.required("spec.usages", "usages must be set"))
    try:
        fine = base64.b64decode(spec.get("request") or "").lstrip().startswith(_PEM)
    except binascii.Error:
        fine = False
    if not fine:
        found.append(rules.invalid("spec.request", "", "PEM block type must be CERTIFICATE REQUEST"))
    return found


def _prepare(new: Resource, old: Resource | None) -> None:
    """Whose request it is was decided at its creation."""
    if old is None:
        new["status"] = {}
    else:
        new["spec"] = old["spec"]


def _condition(obj: Resource) -> str:
    words = [each.get("type", "") for each in get(obj, "status", "conditions", default=[])]
    said = [word for word in ("Approved", "Denied", "Failed") if word in words]
    if get(obj, "status", "certificate"):
        said.append("Issued")
    return ",".join(said) or "Pending"


def _row(obj: Resource) -> Sequence[Any]:
    spec = obj.get("spec") or {}
    seconds = spec.get("expirationSeconds")
    return (
        Since(obj["metadata"].get("creationTimestamp") or ""),
        spec.get("signerName") or NONE,
        spec.get("username", ""),
        f"{seconds // 86400}d" if seconds and seconds % 86400 == 0 else f"{seconds}s" if seconds else NONE,
        _condition(obj),
    )


KINDS = (
    replace(
        row("certificates.k8s.io/v1", "CertificateSigningRequest"),
        prepare=_prepare,
        validate=_validate,
        fields=lambda obj: {"spec.signerName": get(obj, "spec", "signerName", default="")},
        columns=(
            column("Age"),
            column("SignerName"),
            column("Requestor"),
            column("RequestedDuration"),
            column("Condition"),
        ),
        row=_row,
    ),
    replace(
        row("certificates.k8s.io/v1", "ClusterTrustBundle"),
        fields=lambda obj: {"spec.signerName": get(obj, "spec", "signerName", default="")},
        columns=(column("SignerName"), column("Age")),
        row=lambda obj: (get(obj, "spec", "signerName", default=NONE), age(obj)),
    ),
)
