"""Images on the move: pull, push, load, save, import. Each tells its progress as a stream of JSON lines."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, Protocol

import aiohttp
import msgspec
from aiohttp import web

from insula.api.docker import errors
from insula.api.docker.door import Door
from insula.api.docker.events import tell
from insula.api.docker.images_words import error_words, has_tag, name_of, progress_words, repository_of
from insula.api.docker.route import Call, Route
from insula.api.docker.versions import OLDEST, Version
from insula.api.web import body_chunks, encode, json_response, send_chunks, streaming
from insula.engine.building.contract import BuildFault
from insula.errors import Invalid, NotFound, Unavailable
from insula.images.contract import Auth, Image, Progress
from insula.tasks import finish

_EVERY_S = 0.1  # progress of one layer is told this often at most
_FETCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
TAR = "application/x-tar"
_HUB = ("", "docker.io", "index.docker.io", "registry-1.docker.io")


class AuthWords(msgspec.Struct, frozen=True, kw_only=True):
    """What X-Registry-Auth carries."""

    username: str = ""
    password: str = ""
    auth: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


def auth_of(header: str) -> Auth | None:
    """Credentials from base64url JSON. Raises Invalid."""
    if not header:
        return None
    try:
        words = msgspec.json.decode(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)), type=AuthWords)
    except (msgspec.DecodeError, ValueError, binascii.Error) as fault:
        raise Invalid("invalid X-Registry-Auth header: it must be JSON in base64url") from fault
    return auth_from(words)


def auth_from(words: AuthWords) -> Auth | None:
    """None where nothing is given."""
    if not (words.username or words.identitytoken or words.registrytoken):
        return None
    return Auth(
        username=words.username,
        password=words.password,
        identity_token=words.identitytoken,
        registry_token=words.registrytoken,
    )


# --- progress -----------------------------------------------------------------------------------------------------


class _Steps:
    """Progress waiting to be sent: of one layer in one state only the newest is kept."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], Progress] = {}
        self._arrived = asyncio.Event()

    def report(self, step: Progress) -> None:
        """Called by the work."""
        self._waiting[step.id, step.status] = step
        self._arrived.set()

    def take(self) -> bytes:
        """What is to be sent now."""
        steps, self._waiting = self._waiting, {}
        self._arrived.clear()
        return b"".join(encode(progress_words(step)) + b"\r\n" for step in steps.values())

    async def arrived(self) -> None:
        """Until there is something."""
        await self._arrived.wait()


class Waiting(Protocol):
    """Lines that wait to be sent."""

    def take(self) -> bytes:
        """What is to be sent now."""
        ...

    async def arrived(self) -> None:
        """Until there is something."""
        ...


async def told(
    call: Call, work: Coroutine[Any, Any, Sequence[dict[str, Any]]], steps: Waiting, *, always_lines: bool = False
) -> web.StreamResponse:
    """Run `work` while its progress goes out; what it returns are the last lines. A fault before the first line is an ordinary
    error answer unless `always_lines`, a later one the last line. The work ends when the client leaves."""
    running = asyncio.create_task(work, name="docker/transfer")
    news: asyncio.Task[None] | None = None
    try:
        news = asyncio.create_task(steps.arrived())
        await asyncio.wait((running, news), return_when=asyncio.FIRST_COMPLETED)
        if running.done() and running.exception() is not None and not news.done() and not always_lines:
            await running
        async with streaming(call.request, content_type="application/json") as response:
            while not running.done():
                await response.write(steps.take())
                await asyncio.wait((running,), timeout=_EVERY_S)
                news = news if not news.done() else asyncio.create_task(steps.arrived())
                await asyncio.wait((running, news), return_when=asyncio.FIRST_COMPLETED)
            await response.write(steps.take())
            await response.write(b"".join(encode(line) + b"\r\n" for line in _last_lines(call, running)))
        return response
    finally:
        if news is not None:
            await finish(news)
        if not running.done():
            await finish(running)


