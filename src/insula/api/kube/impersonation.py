"""Acting as somebody else: the Impersonate-* headers, each allowed by the `impersonate` verb."""

from __future__ import annotations

from urllib.parse import unquote

from aiohttp import web

from insula.api.kube.context import Authorizer
from insula.api.kube.rbac import Question, refuse
from insula.api.kube.users import AUTHENTICATED, SERVICE_ACCOUNT_PREFIX, user_of
from insula.errors import Invalid
from insula.verbs.request import User

_AUTHN = "authentication.k8s.io"
_EXTRA = "impersonate-extra-"


def impersonated(request: web.Request, user: User, authorizer: Authorizer) -> User:
    """The user that the request wants to be, or the one it is. Raises Forbidden, Invalid."""
    headers = request.headers
    name = headers.get("Impersonate-User")
    groups = headers.getall("Impersonate-Group", [])
    uid = headers.get("Impersonate-Uid", "")
    extra: dict[str, list[str]] = {}
    if name is None and not groups and not uid:
        return user
    for key, value in headers.items():
        if key.lower().startswith(_EXTRA):
            extra.setdefault(unquote(key[len(_EXTRA) :]).lower(), []).append(value)
    if not name:
        raise Invalid("requested groups, uid or extra without impersonating a user")
    for asked in _questions(name, groups, uid, extra):
        if not authorizer.allows(user, asked):
            raise refuse(user, asked)
    found = user_of(name, groups, uid, extra)
    if AUTHENTICATED not in found.groups and name != "system:anonymous":
        found = user_of(name, (*found.groups, AUTHENTICATED), uid, extra)
    return found


def _questions(name: str, groups: list[str], uid: str, extra: dict[str, list[str]]) -> list[Question]:
    if name.startswith(SERVICE_ACCOUNT_PREFIX) and name.count(":") == 3:
        _, _, namespace, account = name.split(":")
        asked = [Question(verb="impersonate", resource="serviceaccounts", namespace=namespace, name=account)]
    else:
        asked = [Question(verb="impersonate", resource="users", name=name)]
    asked += [Question(verb="impersonate", resource="groups", name=group) for group in groups]
    if uid:
        asked.append(Question(verb="impersonate", group=_AUTHN, resource="uids", name=uid))
    for key, values in extra.items():
        asked += [
            Question(verb="impersonate", group=_AUTHN, resource="userextras", sub=key, name=value) for value in values
        ]
    return asked
