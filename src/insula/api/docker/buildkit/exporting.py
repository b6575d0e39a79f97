"""What becomes of a result: an image of this node, an archive or a folder at the client, a push to a registry.

Source: BuildKit's `exporter/*`, Moby's `mobyexporter` (names of attributes and answers, words of progress).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from insula.api.docker.buildkit import attached
from insula.api.docker.buildkit.building import Build, Solved
from insula.api.docker.buildkit.messages import Exporter
from insula.api.docker.buildkit.sending import send_file, send_folders
from insula.api.docker.door import Door
from insula.api.docker.events import tell
from insula.engine.building.contract import Built
from insula.errors import Invalid, Unsupported
from insula.images.reference import parse_name

_TRUE = frozenset({"1", "t", "true"})
Answer = dict[str, str]


def truth(attrs: Mapping[str, str], name: str, default: bool = False) -> bool:
    """A flag of an exporter; one that is only named is set."""
    value = attrs.get(name)
    return default if value is None else value == "" or value.lower() in _TRUE


def names_of(attrs: Mapping[str, str]) -> list[str]:
    """The names that an image is to have, whole (`docker.io/library/app:1`). Raises Invalid."""
    parsed = [parse_name(name) for name in attrs.get("name", "").split(",") if name]
    return [f"{name.full_name}:{name.tag or 'latest'}" for name in parsed]


def check(exporters: Sequence[Exporter]) -> None:
    """Refuse before anything is built. Raises Unsupported, Invalid."""
    for exporter in exporters:
        if exporter.type not in _KINDS:
            raise Unsupported(
                f"the exporter {exporter.type!r} is not known; known are {sorted(_KINDS)}", field="output"
            )
        if truth(exporter.attrs, "push-by-digest"):
            raise Unsupported("push-by-digest is not done here: push a name", field="push-by-digest")
        if exporter.type in ("oci", "docker") and not truth(exporter.attrs, "tar", True):
            raise Unsupported("tar=false is not done here: write an archive", field="tar")
        names_of(exporter.attrs)


class Exporting:
    """The exporters of one result."""

    def __init__(self, door: Door, build: Build) -> None:
        self._door, self._build, self._session = door, build, build.session
        self._engine, self._builder = door.engine, door.engine.builder

    async def all(self, solved: Solved, exporters: Sequence[Exporter]) -> Answer:
        """Carry them out in turn; what they answer together."""
        answer: Answer = {}
        for number, exporter in enumerate(exporters):
            answer |= await _KINDS[exporter.type](self, solved, number, exporter)
        return answer

    def _single(self, solved: Solved, what: str) -> Built:
        if len(solved.built) != 1:
            raise Unsupported(
                f"{what} takes one platform and {len(solved.built)} were built: build them one by one", field="platform"
            )
        return solved.built[0]

    # --- images ---------------------------------------------------------------------------------------------------

    async def image(self, solved: Solved, number: int, exporter: Exporter) -> Answer:
        """`type=image`, and what `docker build` does by itself."""
        built = self._single(solved, "the image store")
        names = names_of(exporter.attrs)
        with self._build.told.step("exporting to image") as step:
            with self._build.told.part(step, "exporting layers"):
                pass  # the builder has committed them
            with self._build.told.part(step, f"writing image {built.image}"):
                pass
            for name in names:
                with self._build.told.part(step, f"naming to {name}"):
                    await self._engine.images.tag(built.image, name)
                tell(self._door, "image", "tag", built.image, name=parse_name(name).tagged)
        answer = {"containerimage.digest": built.image, "containerimage.config.digest": built.image}
        if names:
            answer["image.name"] = ",".join(names)
        if truth(exporter.attrs, "push"):
            answer |= await self._push(names)
        return answer

    async def _push(self, names: Sequence[str]) -> Answer:
        if not names:
            raise Invalid("tag is needed when pushing to registry", field="name")
        session = await self._session()
        digest = ""
        for name in names:
            with self._build.told.step(f"pushing {name}"):
                auth = await attached.credentials(session, parse_name(name).domain)
                pushed = await self._engine.images.push(name, auth=auth)
                digest = pushed.digest
        return {"containerimage.digest": digest}

    async def archive(self, solved: Solved, number: int, exporter: Exporter) -> Answer:
        """`type=docker` and `type=oci`: one tar at the client that is both; of several platforms an OCI layout."""
        names, digests = names_of(exporter.attrs), list[str]()
        images = [(built.platform, built.image) for built in solved.built]
        what = "docker image format" if exporter.type == "docker" else "oci image format"
        answer = {"image.name": ",".join(names)} if names else {}
        if len(images) == 1:
            answer["containerimage.config.digest"] = images[0][1]
        with self._build.told.step(f"exporting to {what}") as step:
            chunks = self._engine.images.save_as(images, names, digests.append)
            await self._send(chunks, number, step, "sending tarball", answer)
        return answer | {"containerimage.digest": digests[0]}

    async def _send(
        self, chunks: AsyncIterator[bytes], number: int, step: str, what: str, words: Mapping[str, str]
    ) -> None:
        session = await self._session()
        with self._build.told.part(step, what) as part:
            await send_file(session, number, chunks, list(words.items()), part)

    # --- files ----------------------------------------------------------------------------------------------------

    async def tar(self, solved: Solved, number: int, exporter: Exporter) -> Answer:
        """`type=tar`: the root file system as one file."""
        built = self._single(solved, "type=tar")
        with self._build.told.step("exporting to client tarball") as step:
            await self._send(self._builder.export_tar(built), number, step, "sending tarball", {})
        return {}

    async def local(self, solved: Solved, number: int, exporter: Exporter) -> Answer:
        """`type=local`: the files themselves, of several platforms each in a folder of its own."""
        session = await self._session()
        split = truth(exporter.attrs, "platform-split", solved.keyed)
        if len(solved.built) > 1 and not split:
            raise Invalid("several platforms need platform-split=true", field="platform-split")
        async with AsyncExitStack() as held:
            folders = [
                (
                    built.platform.replace("/", "_") if split else "",
                    await held.enter_async_context(self._builder.rootfs(built)),
                )
                for built in solved.built
            ]
            step = held.enter_context(self._build.told.step("exporting to client directory"))
            part = held.enter_context(self._build.told.part(step, "copying files", "transferring"))
            await send_folders(session, number, sorted(folders), part)
        return {}


_KINDS: dict[str, Callable[[Exporting, Solved, int, Exporter], Any]] = {
    "moby": Exporting.image,
    "image": Exporting.image,
    "docker": Exporting.archive,
    "oci": Exporting.archive,
    "tar": Exporting.tar,
    "local": Exporting.local,
}


def metadata_of(solved: Solved) -> dict[str, bytes]:
    """What a frontend says of its result (`exptypes`): each configuration, and which platform is which."""
    rows = [{"ID": built.platform, "Platform": _platform(built.platform)} for built in solved.built]
    found = {"refs.platforms": msgspec.json.encode({"Platforms": rows})}
    for built in solved.built:
        found["containerimage.config" + (f"/{built.platform}" if solved.keyed else "")] = built.config
    return found


def _platform(text: str) -> dict[str, str]:
    names = ("os", "architecture", "variant")
    return dict(zip(names, text.split("/"), strict=False))
