"""Images: looking, naming, removing. What moves their content is in `images_transfer`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aiohttp import web

from insula import clock
from insula.api.docker.containers_filter import moment_of, until_of
from insula.api.docker.door import Door
from insula.api.docker.events import tell
from insula.api.docker.filters import Filters, parse
from insula.api.docker.images_words import (
    created_at,
    inspect_words,
    name_of,
    pattern_matches,
    removal_words,
    summary_words,
)
from insula.api.docker.route import Call, Route
from insula.api.web import json_response
from insula.errors import Conflict, Invalid, NotFound, Unsupported
from insula.images.contract import Image

_FILTERS = ("before", "dangling", "label", "label!", "reference", "since", "until")


async def list_all(call: Call) -> web.StreamResponse:
    """`GET /images/json`."""
    filters = parse(call.text("filters"), _FILTERS)
    images = await call.door.engine.images.list()
    chosen = await choose(call.door, images, filters)
    return json_response([_narrowed(image, filters) for image in chosen])


def _narrowed(image: Image, filters: Filters) -> dict[str, object]:
    words = summary_words(image)
    patterns = filters.get("reference")
    if patterns:
        words["RepoTags"] = [name for name in image.names if any(pattern_matches(p, name) for p in patterns)]
    return words


async def choose(door: Door, images: Sequence[Image], filters: Filters) -> list[Image]:
    """Those that pass. Raises NotFound for `before` and `since` of no image, Invalid."""
    store = door.engine.images
    before = [(await store.get(name)).created for name in filters.get("before")]
    since = [(await store.get(name)).created for name in filters.get("since")]
    until = [moment_of(text).timestamp() for text in filters.get("until")]
    return [
        image
        for image in images
        if filters.labels(image.config.labels)
        and ("dangling" not in filters or filters.flag("dangling") == (not image.names))
        and _named(image, filters)
        and all(image.created < edge for edge in before)
        and all(image.created > edge for edge in since)
        and all(created_at(image) < edge for edge in until)
    ]


def _named(image: Image, filters: Filters) -> bool:
    names = image.names + image.digests
    return filters.any("reference", lambda pattern: any(pattern_matches(pattern, name) for name in names))


async def inspect(call: Call) -> web.StreamResponse:
    """`GET /images/{name}/json`."""
    return json_response(inspect_words(await call.door.engine.images.get(call.params["name"])))


async def history(call: Call) -> web.StreamResponse:
    """`GET /images/{name}/history`."""
    return json_response(await call.door.engine.images.history(call.params["name"]))


async def tag(call: Call) -> web.StreamResponse:
    """`POST /images/{name}/tag`."""
    images, name = call.door.engine.images, name_of(call.text("repo"), call.text("tag"))
    if not name:
        raise Invalid("repository name must have at least one component", field="repo")
    await images.tag(call.params["name"], name)
    tell(call.door, "image", "tag", (await images.get(name)).id, name=name)
    return web.Response(status=201)


async def remove(call: Call) -> web.StreamResponse:
    """`DELETE /images/{name}`."""
    images, name = call.door.engine.images, call.params["name"]
    image = await images.get(name)
    done = await images.remove(name, force=call.flag("force"), uses=await call.door.engine.image_uses())
    _tell_removed(call.door, image, done)
    return json_response(removal_words(done))


def _tell_removed(door: Door, image: Image, done: Sequence[tuple[str, str]]) -> None:
    for what, id in done:
        if what == "untagged":
            tell(door, "image", "untag", image.id, name=id)
        elif id == image.id:
            tell(door, "image", "delete", image.id, name=image.id)


async def prune(call: Call) -> web.StreamResponse:
    """`POST /images/prune`: nameless images that nothing needs; with `dangling=false` named ones too."""
    filters = parse(call.text("filters"), ("dangling", "until", "label", "label!"))
    until, only_dangling = until_of(filters), filters.flag("dangling", default=True)
    images, uses = call.door.engine.images, await call.door.engine.image_uses()
    used = Counter(use.image for use in uses)
    done: list[tuple[str, str]] = []
    freed = 0
    for image in await images.list():
        if used[image.id] or (only_dangling and image.names) or not filters.labels(image.config.labels):
            continue
        if until and clock.parse_rfc3339(image.created) >= until:
            continue
        try:
            gone = await images.remove(image.id, force=True, uses=uses)
        except (Conflict, NotFound):
            continue
        _tell_removed(call.door, image, gone)
        done += gone
        freed += image.size_bytes if ("deleted", image.id) in gone else 0
    tell(call.door, "image", "prune", "", reclaimed=str(freed))
    return json_response({"ImagesDeleted": removal_words(done) or None, "SpaceReclaimed": freed})


async def search(call: Call) -> web.StreamResponse:
    """`GET /images/search`."""
    raise Unsupported("searching a registry is not supported: name the image to pull")


ROUTES = (
    Route("GET", "/images/json", list_all),
    Route("GET", "/images/search", search),
    Route("POST", "/images/prune", prune),
    Route("GET", "/images/{name*}/json", inspect),
    Route("GET", "/images/{name*}/history", history),
    Route("POST", "/images/{name*}/tag", tag),
    Route("DELETE", "/images/{name*}", remove),
)
