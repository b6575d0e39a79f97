"""The stages of one build for one platform: each runs once, at once, as soon as what it needs is there."""

from __future__ import annotations

import asyncio

import msgspec

from insula.engine.building.contract import (
    BuildFault,
    BuildRequest,
    ImageContext,
    Location,
    Progress,
    Vertex,
)
from insula.engine.building.frame import Frame, from_image, from_scratch, from_stage
from insula.engine.building.keys import key
from insula.engine.building.planning import Plan, one_line, platform_of, stage_named
from insula.engine.building.steps import Build, Steps
from insula.engine.building.telling import Told
from insula.errors import Invalid
from insula.images.blobs import digest_of
from insula.images.dockerfile.instructions import Instruction, Stage, parse
from insula.images.dockerfile.lines import DockerfileFault, Line
from insula.images.manifests import Platform
from insula.tasks import in_thread

_METADATA = frozenset(
    {
        "ARG",
        "CMD",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "SHELL",
        "STOPSIGNAL",
    }
    | {"USER", "VOLUME"}
)


class Stages:
    """Use: `await target()`, then `close()`."""

    def __init__(self, build: Build, progress: Progress) -> None:
        self._build = build
        self._plan: Plan = build.plan
        self._request: BuildRequest = build.request
        self._progress = progress
        self._tasks: dict[int, asyncio.Task[Frame]] = {}
        self._told: dict[tuple[int, int], Told] = {}
        build.frame_of = self._frame_named

    async def target(self) -> Frame:
        """The frame of the stage that was asked for. Raises what its steps raise."""
        self._announce()
        for stage in self._plan.stages:
            self._start(stage)
        task = self._start(self._plan.target)
        failed = asyncio.create_task(self._first_failure())
        try:
            await asyncio.wait((task, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done() and not failed.cancelled() and not task.done():
                raise failed.result()
            return await task
        finally:
            failed.cancel()
            await asyncio.wait((failed,))
            await in_thread(self._build.drafts.cache.touch, self._build.used)

    async def _first_failure(self) -> BaseException:
        """A stage that fails ends the build at once, though others could still go on."""
        waiting = set(self._tasks.values())
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and (fault := task.exception()) is not None:
                    return fault
        never: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        return await never

    async def close(self) -> None:
        """End what still runs; faults of stages that nobody waited for are dropped."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        for task in self._tasks.values():
            if not task.cancelled():
                task.exception()

    def _start(self, stage: Stage) -> asyncio.Task[Frame]:
        if stage.index not in self._tasks:
            self._tasks[stage.index] = asyncio.create_task(self._run(stage), name=f"build stage {stage.name}")
        return self._tasks[stage.index]

    # --- telling --------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Every step is known before the first one begins."""
        for position, step in enumerate(self._plan.dockerfile.globals):
            self._global(position, step.line)
        for stage in self._plan.stages:
            base = self._plan.base_words(stage, self._request.named_contexts)
            self._vertex(stage, 0, stage.line, f"FROM {base}")
            for position, step in enumerate(stage.steps, 1):
                self._vertex(stage, position, step.line, step.line.text)

    def _global(self, position: int, line: Line) -> None:
        """An ARG before the first FROM: nothing is to be done for it."""
        vertex = Vertex(
            digest=self._digest(-1, position),
            name=one_line(line.text),
            metadata=True,
            number=self._plan.numbers[-1, position],
            total=self._plan.total,
            text=line.text,
            location=Location(start=line.start, end=line.end, file=self._request.dockerfile_path),
        )
        Told(self._progress, vertex).finish()

    def _vertex(self, stage: Stage, position: int, line: Line, text: str) -> None:
        before = [self._digest(stage.index, position - 1)] if position else []
        if position == 0:
            before += [self._last_digest(index) for index in self._plan.needs[stage.index]]
        told = Told(
            self._progress,
            Vertex(
                digest=self._digest(stage.index, position),
                name=self._plan.step_name(stage, position, one_line(text)),
                inputs=tuple(before),
                metadata=line.word in _METADATA or (position == 0 and stage.index not in self._plan.images),
                number=self._plan.numbers[stage.index, position],
                total=self._plan.total,
                text=line.text,
                stage=stage.name,
                platform=str(self._plan.platform),
                location=Location(start=line.start, end=line.end, file=self._request.dockerfile_path),
            ),
        )
        self._told[stage.index, position] = told
        told.change()

    def _digest(self, index: int, position: int) -> str:
        return f"sha256:{key('vertex', str(self._plan.platform), index, position)}"

    def _last_digest(self, index: int) -> str:
        return self._digest(index, len(self._plan.dockerfile.stages[index].steps))

    def tell_unused(self) -> None:
        """Build arguments that nothing asked for, as the classic builder warns of them."""
        known = self._build.consumed | set(self._plan.globals)
        unused = [
            name
            for name in self._request.build_args
            if name not in known and not name.startswith(("BUILDKIT_", "SOURCE_"))
        ]
        if unused and self._request.dialect == "classic":
            last = self._told[self._plan.target.index, len(self._plan.target.steps)]
            names = " ".join(sorted(unused))
            last.warn(f"[Warning] One or more build-args [{names}] were not consumed")

    # --- running --------------------------------------------------------------------------------------------------

    async def _run(self, stage: Stage) -> Frame:
        told = self._told[stage.index, 0]
        base = self._plan.bases[stage.index]
        parent = stage_named(self._plan.dockerfile, base, stage, self._request)
        steps = Steps(self._build, stage)
        if parent is not None:
            frame = from_stage(await asyncio.shield(self._start(parent)))
            told.start()
        else:
            async with told.working():
                frame = await self._base(stage, base, told)
        if self._request.dialect == "buildkit":
            told.finish(image=frame.base)
        frame = await self._triggers(steps, frame, stage, told)
        if self._request.dialect == "classic":
            told.finish(image=frame.base or (digest_of(frame.document()) if frame.history else ""))
        for position, step in enumerate(stage.steps, 1):
            frame = await self._step(steps, step.what, step.line.text, frame, self._told[stage.index, position])
        return frame

    async def _step(self, steps: Steps, what: Instruction, text: str, frame: Frame, told: Told) -> Frame:
        async with told.working():
            try:
                return await steps.take(what, text, frame, told)
            except DockerfileFault:
                raise
            except BuildFault:
                raise
            except Invalid as fault:
                raise BuildFault(fault.message, location=told.vertex.location, field=fault.field) from fault

    async def _triggers(self, steps: Steps, frame: Frame, stage: Stage, told: Told) -> Frame:
        """What ONBUILD of the base image asks for, before the stage's own steps."""
        triggers = list(frame.config.get("OnBuild") or ())
        if not triggers:
            return frame
        frame = msgspec.structs.replace(frame, config={**frame.config, "OnBuild": None})
        for number, trigger in enumerate(triggers):
            try:
                (step,) = parse(f"FROM scratch\n{trigger}\n").stages[0].steps
            except (DockerfileFault, ValueError) as fault:
                raise BuildFault(f"the trigger {trigger!r} of the base image is wrong: {fault}") from fault
            vertex = msgspec.structs.replace(
                told.vertex,
                digest=f"sha256:{key('trigger', str(self._plan.platform), stage.index, number)}",
                name=f"[{stage.name} onbuild] {one_line(trigger)}",
                inputs=(told.vertex.digest,),
                metadata=step.line.word in _METADATA,
                text=f"# Executing {len(triggers)} build trigger{'s' * (len(triggers) > 1)}" if number == 0 else "",
                number=0,
                started="",
                completed="",
                image="",
            )
            frame = await self._step(steps, step.what, trigger, frame, Told(self._progress, vertex))
        return frame

    async def _base(self, stage: Stage, base: str, told: Told) -> Frame:
        platform = platform_of(stage, self._plan.globals, self._plan.platform)
        asked = bool(stage.origin.platform or self._request.platforms)
        named = self._request.named_contexts.get(base)
        if isinstance(named, ImageContext):
            base = named.reference
        elif named is not None:
            return await self._folder(base, platform)
        if base == "scratch":
            return from_scratch(platform)
        image = await self._build.sources.image(base, platform, told, asked=asked)
        return from_image(image, self._build.drafts.state_of(image), platform)

    async def _folder(self, name: str, platform: Platform) -> Frame:
        """A named context that is a folder: FROM it begins with its files."""
        place = await self._build.sources.context(name)
        return await Steps(self._build, self._plan.target).from_folder(place, platform)

    async def _frame_named(self, name: str, user: Stage) -> Frame:
        """What `--from=NAME` means: a stage, a named context, an image. Raises BuildFault, NotFound."""
        stage = stage_named(self._plan.dockerfile, name, user, self._request)
        if stage is not None:
            return await asyncio.shield(self._start(stage))
        named = self._request.named_contexts.get(name)
        platform = self._plan.platform
        if named is not None and not isinstance(named, ImageContext):
            place = await self._build.sources.context(name)
            return msgspec.structs.replace(from_scratch(platform), more={"folder": place.root})
        reference = named.reference if isinstance(named, ImageContext) else name
        if reference == "scratch":
            raise BuildFault('"scratch" is reserved and holds nothing to copy from')
        told = self._told[user.index, 0]
        image = await self._build.sources.image(reference, platform, told, asked=bool(self._request.platforms))
        return from_image(image, self._build.drafts.state_of(image), platform)
