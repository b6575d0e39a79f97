"""Who asks: names and groups that mean something to Kubernetes, and users in the form that reviews show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from insula.verbs.request import User

ANONYMOUS = "system:anonymous"
AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
MASTERS = "system:masters"
SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"


def anonymous() -> User:
    """Somebody without credentials."""
    return User(name=ANONYMOUS, groups=(UNAUTHENTICATED,))


def service_account(namespace: str, name: str, uid: str = "", extra: Mapping[str, Sequence[str]] | None = None) -> User:
    """The identity of a service account."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", AUTHENTICATED)
    return User(name=f"{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}", groups=groups, uid=uid, extra=extra or {})


def user_info(user: User) -> dict[str, Any]:
    """As `authentication.k8s.io` UserInfo."""
    out: dict[str, Any] = {"username": user.name}
    if user.uid:
        out["uid"] = user.uid
    if user.groups:
        out["groups"] = list(user.groups)
    if user.extra:
        out["extra"] = {key: list(values) for key, values in user.extra.items()}
    return out


def user_of(name: str, groups: Sequence[str], uid: str = "", extra: Mapping[str, Sequence[str]] | None = None) -> User:
    """A user as reviews and impersonation name it. A service account's name implies its groups where none are given."""
    if not groups and name.startswith(SERVICE_ACCOUNT_PREFIX) and name.count(":") == 3:
        _, _, namespace, account = name.split(":")
        return service_account(namespace, account, uid, extra)
    return User(name=name, groups=tuple(groups), uid=uid, extra=extra or {})
