"""Answers that are never stored: who am I, may I, whose token is this, give me a token. Registered with the verbs, so that
clients inside the process get them too."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from insula.api.kube.authn import Authority
from insula.api.kube.context import Authorizer
from insula.api.kube.rbac import Question
from insula.api.kube.tokens import DEFAULT_LIFE_S, MAX_LIFE_S, MIN_LIFE_S, Bound
from insula.api.kube.users import user_info, user_of
from insula.clock import rfc3339
from insula.errors import Cause, Invalid, NotFound, Unauthorized
from insula.kinds.kind import Kind
from insula.kinds.printing import get
from insula.model.resource import Ref, Resource
from insula.verbs import faults
from insula.verbs.request import Request, User
from insula.verbs.verbs import Verbs

_AUTHN, _AUTHZ = "authentication.k8s.io", "authorization.k8s.io"
ACCOUNTS = Ref("", "v1", "serviceaccounts")
_BOUND_REFS = {
    ("v1", "Pod"): ("pod", Ref("", "v1", "pods")),
    ("v1", "Secret"): ("secret", Ref("", "v1", "secrets")),
    ("v1", "Node"): ("node", Ref("", "v1", "nodes")),
}


class Reviews:
    """The handlers over one authority and one authorizer."""

    def __init__(self, authority: Authority, authorizer: Authorizer) -> None:
        self._authority = authority
        self._authorizer = authorizer

    def register(self, verbs: Verbs) -> None:
        """Let the verbs answer with these."""
        verbs.handle(Ref(_AUTHN, "v1", "selfsubjectreviews"), self.who_am_i)
        verbs.handle(Ref(_AUTHN, "v1", "tokenreviews"), self.whose_token)
        verbs.handle(Ref(_AUTHZ, "v1", "selfsubjectaccessreviews"), self.may_i)
        verbs.handle(Ref(_AUTHZ, "v1", "subjectaccessreviews"), self.may_they)
        verbs.handle(Ref(_AUTHZ, "v1", "localsubjectaccessreviews"), self.may_they)
        verbs.handle(Ref(_AUTHZ, "v1", "selfsubjectrulesreviews"), self.my_rules)
        verbs.handle(ACCOUNTS, self.token, sub="token")

    async def who_am_i(
        self, verbs: Verbs, request: Request, kind: Kind, namespace: str, name: str, body: dict[str, Any]
    ) -> Resource:
        """SelfSubjectReview."""
        return _answer(kind, body, {"userInfo": user_info(request.user)}, spec=False)

    async def whose_token(
        self, verbs: Verbs, request: Request, kind: Kind, namespace: str, name: str, body: dict[str, Any]
    ) -> Resource:
        """TokenReview."""
        token = get(body, "spec", "token", default="")
        wanted = get(body, "spec", "audiences", default=[])
        try:
            if wanted:
                claims = self._authority.tokens.check(token, wanted)
                user = await self._authority.account_of(claims)
                shared = [audience for audience in wanted if audience in claims.audiences]
            else:
                user = await self._authority.user_of_token(token)
                shared = list(self._authority.tokens.audiences)
        except Unauthorized as fault:
            return _answer(kind, body, {"user": {}, "error": fault.message})
        return _answer(kind, body, {"authenticated": True, "user": user_info(user), "audiences": shared})

    async def may_i(
        self, verbs: Verbs, request: Request, kind: Kind, namespace: str, name: str, body: dict[str, Any]
    ) -> Resource:
        """SelfSubjectAccessReview."""
        return _answer(kind, body, self._judge(request.user, get(body, "spec", default={}), kind))

    async def may_they(
        self, verbs: Verbs, request: Request, kind: Kind, namespace: str, name: str, body: dict[str, Any]
    ) -> Resource:
        """SubjectAccessReview and LocalSubjectAccessReview."""
        spec = get(body, "spec", default={})
        if not spec.get("user") and not spec.get("groups"):
            why = 'Invalid value: "": at least one of user or group must be specified'
            raise faults.invalid(kind, "", [Cause("spec.user", "FieldValueInvalid", why)])
        inner = get(spec, "resourceAttributes", "namespace", default="")
        if kind.namespaced and inner != namespace:
            raise Invalid(f"spec.resourceAttributes.namespace must match namespace: expected {namespace}, got {inner}")
        user = user_of(spec.get("user") or "", spec.get("groups") or (), spec.get("uid") or "", spec.get("extra"))
        return _answer(kind, body, self._judge(user, spec, kind))

    def _judge(self, user: User, spec: Mapping[str, Any], kind: Kind) -> Resource:
        wanted, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
        if bool(wanted) == bool(path):
            why = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
            raise faults.invalid(
                kind, "", [Cause("spec.resourceAttributes", "FieldValueInvalid", f"Invalid value: {why}")]
            )
        asked = _question(wanted) if wanted else Question(verb=path.get("verb", ""), path=path.get("path", ""))  # type: ignore[union-attr]
        if self._authorizer.allows(user, asked):
            return {"allowed": True, "reason": "RBAC: allowed"}
        return {"allowed": False}

    async def my_rules(
        self, verbs: Verbs, request: Request, kind: Kind, namespace: str, name: str, body: dict[str, Any]
    ) -> Resource:
        """SelfSubjectRulesReview."""
        where = get(body, "spec", "namespace", default="")
        if not where:
            raise Invalid("no namespace on request")
        resources, paths = [], []
        for rule in self._authorizer.rules(request.user, where):
            if rule.resources:
                one = {
                    "verbs": sorted(rule.verbs),
                    "apiGroups": sorted(rule.groups),
                    "resources": sorted(rule.resources),
                }
                resources.append(one | ({"resourceNames": sorted(rule.names)} if rule.names else {}))
            if rule.paths:
                paths.append({"verbs": sorted(rule.verbs), "nonResourceURLs": list(rule.paths)})
        return _answer(kind, body, {"resourceRules": resources, "nonResourceRules": paths, "incomplete": False})

    async def token(
        self, verbs: Verbs, request: Request, kind: Kind, namespace: str, name: str, body: dict[str, Any]
    ) -> Resource:
        """TokenRequest of a service account. Raises NotFound, Invalid, Conflict."""
        account = await verbs.get(ACCOUNTS, name, namespace)
        spec = get(body, "spec", default={})
        life = spec.get("expirationSeconds") or DEFAULT_LIFE_S
        _check_life(life)
        audiences = [str(each) for each in spec.get("audiences") or self._authority.tokens.audiences]
        bound = await _bound(verbs, namespace, spec.get("boundObjectRef"))
        token, expires_s = self._authority.tokens.issue(
            namespace, name, account["metadata"]["uid"], audiences=audiences, life_s=life, bound=bound
        )
        moment = rfc3339(datetime.fromtimestamp(expires_s, UTC))
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**spec, "audiences": audiences, "expirationSeconds": life},
            "status": {"token": token, "expirationTimestamp": moment},
        }


def _check_life(life: object) -> None:
    why = ""
    if not isinstance(life, int) or isinstance(life, bool):
        why = "must be a whole number of seconds"
    elif life < MIN_LIFE_S:
        why = "may not specify a duration less than 10 minutes"
    elif life > MAX_LIFE_S:
        why = "may not specify a duration larger than 2^32 seconds"
    if why:
        cause = Cause("spec.expirationSeconds", "FieldValueInvalid", f"Invalid value: {life}: {why}")
        raise Invalid(
            f'TokenRequest.authentication.k8s.io "" is invalid: {cause.field}: {cause.message}', causes=[cause]
        )


async def _bound(verbs: Verbs, namespace: str, wanted: Mapping[str, Any] | None) -> Bound | None:
    if not wanted:
        return None
    known = _BOUND_REFS.get((wanted.get("apiVersion", ""), wanted.get("kind", "")))
    if known is None:
        raise Invalid(
            f"cannot bind token to object of type {wanted.get('apiVersion')}, Kind={wanted.get('kind')}: "
            "a Pod, a Secret or a Node of v1 is possible",
            field="spec.boundObjectRef",
        )
    word, ref = known
    name = str(wanted.get("name", ""))
    try:
        found = await verbs.get(ref, name, "" if word == "node" else namespace)
    except NotFound:
        raise NotFound(f'{ref.plural} "{name}" not found', kind=ref.plural, name=name) from None
    uid = found["metadata"]["uid"]
    if wanted.get("uid") and wanted["uid"] != uid:
        why = f"the UID in the bound object reference ({wanted['uid']}) does not match the UID in record"
        raise faults.conflict(verbs.registry.by_ref(ref), name, why)
    return Bound(kind=word, name=name, uid=uid)


def _question(wanted: Mapping[str, Any]) -> Question:
    return Question(
        verb=wanted.get("verb", ""),
        group=wanted.get("group", ""),
        version=wanted.get("version", ""),
        resource=wanted.get("resource", ""),
        sub=wanted.get("subresource", ""),
        namespace=wanted.get("namespace", ""),
        name=wanted.get("name", ""),
    )


def _answer(kind: Kind, body: Mapping[str, Any], status: Resource, *, spec: bool = True) -> Resource:
    meta = {name: value for name, value in (body.get("metadata") or {}).items() if value}
    out: Resource = {"kind": kind.kind, "apiVersion": kind.ref.api_version, "metadata": meta}
    if spec:
        out["spec"] = body.get("spec") or {}
    out["status"] = status
    return out
