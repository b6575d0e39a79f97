"""What happens on the node, as `docker events` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from aiohttp import web

from insula.api.docker.containers_filter import moment_ns
from insula.api.docker.containers_network import docker_name
from insula.api.docker.door import Door
from insula.api.docker.filters import Filters, has_label, parse
from insula.api.docker.route import Call, Route
from insula.api.docker.versions import NEWEST, Version
from insula.api.web import encode, streaming
from insula.engine.contract import Event
from insula.errors import InsulaError, Invalid

_FILTERS = (
    "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service",
    "type", "volume",
)  # fmt: skip
_BY_ID = ("container", "daemon", "image", "network", "volume")
_FOREIGN = ("config", "node", "plugin", "secret", "service")


def tell(
    door: Door,
    kind: Literal["container", "image", "network", "volume", "daemon", "builder"],
    action: str,
    id: str,
    **attributes: str,
) -> None:
    """Publish what this door did past the engine."""
    door.engine.publish(Event(type=kind, action=action, id=id, attributes=attributes))


def event_words(event: Event, version: Version = NEWEST) -> dict[str, Any]:
    """One event; before 1.52 containers and images carry the fields of very old clients too."""
    attributes = event.attributes
    if event.type == "network" and attributes.get("name") == "default":
        attributes = {**attributes, "name": docker_name("default")}
    words: dict[str, Any] = {}
    if event.type in ("container", "image") and version < (1, 52):
        words = {"status": event.action, "id": event.id}
        if event.type == "container" and "image" in attributes:
            words["from"] = attributes["image"]
    return words | {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": attributes},
        "scope": "local",
        "time": event.time_ns // 1_000_000_000,
        "timeNano": event.time_ns,
    }


def passes(event: Event, filters: Filters) -> bool:
    """Whether a client wants to see it."""
    if not filters:
        return True
    return (
        filters.any("type", lambda value: value == event.type)
        and filters.any("event", lambda value: value == event.action or event.action.startswith(f"{value}: "))
        and filters.any("scope", lambda value: value == "local")
        and all(_is(event, kind, filters) for kind in _BY_ID)
        and not any(kind in filters for kind in _FOREIGN)
        and filters.all("label", lambda value: has_label(event.attributes, value))
    )


def _is(event: Event, kind: str, filters: Filters) -> bool:
    """`container=NAME` and its like; `image` also means events of containers made from it."""
    names: Mapping[str, str] = event.attributes
    if kind == "image" and event.type == "container":
        return filters.any(kind, lambda value: names.get("image", "") in (value, f"{value}:latest"))
    if kind in filters and event.type != kind:
        return kind == "container" and filters.any(kind, lambda value: names.get("container", "?") == value)
    return filters.any(
        kind, lambda value: value in (event.id, names.get("name")) or (len(value) >= 4 and event.id.startswith(value))
    )


async def stream(call: Call) -> web.StreamResponse:
    """`GET /events`: one JSON object to a line, until `until` or until the client leaves."""
    filters = parse(call.text("filters"), _FILTERS)
    since, until = moment_ns(call.text("since")), moment_ns(call.text("until"))
    if since and until and since > until:
        raise Invalid("`since` time cannot be after `until` time", field="since")
    async with streaming(call.request, content_type="application/json") as response:
        # Only an end: all that is remembered until then, as dockerd has it.
        events = call.door.engine.events(since_ns=0 if until and not since else since, until_ns=until)
        try:
            async for event in events:
                if passes(event, filters):
                    await response.write(encode(event_words(event, call.version)) + b"\n")
        except InsulaError as fault:
            await response.write(encode({"message": fault.message}) + b"\n")
            raise
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # an asynchronous generator
    return response


ROUTES = (Route("GET", "/events", stream, stream=True),)