def _last_lines(call: Call, running: asyncio.Task[Sequence[dict[str, Any]]]) -> Sequence[dict[str, Any]]:
    fault = running.exception()
    if fault is None:
        return running.result()
    errors.record(fault, f"{call.request.method} {call.request.path}")
    return [error_words(errors.sentence(fault), fault.code if isinstance(fault, BuildFault) else 0)]


# --- in -----------------------------------------------------------------------------------------------------------


async def create(call: Call) -> web.StreamResponse:
    """`POST /images/create`: pull with `fromImage`, import with `fromSrc`."""
    if call.text("fromImage"):
        return await _pull(call)
    if call.text("fromSrc"):
        return await _import(call)
    raise Invalid("either fromImage or fromSrc must be given", field="fromImage")


def _platform(call: Call, since: Version = OLDEST) -> str:
    """The platform asked for; before the version that knows the parameter it is ignored, as unknown ones are."""
    return call.text("platform") if call.version >= since else ""


async def _pull(call: Call) -> web.StreamResponse:
    reference = name_of(call.text("fromImage"), call.text("tag"))
    auth = auth_of(call.request.headers.get("X-Registry-Auth", ""))
    steps = _Steps()

    async def work() -> list[dict[str, Any]]:
        images, platform = call.door.engine.images, _platform(call)
        if has_tag(reference):
            image = await images.pull(reference, auth=auth, platform=platform, report=steps.report)
            _tell_pulled(call.door, reference, image)
            return []
        for image in await images.pull_all(reference, auth=auth, platform=platform, report=steps.report):
            _tell_pulled(call.door, reference, image)
        return []

    return await told(call, work(), steps)


def _tell_pulled(door: Door, reference: str, image: Image) -> None:
    """The Docker Engine names the reference as the actor, and the repository as its name, beside the image's labels."""
    tell(door, "image", "pull", reference, **{**image.config.labels, "name": repository_of(reference)})


async def _import(call: Call) -> web.StreamResponse:
    source = call.text("fromSrc")
    changes = [line for text in call.request.query.getall("changes", []) for line in text.split("\n") if line.strip()]
    name = name_of(call.text("repo"), call.text("tag"))
    if source != "-" and not source.startswith(("http://", "https://")):
        source = f"http://{source}"
    message = call.text("message") or f"Imported from {source}"
    steps = _Steps()

    async def work() -> list[dict[str, Any]]:
        async with contextlib.aclosing(_source(call, source, steps)) as archive:
            images = call.door.engine.images
            image = await images.import_rootfs(
                archive, name=name, changes=changes, message=message, platform=_platform(call)
            )
        tell(call.door, "image", "import", image.id, name=image.id)
        return [{"status": image.id}]

    return await told(call, work(), steps)


async def _source(call: Call, source: str, steps: _Steps) -> AsyncGenerator[bytes, None]:
    """The body, or what a URL answers. Raises Unavailable."""
    if source == "-":
        async for chunk in body_chunks(call.request):
            yield chunk
        return
    try:
        async with (
            aiohttp.ClientSession(timeout=_FETCH_TIMEOUT, auto_decompress=False) as session,
            session.get(source) as answer,
        ):
            if answer.status != 200:
                raise Unavailable(f"Get {source!r}: the server answered {answer.status} {answer.reason}")
            done, total = 0, answer.content_length or 0
            async for chunk in answer.content.iter_any():
                done += len(chunk)
                steps.report(Progress(status="Importing", current=done, total=total))
                yield chunk
    except (aiohttp.ClientError, TimeoutError, ValueError) as fault:
        raise Unavailable(f"Get {source!r}: {fault or 'timed out'}") from fault


