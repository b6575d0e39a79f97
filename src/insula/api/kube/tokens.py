"""Service account tokens: signed statements of who a pod is, for whom, until when. Issuing and checking; no storage.

Source: the claims that Kubernetes' bound tokens carry (TokenRequest API): `sub`, `aud`, `exp` and a `kubernetes.io` object with
namespace, serviceaccount and optionally the pod, secret or node that the token lives no longer than.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from insula.clock import now
from insula.errors import Unauthorized

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

ISSUER = "https://kubernetes.default.svc.cluster.local"
MIN_LIFE_S = 600
MAX_LIFE_S = 2**32
DEFAULT_LIFE_S = 3600
_ALGORITHM = "ES256"
_PRIVATE = "kubernetes.io"


class Bound(Struct, frozen=True, kw_only=True):
    """An object whose deletion ends a token: its kind as claims write it (pod, secret, node), name and uid."""

    kind: str
    name: str
    uid: str


class Claims(Struct, frozen=True, kw_only=True):
    """What a checked token says."""

    namespace: str
    name: str
    uid: str
    audiences: tuple[str, ...]
    token_id: str
    expires_s: float  # seconds since 1970
    bound: Bound | None = None


class Tokens:
    """Issues and checks tokens with one key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, *, issuer: str = ISSUER) -> None:
        self._key = key
        self._public = key.public_key()
        self.issuer = issuer
        self.audiences = (issuer,)

    def issue(
        self,
        namespace: str,
        name: str,
        uid: str,
        *,
        audiences: Sequence[str] = (),
        life_s: int = DEFAULT_LIFE_S,
        bound: Bound | None = None,
    ) -> tuple[str, float]:
        """A new token and the moment of its end, in seconds since 1970."""
        import jwt

        start = int(now().timestamp())
        private: dict[str, Any] = {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}}
        if bound is not None:
            private[bound.kind] = {"name": bound.name, "uid": bound.uid}
        claims = {
            "aud": list(audiences or self.audiences),
            "exp": start + life_s,
            "iat": start,
            "nbf": start,
            "iss": self.issuer,
            "jti": str(uuid.uuid4()),
            _PRIVATE: private,
            "sub": f"system:serviceaccount:{namespace}:{name}",
        }
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM), float(start + life_s)

    def check(self, token: str, audiences: Sequence[str] = ()) -> Claims:
        """What a token says, if it is ours, alive and meant for one of `audiences`. Raises Unauthorized."""
        import jwt

        try:
            found = jwt.decode(
                token,
                self._public,
                algorithms=[_ALGORITHM],
                audience=list(audiences or self.audiences),
                issuer=self.issuer,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            return _claims(found)
        except (jwt.PyJWTError, KeyError, TypeError, AttributeError) as fault:
            raise Unauthorized(f"invalid bearer token: {fault}") from None


def _claims(found: Mapping[str, Any]) -> Claims:
    private = found[_PRIVATE]
    account = private["serviceaccount"]
    audience = found["aud"]
    bound = None
    for kind in ("pod", "secret", "node"):
        if kind in private and (bound is None or kind != "node"):
            bound = Bound(kind=kind, name=private[kind]["name"], uid=private[kind].get("uid", ""))
    return Claims(
        namespace=private["namespace"],
        name=account["name"],
        uid=account["uid"],
        audiences=(audience,) if isinstance(audience, str) else tuple(audience),
        token_id=str(found.get("jti", "")),
        expires_s=float(found["exp"]),
        bound=bound,
    )
