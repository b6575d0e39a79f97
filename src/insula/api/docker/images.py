"""Images: looking, naming, removing. What moves their content is in `images_transfer`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence

from aiohttp import web
from msgspec.structs import replace

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
    """`GET /images/json`. Nameless images that others were made from show with `all` only."""
    filters = parse(call.text("filters"), _FILTERS)
    if call.version < (1, 41) and call.text("filter"):
        filters = filters.having("reference", call.text("filter"))
    store = call.door.engine.images
    every = await store.list()
    images = await choose(call.door, every, filters)
    if not call.flag("all"):
        parents = {image.parent for image in every}
        images = [image for image in images if image.names or image.id not in parents]
    used = Counter(use.image for use in await call.door.engine.image_uses()) if call.version >= (1, 51) else None
    asks = call.flag("shared-size") and call.version >= (1, 42)
    shared = (await store.usage()).shared_bytes if asks else {}
    return json_response(
        [
            summary_words(
                _narrowed(image, filters),
                call.version,
                containers=-1 if used is None else used[image.id],
                shared=shared.get(image.id, 0) if asks else -1,
            )
            for image in images
        ]
    )


def _narrowed(image: Image, filters: Filters) -> Image:
    """Of the names only those that were asked for."""
    patterns = filters.get("reference")
    if not patterns:
        return image

    def fitting(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if any(pattern_matches(pattern, name) for pattern in patterns))

    return replace(image, names=fitting(image.names), digests=fitting(image.digests))


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
    platform = call.text("platform") if call.version >= (1, 49) else ""
    if platform and call.flag("manifests"):
        raise Invalid("conflicting options: manifests and platform options are mutually exclusive", field="platform")
    image = await call.door.engine.images.get(call.params["name"], platform=platform)
    return json_response(inspect_words(image, call.version))


async def history(call: Call) -> web.StreamResponse:
    """`GET /images/{name}/history`."""
    platform = call.text("platform") if call.version >= (1, 48) else ""
    return json_response(await call.door.engine.images.history(call.params["name"], platform=platform))


async def tag(call: Call) -> web.StreamResponse:
    """`POST /images/{name}/tag`."""
    images, name = call.door.engine.images, name_of(call.text("repo"), call.text("tag"))
    if not name:
        raise Invalid("repository name must have at least one component", field="repo")
    await images.tag(call.params["name"], name)
    image = await images.get(name)
    tell(call.door, "image", "tag", image.id, **{**image.config.labels, "name": name})
    return web.Response(status=201)


async def remove(call: Call) -> web.StreamResponse:
    """`DELETE /images/{name}`."""
    images, name = call.door.engine.images, call.params["name"]
    image = await images.get(name)
    platforms = call.request.query.getall("platforms", []) if call.version >= (1, 50) else []
    done = await images.remove(
        name,
        force=call.flag("force"),
        uses=await call.door.engine.image_uses(),
        prune=not call.flag("noprune"),
        platforms=platforms,
    )
    _tell_removed(call.door, image, done)
    return json_response(removal_words(done))


def _tell_removed(door: Door, image: Image, done: Sequence[tuple[str, str]]) -> None:
    """As dockerd, which names the image by its id in both."""
    attributes = {**image.config.labels, "name": image.id}
    for what, id in done:
        if what == "untagged":
            tell(door, "image", "untag", image.id, **attributes)
        elif id == image.id:
            tell(door, "image", "delete", image.id, **attributes)


async def prune(call: Call) -> web.StreamResponse:
    """`POST /images/prune`: nameless images that nothing needs; with `dangling=false` named ones too. What is left of pulls
    that were cut short goes as well."""
    filters = parse(call.text("filters"), ("dangling", "until", "label", "label!"))
    until, only_dangling = until_of(filters), filters.flag("dangling", default=True)
    images, uses = call.door.engine.images, await call.door.engine.image_uses()
    used = {use.image for use in uses}
    before = (await images.usage()).layers_bytes
    done: list[tuple[str, str]] = []
    for image in await images.list():
        if image.id in used or (only_dangling and image.names) or not filters.labels(image.config.labels):
            continue
        if until and clock.parse_rfc3339(image.created) >= until:
            continue
        with contextlib.suppress(Conflict, NotFound):
            gone = await images.remove(image.id, force=True, uses=uses)
            _tell_removed(call.door, image, gone)
            done += gone
    freed = max(0, before - (await images.usage()).layers_bytes) + await images.drop_partial()
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
