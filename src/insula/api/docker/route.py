"""Routes are data: each noun's file exports `ROUTES`; this file matches a request against all of them.

A path pattern is made of fixed words and `{name}` parts; `{name*}` takes slashes too (image names have them). Handlers get
a `Call` and answer with a response. A `stream` handler is cancelled when its client leaves; any other one is finished, so that
a client that goes away in the middle of `start` leaves nothing half done.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from insula.api.docker.door import Door
from insula.api.docker.shape import shape
from insula.api.docker.versions import Version
from insula.api.web import decode_json, read_body
from insula.errors import Invalid, NotFound

T = TypeVar("T")
Handler = Callable[["Call"], Awaitable[web.StreamResponse]]
_FALSE = frozenset({"", "0", "no", "false", "none"})


@dataclass(frozen=True)
class Route:
    """One row of the table."""

    method: str
    path: str
    handler: Handler
    stream: bool = False


@dataclass(frozen=True)
class Call:
    """One request, with what its path said."""

    door: Door
    request: web.BaseRequest
    version: Version
    params: Mapping[str, str]
    query: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str, default: str = "") -> str:
        """A parameter of the query."""
        return self.query.get(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value, as dockerd reads it: everything but 0, no, false, none and nothing is true."""
        value = self.query.get(name)
        return default if value is None else value.strip().lower() not in _FALSE

    def number(self, name: str, default: int | None = None) -> int | None:
        """A whole number. Raises Invalid."""
        value = self.query.get(name)
        if value is None or value == "":
            return default
        try:
            return int(value)
        except ValueError as fault:
            raise Invalid(f"invalid value for '{name}': {value!r} is not a whole number", field=name) from fault

    async def body(self) -> Any:
        """The body as a JSON object, {} for none. Raises Invalid with the Docker Engine's sentences."""
        data = await read_body(self.request)
        if not data:
            return {}
        kind = self.request.content_type
        if kind not in ("application/json", "application/octet-stream", "text/plain"):
            raise Invalid(f"Content-Type specified ({kind}) must be 'application/json'", field="Content-Type")
        value = decode_json(data)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise Invalid("invalid JSON: the body must be an object")
        return value

    async def read(self, kind: type[T]) -> T:
        """The body as a record."""
        return shape(await self.body(), kind)


# --- the table --------------------------------------------------------------------------------------------------


class Table:
    """All routes, found by method and first word, then by pattern."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._patterns: dict[tuple[str, str], list[tuple[re.Pattern[str], Route]]] = {}
        for route in routes:
            if "{" in route.path:
                self._patterns.setdefault((route.method, _first(route.path)), []).append((_compile(route.path), route))
            else:
                self._exact[route.method, route.path] = route

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Raises NotFound with the Docker Engine's sentence, also for a method that a path does not have."""
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact, {}
        for pattern, route in self._patterns.get((method, _first(path)), ()):
            match = pattern.fullmatch(path)
            if match:
                return route, match.groupdict()
        raise NotFound("page not found")


def _first(path: str) -> str:
    return path[1:].partition("/")[0]


def _compile(path: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w+\*?\})", path)
    return re.compile("".join(_part(part) for part in parts), re.DOTALL)


def _part(part: str) -> str:
    if not part.startswith("{"):
        return re.escape(part)
    name = part.strip("{}")
    return f"(?P<{name[:-1]}>.+)" if name.endswith("*") else f"(?P<{name}>[^/]+)"
