"""The steps of a stage: each takes a frame and gives the next, from the cache where it can.

A step that changes the root file system is looked up by the identity of what it works on (layers, not the names of steps) and
all that goes into it. A step that changes only the configuration is looked up by the steps before it; what the cache knows of
it is when it was first made, so that an unchanged build ends in the same image.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from insula import clock
from insula.engine.building import grafting
from insula.engine.building.cachefrom import Candidates
from insula.engine.building.contract import BuildRequest
from insula.engine.building.copying import Copying, Prepared, owner_of
from insula.engine.building.frame import Frame, from_scratch
from insula.engine.building.keys import Digests, identity, key
from insula.engine.building.mounting import Mounting
from insula.engine.building.planning import PROXIES, Plan
from insula.engine.building.running import Job, bind, run
from insula.engine.building.saying import history_entry, said_copy, said_metadata, said_run
from insula.engine.building.sources import Place, Sources
from insula.engine.building.telling import Told, now
from insula.engine.contract import Engine
from insula.engine.parts import Parts
from insula.errors import Forbidden, Invalid
from insula.host.rootfd import Root
from insula.images.blobs import digest_of
from insula.images.buildcache import Record
from insula.images.dockerfile.configuring import configure, working_dir
from insula.images.dockerfile.instructions import Arg, Copy, Instruction, Run, Stage, Words
from insula.images.dockerfile.lines import heredoc_mark
from insula.images.dockerfile.words import expand
from insula.images.drafts import Drafts, Sealed
from insula.images.manifests import Platform
from insula.tasks import in_thread

SCRIPT_FOLDER = "/dev/pipes/"  # below a tmpfs of the container: leaves nothing in the layer
StageFrame = Callable[[str, Stage], Awaitable[Frame]]


@dataclass
class Build:
    """What all stages of one build share."""

    engine: Engine
    parts: Parts
    drafts: Drafts
    request: BuildRequest
    plan: Plan
    sources: Sources
    digests: Digests
    candidates: Candidates
    used: list[str]  # keys of records that were used
    consumed: set[str]  # build arguments that an ARG named
    frame_of: StageFrame | None = None  # the frame behind `--from=NAME`; set by the stages


class Steps:
    """The steps of one stage."""

    def __init__(self, build: Build, stage: Stage) -> None:
        self._build = build
        self._stage = stage
        no_cache = build.request.no_cache
        self._fresh = no_cache if isinstance(no_cache, bool) else stage.name in no_cache

    async def _frame_of(self, name: str) -> Frame:
        assert self._build.frame_of is not None
        return await self._build.frame_of(name, self._stage)

    async def from_folder(self, place: Place, platform: Platform) -> Frame:
        """A stage that begins with the files of a folder."""
        build, frame = self._build, from_scratch(platform)
        found = await in_thread(grafting.find, place.root, "/", skip=place.skip)
        known = key("folder", await in_thread(build.digests.trees, found, owners=False))
        record = await self._cached(frame, (known,), "")
        if record is None:
            async with self._writable() as name:
                root = (await build.drafts.mount(name, ())).path
                await in_thread(grafting.graft, found, root, "/", grafting.Options())
                record = self._record(known, frame, "", await build.drafts.seal(name, ()))
            await in_thread(build.drafts.cache.put, record)
        state = (record.layer,) if record.layer else ()
        said = history_entry(build.request.dialect, created=record.created, said="context", author="", empty=not state)
        return msgspec.structs.replace(frame, state=state, key=known, history=(said,), created=record.created)

    async def take(self, what: Instruction, text: str, frame: Frame, told: Told) -> Frame:
        """One step. Raises BuildFault and what the parts below raise."""
        match what:
            case Arg():
                return await self._arg(what, frame, told)
            case Run():
                return await self._run(what, frame, told)
            case Copy():
                return await self._copy(what, frame, told)
            case Words(word="WORKDIR"):
                return await self._working_dir(what, frame, told)
            case _:
                return await self._metadata(what, frame, told)

    # --- what only changes the configuration ----------------------------------------------------------------------

    async def _arg(self, what: Arg, frame: Frame, told: Told) -> Frame:
        build = self._build
        args, declared, shown = dict(frame.args), set(frame.declared), []
        for name, default in what.pairs:
            variables = {**args, **frame.env}
            name = expand(name, variables, escape=self._escape)
            value = None if default is None else expand(default, variables, escape=self._escape)
            given = build.request.build_args.get(name)
            build.consumed.add(name)
            chosen = given if given is not None else value
            if chosen is None:
                chosen = build.plan.globals.get(name)
            declared.add(name)
            if chosen is not None:
                args[name] = chosen
            shown.append(name if value is None else f"{name}={value}")
        frame = msgspec.structs.replace(frame, args=args, declared=frozenset(declared))
        return await self._remember(frame, f"ARG {' '.join(shown)}", told, args=args)

    async def _metadata(self, what: Instruction, frame: Frame, told: Told) -> Frame:
        changed = configure(frame.config, what, frame.variables, escape=self._escape, keeps_command=frame.commanded)
        word = getattr(what, "word", "")
        if word == "MAINTAINER":
            frame = msgspec.structs.replace(frame, author=changed.said.removeprefix("MAINTAINER "))
        return await self._remember(
            frame, changed.said, told, config=changed.config, commanded=frame.commanded or word == "CMD"
        )

    async def _remember(self, frame: Frame, said: str, told: Told, **changes: Any) -> Frame:
        config = changes.pop("config", frame.config)
        found = key("said", frame.key, said, changes.pop("args", None))
        record = None if self._fresh else self._build.drafts.cache.get(found)
        if record is None:
            record = Record(key=found, created=now(), parent=frame.key, description=said[:4096])
            await in_thread(self._build.drafts.cache.put, record)
            cached = False
        else:
            self._build.used.append(found)
            cached = True
        dialect = self._build.request.dialect
        words = said_metadata(dialect, frame.shell, said)
        frame = frame.said(
            dialect, created=self._time(record.created), said=words, empty=True, config=config, key=found, **changes
        )
        self._done(told, frame, cached=cached)
        return frame

    def _done(self, told: Told, frame: Frame, *, cached: bool) -> None:
        told.finish(cached=cached, image=digest_of(frame.document()))

    def _time(self, created: str) -> str:
        epoch = self._build.request.source_date_epoch
        return created if epoch is None else epoch_text(epoch)

    @property
    def _escape(self) -> str:
        return self._build.plan.dockerfile.text.escape

    # --- what changes the root file system ------------------------------------------------------------------------

    async def _layered(
        self,
        frame: Frame,
        told: Told,
        keys: tuple[str, ...],
        said: str,
        make: Callable[[], Awaitable[Sealed]],
        **changes: Any,
    ) -> Frame:
        """From the cache by any of the keys, from an image of --cache-from, or made now."""
        drafts, dialect = self._build.drafts, self._build.request.dialect
        record = await self._cached(frame, keys, said)
        cached = record is not None
        if record is None:
            record = self._record(keys[0], frame, said, await make())
            for each in keys:
                await in_thread(drafts.cache.put, msgspec.structs.replace(record, key=each))
        layer, said = record.layer, record.said or said
        frame = frame.said(
            dialect,
            created=self._time(record.created),
            said=said,
            empty=layer is None,
            state=(*frame.state, layer) if layer else frame.state,
            key=key("made", frame.key, said, record.created, layer.diff_id if layer else ""),
            **changes,
        )
        self._done(told, frame, cached=cached)
        return frame

    def _record(self, known: str, frame: Frame, said: str, sealed: Sealed) -> Record:
        return Record(
            key=known,
            created=now(),
            parent=frame.key,
            description=said[:4096],
            said=said,
            layer=sealed.layer,
            chain=sealed.chain,
            size_bytes=sealed.size_bytes,
        )

    async def _cached(self, frame: Frame, keys: tuple[str, ...], said: str) -> Record | None:
        if self._fresh:
            return None
        drafts = self._build.drafts
        for each in keys:
            record = drafts.cache.get(each)
            if record is not None and await drafts.usable(record, frame.state):
                self._build.used.append(each)
                for other in keys:
                    if drafts.cache.get(other) is None:
                        await in_thread(drafts.cache.put, msgspec.structs.replace(record, key=other))
                return record
        return await self._build.candidates.find(frame, said, keys[0])

    async def _working_dir(self, what: Words, frame: Frame, told: Told) -> Frame:
        path = working_dir(frame.config, expand(what.words[0], frame.variables, escape=self._escape))
        config = {**frame.config, "WorkingDir": path}
        user = str(frame.config.get("User") or "") if self._build.request.dialect == "buildkit" else ""
        said = f"WORKDIR {path}"
        if self._build.request.dialect == "classic":
            said = said_metadata("classic", frame.shell, said)

        async def make() -> Sealed:
            async with self._writable() as name:
                await in_thread(make_folder, (await self._mounted(name, frame)), path, user)
                return await self._build.drafts.seal(name, frame.state)

        keys = (key("workdir", identity(frame.state), path, user),)
        return await self._layered(frame, told, keys, said, make, config=config)

    def _writable(self) -> _Writable:
        return _Writable(self._build.drafts)

    async def _mounted(self, name: str, frame: Frame, *, linked: bool = False) -> str:
        return (await self._build.drafts.mount(name, () if linked else frame.state)).path

    # --- COPY and ADD ---------------------------------------------------------------------------------------------

    async def _copy(self, what: Copy, frame: Frame, told: Told) -> Frame:
        build = self._build
        async with AsyncExitStack() as undo:
            copying = Copying(build.sources, build.drafts, build.request.dialect, undo)
            source = await self._frame_of(what.source_stage) if what.source_stage else None
            plan = copying.plan(what, frame, escape=self._escape)
            onto = "" if what.link else identity(frame.state)
            shape = (onto, plan.words())
            # By definition first: where nothing has changed, the other stage's files need not be looked at.
            defined: tuple[str, ...] = (
                () if source is None else (key("copy", shape, plan.sources, identity(source.state)),)
            )
            prepared: Prepared | None = None
            if not (defined and not self._fresh and build.drafts.cache.get(defined[0])):
                prepared = await copying.prepare(plan, source, build.digests)
                defined = (key("copy content", shape, prepared.digest), *defined)
            digest = prepared.digest if prepared else defined[0]
            said = said_copy(build.request.dialect, frame.shell, what, plan.sources, plan.target, digest)

            async def make() -> Sealed:
                ready = prepared or await copying.prepare(plan, source, build.digests)
                async with self._writable() as name:
                    root = await self._mounted(name, frame, linked=what.link)
                    owners = root
                    if what.link and plan.owner:
                        owners = await copying.root_of(frame)
                    await copying.put(plan, ready, root, owners)
                    return await build.drafts.seal(name, frame.state)

            return await self._layered(frame, told, defined, said, make)
        raise AssertionError("unreachable")

    # --- RUN ------------------------------------------------------------------------------------------------------

    async def _run(self, what: Run, frame: Frame, told: Told) -> Frame:
        build = self._build
        network = self._network(what, frame)
        env = {**self._proxies(), **frame.run_args}
        async with AsyncExitStack() as undo:
            mounting = Mounting(build.parts, build.drafts, build.sources, build.request, build.digests, undo)
            mounts = await mounting.plan(what, frame, self._frame_of)
            words = command_of(what, frame)
            said = said_run(build.request.dialect, words, frame.run_args)
            keys = (
                key(
                    "run",
                    identity(frame.state),
                    str(frame.platform),
                    words,
                    script_of(what),
                    sorted(frame.run_args.items()),
                    frame.config.get("Env"),
                    frame.config.get("User"),
                    frame.config.get("WorkingDir"),
                    network,
                    sorted(build.request.extra_hosts),
                    mounts.key,
                ),
            )

            async def make() -> Sealed:
                resolved, more = await mounts.resolve()
                if (script := script_of(what)) is not None:
                    file = await mounting.file(script.encode(), mode=0o755)
                    resolved = (*resolved, bind(file, words[-1], readonly=True))
                job = Job(
                    words=words,
                    env=tuple(f"{name}={value}" for name, value in {**env, **more}.items()),
                    mounts=resolved,
                    network=network,
                )
                return await run(build.engine, build.drafts, build.request, frame, job, told)

            return await self._layered(frame, told, keys, said, make)
        raise AssertionError("unreachable")

    def _network(self, what: Run, frame: Frame) -> str:
        request = self._build.request
        asked = expand(what.network, frame.variables, escape=self._escape) if what.network else "default"
        if asked not in ("default", "none", "host"):
            raise Invalid(f"invalid network mode: {asked!r}, known are default, none, host", field="network")
        if asked == "host" and request.dialect == "buildkit" and "network.host" not in request.entitlements:
            raise Forbidden("granting entitlement network.host is not allowed by build daemon configuration")
        security = expand(what.security, frame.variables) if what.security else "sandbox"
        if security == "insecure":
            raise Forbidden("granting entitlement security.insecure is not allowed by build daemon configuration")
        if security != "sandbox":
            raise Invalid(f"security {security!r} is not valid", field="security")
        return request.network or "default" if asked == "default" else asked

    def _proxies(self) -> Mapping[str, str]:
        """The predefined arguments: seen by every RUN, part of nothing."""
        found = {}
        for name, value in self._build.request.build_args.items():
            if name in PROXIES:
                self._build.consumed.add(name)
                if value is not None:
                    found[name] = value
        return found


class _Writable:
    """A name for a root file system that is written into, discarded when it was not sealed."""

    def __init__(self, drafts: Drafts) -> None:
        self._drafts = drafts
        self._name = drafts.name()

    async def __aenter__(self) -> str:
        return self._name

    async def __aexit__(self, *_: object) -> None:
        await self._drafts.discard(self._name)


def command_of(what: Run, frame: Frame) -> tuple[str, ...]:
    """What is executed. A lone here-document is the script; one among other words is put back behind them, for the shell to read.
    A script that begins with `#!` is a file for the shell to start."""
    if not what.shell:
        return what.words
    text = what.words[0]
    if script_of(what) is not None:
        text = SCRIPT_FOLDER + what.heredocs[0].name
    elif what.heredocs and _lone(text):
        text = what.heredocs[0].data
    else:
        text += "".join(f"\n{each.content}{each.name}" for each in what.heredocs)
    return (*frame.shell, text)


def script_of(what: Run) -> str | None:
    """The content of a here-document that is a program of its own."""
    if what.shell and len(what.heredocs) == 1 and _lone(what.words[0]) and what.heredocs[0].data.startswith("#!"):
        return what.heredocs[0].data
    return None


def _lone(text: str) -> bool:
    return heredoc_mark(text.strip()) is not None


def make_folder(root: str, path: str, user: str) -> None:
    """WORKDIR: the folder with its parents. Blocks. Raises Invalid."""
    owner = owner_of(user, root) if user else (0, 0)
    with Root(root) as inside:
        grafting.target_folder(inside, path, grafting.Options(owner=owner))


def epoch_text(epoch: int) -> str:
    """Seconds since 1970 as RFC 3339."""
    return clock.rfc3339(datetime.fromtimestamp(epoch, UTC))
