"""What a request asks for, read from its method and path alone. Pure.

    /api/v1/namespaces/NS/pods/NAME/log          /apis/GROUP/VERSION/RESOURCE...          anything else: a non-resource URL

Source: kube-apiserver's RequestInfo; RBAC rules are written in these words.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from msgspec import Struct

from insula.model.resource import Ref

_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})


class Asked(Struct, frozen=True, kw_only=True):
    """One request in the API's words. Empty strings where a part is absent; `ref` None for a non-resource URL."""

    verb: str
    path: str
    ref: Ref | None = None
    namespace: str = ""
    name: str = ""
    sub: str = ""
    rest: str = ""  # of a proxied path, with its slash

    @property
    def is_resource(self) -> bool:
        """Whether it asks for objects rather than for documents of the server."""
        return self.ref is not None


def read(method: str, path: str, query: Mapping[str, str]) -> Asked:
    """Say what is asked. `path` is still percent-encoded: a slash inside a name stays inside it."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    match parts:
        case ["api", version, *tail] if version and tail and tail != [""]:
            return _resource(method, path, query, "", version, tail)
        case ["apis", group, version, *tail] if tail and tail != [""]:
            return _resource(method, path, query, group, version, tail)
    return Asked(verb=method.lower(), path=unquote(path))


def _resource(method: str, path: str, query: Mapping[str, str], group: str, version: str, tail: list[str]) -> Asked:
    verb = _VERBS.get(method, method.lower())
    if tail[0] == "watch" and len(tail) > 1:
        tail, query = tail[1:], {**query, "watch": "true"}
    namespace = ""
    if tail[0] == "namespaces" and len(tail) > 1:
        namespace = tail[1]
        # objects in a namespace, unless it is the namespace itself that is asked for
        if len(tail) > 2 and tail[2] not in _NAMESPACE_SUBRESOURCES:
            tail = tail[2:]
        elif len(tail) > 2 or len(tail) == 2:
            tail = ["namespaces", *tail[1:]]
    name = tail[1] if len(tail) > 1 else ""
    sub = tail[2] if len(tail) > 2 else ""
    if not name:
        verb = {"get": "watch" if truth(query.get("watch")) else "list", "delete": "deletecollection"}.get(verb, verb)
    elif verb == "get" and not sub and truth(query.get("watch")):
        verb = "watch"
    rest = "/" + "/".join(tail[3:]) if len(tail) > 3 else ""
    return Asked(
        verb=verb,
        path=unquote(path),
        ref=Ref(group, version, tail[0]),
        namespace=namespace,
        name=name,
        sub=sub,
        rest=rest,
    )


def truth(text: str | None) -> bool:
    """A boolean query parameter as Go's conversion reads it: present and not false or 0."""
    return text is not None and text not in ("false", "0", "False", "FALSE", "f", "F")
