"""Who asks: client certificates, service account tokens, fixed tokens, nobody. The first that is present decides."""

from __future__ import annotations

import base64
import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from aiohttp import web
from msgspec import structs

from insula.api.kube.pki import Pki
from insula.api.kube.tokens import Claims, Tokens
from insula.api.kube.users import ANONYMOUS, AUTHENTICATED, anonymous, service_account
from insula.clock import now
from insula.errors import NotFound, Unauthorized
from insula.model.resource import Ref, Resource
from insula.verbs.request import User

Lookup = Callable[[Ref, str, str], Awaitable[Resource]]  # (type, namespace, name) → object; raises NotFound

_ACCOUNTS = Ref("", "v1", "serviceaccounts")
_BOUND = {"pod": Ref("", "v1", "pods"), "secret": Ref("", "v1", "secrets"), "node": Ref("", "v1", "nodes")}
_REMEMBER_S = 10.0  # as kube-apiserver remembers a token that it has checked
_REMEMBERED = 4096
_WEBSOCKET_BEARER = "base64url.bearer.authorization.k8s.io."


async def _nothing_known(_ref: Ref, _namespace: str, name: str) -> Resource:
    raise NotFound(f'"{name}" not found')


class Authority:
    """Authentication with one set of keys. `lookup` finds service accounts and what tokens are bound to."""

    def __init__(
        self, pki: Pki, *, fixed_tokens: Mapping[str, User] | None = None, allow_anonymous: bool = True
    ) -> None:
        self.pki = pki
        self.lookup: Lookup = _nothing_known
        self._fixed = dict(fixed_tokens or {})
        self._anonymous = allow_anonymous
        self._checked: OrderedDict[str, tuple[float, User]] = OrderedDict()

    @cached_property
    def tokens(self) -> Tokens:
        """Issues and checks tokens; made when one is first seen."""
        return Tokens(self.pki.signing_key)

    async def authenticate(self, request: web.Request) -> User:
        """The user of a request. Raises Unauthorized for credentials that are wrong, or absent and needed."""
        user = certificate_user(request.transport)
        if user is not None:
            return user
        token = bearer(request)
        if token:
            return await self.user_of_token(token)
        if not self._anonymous:
            raise Unauthorized("Unauthorized")
        return anonymous()

    async def user_of_token(self, token: str) -> User:
        """The user of a bearer token meant for this server. Raises Unauthorized."""
        for known, user in self._fixed.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return _authenticated(user)
        moment = now().timestamp()
        kept = self._checked.get(token)
        if kept is not None and kept[0] > moment:
            return kept[1]
        try:
            claims = self.tokens.check(token)
            user = await self.account_of(claims)
        except Unauthorized:
            self._checked.pop(token, None)
            raise Unauthorized("Unauthorized") from None
        self._checked[token] = (min(moment + _REMEMBER_S, claims.expires_s), user)
        self._checked.move_to_end(token)
        if len(self._checked) > _REMEMBERED:
            self._checked.popitem(last=False)
        return user

    def forget_tokens(self) -> None:
        """Check every token anew at its next use."""
        self._checked.clear()

    async def account_of(self, claims: Claims) -> User:
        """The service account of a checked token, if it and what the token is bound to still exist. Raises Unauthorized."""
        account = await self._living(_ACCOUNTS, claims.namespace, claims.name, claims.uid)
        extra: dict[str, Sequence[str]] = {}
        if claims.token_id:
            extra["authentication.kubernetes.io/credential-id"] = (f"JTI={claims.token_id}",)
        if (bound := claims.bound) is not None:
            namespace = "" if bound.kind == "node" else claims.namespace
            await self._living(_BOUND[bound.kind], namespace, bound.name, bound.uid)
            extra[f"authentication.kubernetes.io/{bound.kind}-name"] = (bound.name,)
            extra[f"authentication.kubernetes.io/{bound.kind}-uid"] = (bound.uid,)
        return service_account(claims.namespace, claims.name, account["metadata"]["uid"], extra)

    async def _living(self, ref: Ref, namespace: str, name: str, uid: str) -> Resource:
        try:
            found = await self.lookup(ref, namespace, name)
        except NotFound:
            raise Unauthorized(f"{ref.plural} {namespace}/{name} of the token is gone") from None
        if uid and found["metadata"].get("uid") != uid:
            raise Unauthorized(f"{ref.plural} {namespace}/{name} is another one now")
        return found


def bearer(request: web.Request) -> str:
    """The bearer token of a request: in its header, or (browsers) among its WebSocket subprotocols."""
    kind, _, value = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    for word in request.headers.get("Sec-WebSocket-Protocol", "").split(","):
        if word.strip().startswith(_WEBSOCKET_BEARER):
            text = word.strip().removeprefix(_WEBSOCKET_BEARER)
            try:
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
            except ValueError:
                raise Unauthorized("Unauthorized") from None
    return ""


def _authenticated(user: User) -> User:
    if AUTHENTICATED in user.groups or user.name == ANONYMOUS:
        return user
    return structs.replace(user, groups=(*user.groups, AUTHENTICATED))


_by_connection: WeakKeyDictionary[Any, User | None] = WeakKeyDictionary()  # a connection's certificate never changes


def certificate_user(transport: Any) -> User | None:
    """The user that a verified client certificate names: common name and organizations; None without one."""
    tls = None if transport is None else transport.get_extra_info("ssl_object")
    if tls is None:
        return None
    try:
        return _by_connection[tls]
    except KeyError:
        user = _by_connection[tls] = _named_by(tls.getpeercert())
        return user


def _named_by(certificate: Any) -> User | None:
    if not certificate:
        return None
    name, groups = "", []
    for part in certificate.get("subject", ()):
        for word, value in part:
            if word == "commonName":
                name = value
            elif word == "organizationName":
                groups.append(value)
    if not name:
        return None
    return _authenticated(User(name=name, groups=tuple(groups)))
