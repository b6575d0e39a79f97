"""One instance in memory: its newest entry, who waits for it, who is attached to it, and the task that watches it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from insula.drivers.driver import Driver, Handle
from insula.engine.contract import Instance, State
from insula.engine.ledger import Ledger
from insula.engine.lifecycle import Verb, move, state_of
from insula.engine.records import Entry, Stage
from insula.engine.streams import Attachments
from insula.errors import Conflict
from insula.images.contract import Image, Use
from insula.networks.contract import Endpoint, Published


class Resident:
    """What the engine holds of one instance. `entry` is frozen; `save` replaces it here and on disk.

    `lock` is held by the verbs that change the stage, one at a time. The end of a process is handled by the supervisor
    alone, without the lock: a verb that holds it may wait for `settled`.
    """

    def __init__(self, entry: Entry, driver: Driver, ledger: Ledger, image: Image | None = None) -> None:
        self.entry = entry
        self.driver = driver
        self.image = image
        self._ledger = ledger
        self.lock = asyncio.Lock()
        self.endpoints: tuple[Endpoint, ...] = ()
        self.published: tuple[Published, ...] = ()
        self.attachments = Attachments()
        self.size = (0, 0)
        self.restarting = False
        self.restart_delay_s = 0.0
        self.keep = False  # a `restart` is under way: an end is not the end
        self.supervisor: asyncio.Task[None] | None = None
        self.checker: asyncio.Task[None] | None = None  # runs its health checks
        self.restart: asyncio.Task[None] | None = None
        self.removal: asyncio.Task[None] | None = None
        self.root_users = 0
        self.end_unwritten = False  # the disk was full when it ended: only the driver can tell the next recovery how
        self.settled = asyncio.Event()  # nothing of it runs and nothing of its end is left to do
        self.silent = asyncio.Event()  # its output has ended
        self._exits: set[asyncio.Future[State]] = set()
        self._rests: set[asyncio.Future[State]] = set()
        self._removals: set[asyncio.Future[State]] = set()
        if entry.stage in (Stage.CREATING, Stage.CREATED, Stage.EXITED):
            self.settled.set()
            self.silent.set()

    @property
    def id(self) -> str:
        """64 hex digits."""
        return self.entry.id

    @property
    def state(self) -> State:
        """How it is now."""
        return state_of(self.entry, restarting=self.restarting)

    @property
    def running(self) -> bool:
        """Whether its first process runs, paused or not."""
        return self.entry.stage is Stage.RUNNING

    async def save(self, verb: Verb | None = None, **changes: Any) -> None:
        """Change the entry, in memory at once and then on disk. `verb` moves the stage as `lifecycle.MOVES` says. Raises
        Conflict (no such move), HostFault (the disk)."""
        if verb is not None:
            changes["stage"] = move(self.entry.stage, verb)
        self.entry = msgspec.structs.replace(self.entry, **changes)
        await self._ledger.put(self.entry)

    @property
    def handle(self) -> Handle:
        """The driver's handle of what runs. Raises Conflict when nothing does."""
        if self.entry.handle is None:
            raise Conflict(f"container {self.id} is not running")
        return self.entry.handle

    # --- waiting ------------------------------------------------------------------------------------------------

    async def next_exit(self) -> State:
        """The state after the next end of its process."""
        return await self._wait(self._exits)

    async def rest(self) -> State:
        """The state when it does not run: at once if that is so, else at the next end, also one that a restart follows, as the
        Docker Engine's `not-running`."""
        if self.state.name in ("created", "exited", "dead", "removing"):
            return self.state
        return await self._wait(self._rests)

    async def removed(self) -> State:
        """The last state it had, when it has been removed."""
        return await self._wait(self._removals)

    async def _wait(self, waiters: set[asyncio.Future[State]]) -> State:
        future: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        waiters.add(future)
        try:
            return await future
        finally:
            waiters.discard(future)

    def tell_exit(self) -> None:
        """Its process has ended and what it held is free."""
        self._tell(self._exits)
        self._tell(self._rests)

    def tell_removed(self) -> None:
        """It is no more: everybody who waits for anything gets the last state."""
        for waiters in (self._exits, self._rests, self._removals):
            self._tell(waiters)

    def tell_closed(self, fault: Callable[[], Exception]) -> None:
        """The engine lets go: waits end with an error, not with silence."""
        for waiters in (self._exits, self._rests, self._removals):
            for future in waiters:
                if not future.done():
                    future.set_exception(fault())

    def _tell(self, waiters: set[asyncio.Future[State]]) -> None:
        for future in waiters:
            if not future.done():
                future.set_result(self.state)

    # --- looking ------------------------------------------------------------------------------------------------

    def image_uses(self) -> list[Use]:
        """The images that it needs."""
        entry, live = self.entry, self.state.name in ("running", "paused", "restarting")
        own = [Use(image=entry.image, instance=entry.id, running=live)] if entry.image else []
        files = set(entry.machine_images.values())
        return own + [Use(image=image, instance=entry.id, running=live, files=True) for image in sorted(files)]

    def view(self, *, folder: str, log_path: str) -> Instance:
        """All that is known of it, for clients."""
        entry = self.entry
        return Instance(
            id=entry.id,
            config=entry.config,
            state=self.state,
            created=entry.created,
            image=self.image,
            endpoints=self.endpoints,
            published=self.published,
            mounts=entry.mounts,
            folder=folder,
            log_path=log_path,
            rootfs=entry.rootfs,
            upper=entry.upper,
            lowers=entry.lowers,
        )
