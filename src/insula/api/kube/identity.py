"""Whose certificate request it is: the API server writes that down, not the client."""

from __future__ import annotations

from insula.api.kube.users import user_info
from insula.model.resource import Ref
from insula.verbs.request import Admission, Attempt

_REQUESTS = Ref("certificates.k8s.io", "v1", "certificatesigningrequests")


class RequestorIdentity(Admission):
    """Fills username, uid, groups and extra of a new CertificateSigningRequest from who sends it."""

    name = "RequestorIdentity"

    async def mutate(self, attempt: Attempt) -> None:
        """Before validation, on creation only."""
        if attempt.kind.ref != _REQUESTS or attempt.verb != "create" or not isinstance(attempt.obj.get("spec"), dict):
            return
        spec = attempt.obj["spec"]
        for name in ("username", "uid", "groups", "extra"):
            spec.pop(name, None)
        spec |= user_info(attempt.request.user)
