"""Looking at containers: the list with its filters, one in full, its processes; and removing those that ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from insula import clock
from insula.api.docker.containers_filter import KNOWN, choose, until_of
from insula.api.docker.containers_inspect import inspect_words, summary_words
from insula.api.docker.door import Door
from insula.api.docker.events import tell
from insula.api.docker.filters import parse
from insula.api.docker.ownps import list_own
from insula.api.docker.route import Call, Route
from insula.api.docker.words_out import labels_of
from insula.api.web import json_response
from insula.engine.contract import Instance
from insula.errors import Conflict, HostFault, Invalid, NotFound
from insula.host import spawn
from insula.networks.contract import Network


async def networks_by_id(door: Door) -> dict[str, Network]:
    """All networks of the node."""
    return {network.id: network for network in await door.engine.networks.list()}


async def inspect(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/json`."""
    door = call.door
    instance = await door.engine.get(call.params["id"])
    sizes = await door.engine.disk_usage(instance.id) if call.flag("size") else None
    words = inspect_words(
        instance,
        await networks_by_id(door),
        sizes=sizes,
        cgroupns=door.cgroupns,
        apparmor=door.limits.apparmor,
    )
    return json_response(words)


async def list_all(call: Call) -> web.StreamResponse:
    """`GET /containers/json`."""
    door = call.door
    filters = parse(call.text("filters"), KNOWN)
    limit = call.number("limit", 0) or 0
    everything = call.flag("all") or limit > 0 or "status" in filters or "exited" in filters
    chosen = choose(await door.engine.list(), filters, await networks_by_id(door), everything=everything)
    if limit > 0:
        chosen = chosen[:limit]
    return json_response(await rows(door, chosen, sizes=call.flag("size")))


async def rows(door: Door, instances: Sequence[Instance], *, sizes: bool) -> list[dict[str, Any]]:
    """As the list shows them; `sizes` walks their file systems."""
    networks, now = await networks_by_id(door), clock.now()
    names = link_names(await door.engine.list())
    found = []
    for each in instances:
        try:
            size = await door.engine.disk_usage(each.id) if sizes else None
        except NotFound:
            continue  # removed meanwhile
        found.append(summary_words(each, networks, now, sizes=size, names=names.get(each.id, ())))
    return found


def link_names(instances: Sequence[Instance]) -> dict[str, list[str]]:
    """The names that instances have by links of others, by their ids: `/web/db`."""
    found: dict[str, list[str]] = {}
    for each in instances:
        for link in each.config.links:
            if link.network == "default":
                found.setdefault(link.target, []).append(f"/{each.config.name}/{link.alias}")
    return found


# --- prune ----------------------------------------------------------------------------------------------------------


async def prune(call: Call) -> web.StreamResponse:
    """`POST /containers/prune`: only what this door made; a pod's containers belong to their pod."""
    filters = parse(call.text("filters"), ("until", "label", "label!"))
    until, engine = until_of(filters), call.door.engine
    removed, freed = [], 0
    for each in await engine.list():
        if each.config.owner != "docker" or each.state.name not in ("created", "exited", "dead"):
            continue
        if not filters.labels(labels_of(each)) or (until and clock.parse_rfc3339(each.created) >= until):
            continue
        try:
            size, _ = await engine.disk_usage(each.id)
            await engine.remove(each.id)
        except (NotFound, Conflict):
            continue  # somebody else was faster
        removed.append(each.id)
        freed += size
    tell(call.door, "container", "prune", "", reclaimed=str(freed))
    return json_response({"ContainersDeleted": removed or None, "SpaceReclaimed": freed})


# --- top ----------------------------------------------------------------------------------------------------------


async def top(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/top`: the host's ps(1), of the container's processes."""
    arguments = (call.text("ps_args") or "-ef").split()
    instance = await call.door.engine.get(call.params["id"])
    if instance.state.name not in ("running", "paused"):
        raise Conflict(f"container {instance.id} is not running")
    own = await call.door.engine.processes(instance.id)
    if own is not None:
        return json_response(list_own(arguments, own, clock.now()))
    pids = await call.door.engine.pids(instance.id)
    try:
        done = await spawn.run(["ps", *arguments], deadline_s=10)
    except HostFault as fault:
        lines = (fault.stderr or fault.message).strip().splitlines() or ["failed"]
        raise Invalid(f"ps: {lines[0]}", field="ps_args") from fault
    return json_response(parse_ps(done.stdout.decode(errors="replace"), set(pids)))


def parse_ps(text: str, pids: set[int]) -> dict[str, Any]:
    """The titles, and the rows of these processes. Raises Invalid when ps printed no PID column."""
    lines = text.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise Invalid("Couldn't find PID field in ps output", field="ps_args")
    column = titles.index("PID")
    found = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            found.append([field.rstrip() for field in fields])
    return {"Titles": titles, "Processes": found}


ROUTES = (
    Route("GET", "/containers/json", list_all),
    Route("GET", "/containers/{id}/json", inspect),
    Route("GET", "/containers/{id}/top", top),
    Route("POST", "/containers/prune", prune),
)
