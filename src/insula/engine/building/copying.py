"""COPY and ADD: which files, from where, under which names and owners; the files themselves are moved by `grafting`."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from insula.engine.building import grafting, remote
from insula.engine.building.contract import BuildFault, Dialect
from insula.engine.building.frame import Frame
from insula.engine.building.grafting import Found, Missing, Options
from insula.engine.building.keys import Digests, key
from insula.engine.building.sources import MAIN, Sources, is_archive
from insula.engine.users import look_up, read_accounts
from insula.errors import Invalid, Unsupported
from insula.host.rmtree import remove_tree
from insula.host.rootfd import Root
from insula.host.untar import unpack
from insula.images.bounded import Bounded
from insula.images.dockerfile.ignore import Matcher
from insula.images.dockerfile.instructions import Copy
from insula.images.dockerfile.lines import Heredoc
from insula.images.dockerfile.words import expand, expand_text
from insula.images.drafts import Drafts
from insula.tasks import in_thread

_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")
_SYMBOLIC = re.compile(r"[ugoa]*[-+=][rwxXst]*(,[ugoa]*[-+=][rwxXst]*)*")


class CopyPlan(Struct, frozen=True, kw_only=True):
    """An instruction with its variables in place."""

    what: Copy
    sources: tuple[str, ...]
    target: str
    owner: str
    mode: int | None
    contents: tuple[Heredoc, ...]
    excludes: tuple[str, ...]
    checksum: str

    def words(self) -> tuple[object, ...]:
        """What of it makes a difference beside the content."""
        what = self.what
        return (self.target, self.owner, self.mode, what.add, what.parents, what.unpack, self.excludes, self.checksum)


class Prepared(Struct, frozen=True, kw_only=True):
    """Sources that are on this host. `archives` are those to unpack. `keep_owners`: they come from another stage or image."""

    found: tuple[Found, ...]
    digest: str
    archives: frozenset[str] = frozenset()
    keep_owners: bool = False


class Copying:
    """One COPY or ADD. What it fetches is removed by `undo`."""

    def __init__(self, sources: Sources, drafts: Drafts, dialect: Dialect, undo: AsyncExitStack) -> None:
        self._sources = sources
        self._drafts = drafts
        self._dialect = dialect
        self._undo = undo

    def plan(self, what: Copy, frame: Frame, *, escape: str) -> CopyPlan:
        """Put the variables in place. Raises Invalid."""
        variables = frame.variables

        def put(text: str) -> str:
            return expand(text, variables, escape=escape)

        sources = tuple(put(source) for source in what.sources)
        target = put(what.target)
        if not target or not all(sources) or any("\0" in each for each in (*sources, target)):
            raise Invalid(f"{'ADD' if what.add else 'COPY'} names an empty path")
        count = len(sources) + len(what.contents)
        if count > 1 and not target.endswith("/") and posixpath.basename(target) not in (".", ".."):
            raise Invalid(
                f"When using {'ADD' if what.add else 'COPY'} with more than one source file, the destination must be a "
                "directory and end with a /"
            )
        folder = target.endswith(("/", "/.")) or target in (".", "..")
        joined = posixpath.normpath(posixpath.join("/", str(frame.config.get("WorkingDir") or "/"), target))
        joined = "/" + joined.lstrip("/")
        contents = tuple(
            msgspec.structs.replace(
                each, content=expand_text(each.data, variables, escape=escape) if each.expand else each.data
            )
            for each in what.contents
        )
        checksum = put(what.checksum)
        if checksum and (not _CHECKSUM.fullmatch(checksum) or len(sources) != 1 or not remote.is_url(sources[0])):
            raise Invalid(
                f"checksum {checksum!r} is not valid: it needs one source over HTTP and the form sha256:<64 digits>"
            )
        return CopyPlan(
            what=what,
            sources=sources,
            target=joined.rstrip("/") + "/" if folder else joined,
            owner=put(what.owner),
            mode=read_mode(put(what.mode)),
            contents=contents,
            excludes=tuple(put(each).strip("/") for each in what.excludes),
            checksum=checksum,
        )

    async def prepare(self, plan: CopyPlan, source: Frame | None, digests: Digests) -> Prepared:
        """Bring the sources here and hash them. Raises BuildFault, NotFound, Unavailable."""
        found: list[Found] = []
        archives: set[str] = set()
        inline = key("inline", [(each.name, each.content) for each in plan.contents])
        remotes = [each for each in plan.sources if plan.what.add and _is_remote(each)]
        local = [each for each in plan.sources if each not in remotes]
        exclude = Matcher(plan.excludes) if plan.excludes else None
        root, skip = "", None
        for url in remotes:
            found.append(await self._remote(plan, url, exclude))
        if local:
            root, skip = await self._root(source)

        def look() -> str:
            if local:
                here = self._find(plan, root, local, skip, exclude)
                found.extend(here)
                if plan.what.add:
                    archives.update(self._archives(plan, here))
            return digests.trees(found, owners=source is not None)

        trees = await in_thread(look)
        return Prepared(
            found=tuple(found),
            digest=key(trees, inline, sorted(posixpath.basename(each) for each in archives)),
            archives=frozenset(archives),
            keep_owners=source is not None,
        )

    async def _root(self, source: Frame | None) -> tuple[str, Matcher | None]:
        if source is None:
            place = await self._sources.context(MAIN)
            return place.root, place.skip
        return await self.root_of(source), None

    async def root_of(self, frame: Frame) -> str:
        """A frame's root file system as a folder, until the end of the step."""
        if frame.more.get("folder"):
            return str(frame.more["folder"])
        name = self._drafts.name()
        self._undo.push_async_callback(self._drafts.discard, name)
        return (await self._drafts.mount(name, frame.state)).path

    def _find(
        self, plan: CopyPlan, root: str, sources: Sequence[str], skip: Matcher | None, exclude: Matcher | None
    ) -> list[Found]:
        found: list[Found] = []
        for each in sources:
            try:
                here = grafting.find(root, each, skip=skip, exclude=exclude, parents=plan.what.parents)
            except Missing as fault:
                raise BuildFault(self._missing(plan, each, fault.path)) from None
            if not here and self._dialect == "classic":
                word = "ADD" if plan.what.add else "COPY"
                raise BuildFault(f"{word} failed: no source files were specified")
            found += here
        if len(found) > 1 and not plan.target.endswith("/"):
            raise Invalid(
                f"When using {'ADD' if plan.what.add else 'COPY'} with more than one source file, the destination must be a "
                "directory and end with a /"
            )
        return found

    def _missing(self, plan: CopyPlan, source: str, path: str) -> str:
        if self._dialect == "buildkit":
            return f'failed to compute cache key: failed to calculate checksum of ref: "{path}": not found'
        word = "ADD" if plan.what.add else "COPY"
        if plan.what.source_stage:
            return f"{word} failed: stat {source.lstrip('/')}: file does not exist"
        return (
            f"{word} failed: file not found in build context or excluded by .dockerignore: stat {path.lstrip('/')}: "
            "file does not exist"
        )

    def _archives(self, plan: CopyPlan, found: Sequence[Found]) -> set[str]:
        """ADD unpacks local archives unless that is forbidden."""
        if plan.what.unpack is False:
            return set()
        return {
            each.path
            for each in found
            if os.path.isfile(each.path) and is_archive(Path(each.path), self._drafts.folder)  # noqa: PTH113
        }

    async def _remote(self, plan: CopyPlan, url: str, exclude: Matcher | None) -> Found:
        place = self._drafts.temporary("add")
        self._undo.push_async_callback(in_thread, partial(remove_tree, place, ignore_errors=True))
        if (repository := remote.repository(url)) is not None:
            folder, _ = await remote.clone(repository, place, keep_git_dir=plan.what.keep_git_dir)
            return Found(path=folder, name=posixpath.basename(folder), relative="", exclude=exclude)
        if plan.what.keep_git_dir:
            raise Unsupported("--keep-git-dir needs a git repository as its source")
        await in_thread(place.mkdir, mode=0o700)
        fetched = await remote.fetch(url, place / "file")
        name = posixpath.basename(plan.target) if not plan.target.endswith("/") else fetched.name
        if not name:
            raise BuildFault(f"cannot determine filename from url: {url}")
        return await in_thread(self._fetched, plan, fetched, place, name)

    def _fetched(self, plan: CopyPlan, fetched: remote.Fetched, place: Path, name: str) -> Found:
        path = Path(fetched.path)
        if plan.checksum:
            with path.open("rb") as file:
                found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            if found != plan.checksum:
                raise BuildFault(f"digest mismatch {found}: {plan.checksum}")
        path.chmod(0o600)
        os.utime(path, (fetched.modified, fetched.modified))
        if plan.what.unpack and is_archive(path, self._drafts.folder):
            folder = place / "unpacked"
            folder.mkdir(mode=0o755)
            with path.open("rb") as file:
                unpack(Bounded(file, folder), str(folder))
            return Found(path=str(folder), name=name, relative="")
        return Found(path=str(path), name=name, relative=name)

    async def put(self, plan: CopyPlan, prepared: Prepared, root: str, owners: str) -> None:
        """Everything to its place below `root`; names of owners are looked up below `owners`. Raises Invalid, HostFault."""
        await in_thread(self._put, plan, prepared, root, owners)

    def _put(self, plan: CopyPlan, prepared: Prepared, root: str, owners: str) -> None:
        owner = owner_of(plan.owner, owners) if plan.owner else None if prepared.keep_owners else (0, 0)
        options = Options(owner=owner, mode=plan.mode)
        ordinary = [each for each in prepared.found if each.path not in prepared.archives]
        grafting.graft(ordinary, root, plan.target, options)
        for each in prepared.found:
            if each.path in prepared.archives:
                self._unpack(Path(each.path), root, plan, options)
        for text in plan.contents:
            grafting.write_file(root, plan.target, text.content.encode(), options, name=text.name)

    def _unpack(self, archive: Path, root: str, plan: CopyPlan, options: Options) -> None:
        """An archive's own owners stay unless others were asked for."""
        if plan.owner or plan.mode is not None or plan.excludes:
            folder = self._drafts.temporary("add")
            folder.mkdir(mode=0o755)
            try:
                with archive.open("rb") as file:
                    unpack(Bounded(file, folder), str(folder))
                exclude = Matcher(plan.excludes) if plan.excludes else None
                source = Found(path=str(folder), name="", relative="", exclude=exclude)
                kept = options if plan.owner else msgspec.structs.replace(options, owner=None)
                grafting.graft([source], root, plan.target, kept)
            finally:
                remove_tree(folder, ignore_errors=True)
            return
        with Root(root) as inside:
            target = grafting.target_folder(inside, plan.target, Options())
            with archive.open("rb") as file:
                unpack(Bounded(file, self._drafts.folder), f"/proc/self/fd/{target}")


def _is_remote(source: str) -> bool:
    return remote.is_url(source) or remote.repository(source) is not None


def owner_of(text: str, root: str) -> tuple[int, int]:
    """`user`, `user:group`, numbers or names of the root file system's own accounts. A number alone is the group too. Blocks.
    Raises Invalid."""
    user, _, group = text.partition(":")
    if not group and user.isdecimal():
        text = f"{user}:{user}"
    try:
        found = look_up(text, read_accounts(root))
    except Invalid as fault:
        reason = fault.message
        if reason.startswith("unable to find user"):
            reason = f"can't find uid for user {user}: no such user: {user}"
        elif reason.startswith("unable to find group"):
            reason = f"can't find gid for group {group}: no such group: {group}"
        raise Invalid(f"unable to convert uid/gid chown string to host mapping: {reason}") from None
    return found.uid, found.gid


def read_mode(text: str) -> int | None:
    """An octal mode; None for none. Raises Invalid, Unsupported."""
    if not text:
        return None
    if re.fullmatch(r"0*[0-7]{1,4}", text):
        return int(text, 8)
    if _SYMBOLIC.fullmatch(text):
        raise Unsupported(f"--chmod takes an octal mode such as 755 here, not {text!r}")
    raise Invalid(f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777")