async def load(call: Call) -> web.StreamResponse:
    """`POST /images/load`."""
    steps, quiet = _Steps(), call.flag("quiet")
    loaded: list[str] = []

    def report(step: Progress) -> None:
        if step.status.startswith("Loaded image"):
            loaded.append(step.status)
        elif not quiet:
            steps.report(step)

    async def work() -> list[dict[str, Any]]:
        images = await call.door.engine.images.load(
            body_chunks(call.request), platform=_platform(call, (1, 48)), report=report
        )
        for image in images:
            tell(call.door, "image", "load", image.id, name=image.id)
        return [{"stream": f"{line}\n"} for line in loaded]

    return await told(call, work(), steps, always_lines=True)  # dockerd answers 200 here, docker-py relies on it


# --- out ----------------------------------------------------------------------------------------------------------


async def save(call: Call) -> web.StreamResponse:
    """`GET /images/get`, `GET /images/{name}/get`."""
    if "name" in call.params:
        names = [call.params["name"]]
    else:
        # Several ways of listing: repeated, and (older clients) in one value.
        names = [name for value in call.request.query.getall("names", []) for name in value.split(",") if name]
    if not names:
        raise Invalid("no image was named", field="names")
    archive = call.door.engine.images.save(names, platform=_platform(call, (1, 48)))
    for name in names:
        with contextlib.suppress(
            NotFound
        ):  # a repository with other tags than `latest`; of anything else `save` complains
            image = await call.door.engine.images.get(name)
            tell(call.door, "image", "save", image.id, name=image.id)
    return await send_chunks(call.request, archive, content_type=TAR)


async def push(call: Call) -> web.StreamResponse:
    """`POST /images/{name}/push`."""
    name = call.params["name"]
    tags = [call.text("tag")] if call.text("tag") else []
    auth = auth_of(call.request.headers.get("X-Registry-Auth", ""))
    steps, images = _Steps(), call.door.engine.images
    if not tags:
        tags = [
            full.rpartition(":")[2]
            for image in await images.list()
            for full in image.names
            if full.rpartition(":")[0] == name
        ]

    async def work() -> list[dict[str, Any]]:
        lines = []
        for tag in tags or ["latest"]:
            reference = name_of(name, tag)
            pushed = await images.push(reference, auth=auth, platform=_platform(call, (1, 46)), report=steps.report)
            image = await images.get(reference)
            tell(call.door, "image", "push", reference, **{**image.config.labels, "name": repository_of(reference)})
            aux = {"Tag": tag, "Digest": pushed.digest, "Size": pushed.size_bytes}
            lines.append({"progressDetail": {}, "aux": aux})
        return lines

    return await told(call, work(), steps)


class LoginWords(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /auth`."""

    username: str = ""
    password: str = ""
    identitytoken: str = ""
    serveraddress: str = ""


async def login(call: Call) -> web.StreamResponse:
    """`POST /auth`: ask the registry; the client keeps the credentials, this daemon does not."""
    words = await call.read(LoginWords)
    server = words.serveraddress.partition("://")[2] or words.serveraddress
    server = server.partition("/")[0]
    auth = Auth(username=words.username, password=words.password, identity_token=words.identitytoken)
    token = await call.door.engine.images.login("" if server in _HUB else server, auth)
    return json_response({"Status": "Login Succeeded", "IdentityToken": token})


async def distribution(call: Call) -> web.StreamResponse:
    """`GET /distribution/{name}/json`: what a registry says of an image."""
    auth = auth_of(call.request.headers.get("X-Registry-Auth", ""))
    found = await call.door.engine.images.distribution(call.params["name"], auth=auth)
    descriptor = {"mediaType": found.media_type, "digest": found.digest, "size": found.size_bytes}
    return json_response({"Descriptor": descriptor, "Platforms": list(found.platforms)})


ROUTES = (
    Route("POST", "/images/create", create, stream=True),
    Route("POST", "/images/load", load, stream=True),
    Route("GET", "/images/get", save, stream=True),
    Route("GET", "/images/{name*}/get", save, stream=True),
    Route("POST", "/images/{name*}/push", push, stream=True),
    Route("POST", "/auth", login),
    Route("GET", "/distribution/{name*}/json", distribution),
)
