"""QEMU's machine protocol, over the qemu.qmp library. Knows no Instance: commands go in, answers and events come out.

What this adds to the library: every call has a deadline; its errors become ours; and an event stream ends with an error
when the connection dies, where the library's own listener falls silent for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

from msgspec import Struct, field
from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError, Runstate

from insula.errors import DeadlineExceeded, HostFault, Unavailable

# The library logs every lost connection as an error; here each one is raised to somebody, who knows whether it matters.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

DEADLINE_S = 10.0
EVENTS_KEPT = 1024
ANSWER_BYTES = 16 * 1024 * 1024  # query-qmp-schema is one line of some hundred kilobytes


class Event(Struct, frozen=True, kw_only=True):
    """One event (QEMU QMP reference, "Events"): its name such as SHUTDOWN, and its data."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)


class Refused(HostFault):
    """QEMU answered a command with an error. `error_class` is its word: GenericError, CommandNotFound, DeviceNotFound..."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.error_class = error_class


class _Spread(EventListener):
    """Hands events straight to the readers. The library's own listener keeps every event that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[asyncio.Queue[Event | None]] = set()

    async def put(self, event: Message) -> None:
        data = event.get("data")
        told = Event(name=str(event["event"]), data=data if isinstance(data, dict) else {})
        for reader in list(self.readers):
            if reader.qsize() < EVENTS_KEPT:
                reader.put_nowait(told)
            else:  # a reader this slow is dropped: it gets the end-of-stream error
                self.readers.discard(reader)
                reader.put_nowait(None)

    def end(self) -> None:
        """Tell every reader that nothing more comes."""
        readers, self.readers = self.readers, set()
        for reader in readers:
            reader.put_nowait(None)


class Monitor:
    """One connection to one QEMU. Made by `connect`; `close` it, or it closes itself when QEMU ends."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._spread = _Spread()
        self._dead = asyncio.Event()
        client.events.names.add("")  # no event has this name; the default listener cannot be taken off, only deafened
        client.register_listener(self._spread)
        self._life = asyncio.create_task(self._watch(), name="qmp/life")

    @classmethod
    async def connect(cls, address: str | socket.socket, *, deadline_s: float = DEADLINE_S) -> Monitor:
        """Connect and negotiate. `address` is the socket's path, or a connected socket, which is then owned by this. Raises
        Unavailable (nobody there, or it hung up) and DeadlineExceeded."""
        client = QMPClient(readbuflen=ANSWER_BYTES)
        try:
            await asyncio.wait_for(client.connect(address), deadline_s)
        except TimeoutError as fault:
            raise DeadlineExceeded(f"QEMU's monitor did not greet within {deadline_s:g} s.") from fault
        except QMPError as fault:
            raise Unavailable(f"QEMU's monitor cannot be reached: {fault}") from fault
        finally:
            if client.runstate != Runstate.RUNNING and isinstance(address, socket.socket):
                address.close()
        return cls(client)

    @property
    def alive(self) -> bool:
        """Whether the connection stands."""
        return not self._dead.is_set()

    async def execute(self, command: str, *, deadline_s: float = DEADLINE_S, **arguments: Any) -> Any:
        """Run one command; underscores in argument names become the hyphens that QMP uses. Raises Refused, Unavailable
        (the connection is gone) and DeadlineExceeded."""
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        if not self.alive:
            raise Unavailable(f"QEMU's monitor is gone, {command} was not sent.")
        try:
            return await asyncio.wait_for(self._client.execute(command, words or None), deadline_s)
        except TimeoutError as fault:
            raise DeadlineExceeded(f"QEMU did not answer {command} within {deadline_s:g} s.") from fault
        except ExecuteError as fault:
            raise Refused(command, fault.error_class, str(fault)) from fault
        except (ExecInterruptedError, QMPError, OSError, EOFError) as fault:
            raise Unavailable(f"QEMU went away during {command}.") from fault

    def subscribe(self) -> Subscription:
        """All events from this moment on."""
        return Subscription(self._spread.readers, dead=self._dead.is_set())

    async def gone(self) -> None:
        """Return when the connection has ended."""
        await self._dead.wait()

    async def close(self) -> None:
        """Hang up; QEMU goes on. Repeatable."""
        self._life.cancel()
        await asyncio.wait([self._life])
        await self._let_go()

    async def _watch(self) -> None:
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        await self._let_go()

    async def _let_go(self) -> None:
        if self._client.runstate != Runstate.IDLE:
            with contextlib.suppress(Exception):
                await self._client.disconnect()  # the library keeps its tasks until it is asked
        self._dead.set()
        self._spread.end()


class Subscription:
    """Events for one reader, kept from its making on. Use as `async with` or call `close`."""

    def __init__(self, readers: set[asyncio.Queue[Event | None]], *, dead: bool) -> None:
        self._readers = readers
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        if dead:
            self._queue.put_nowait(None)
        else:
            readers.add(self._queue)

    async def next(self) -> Event:
        """The next event. Raises Unavailable when the connection has ended or this reader fell too far behind."""
        event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)
            raise Unavailable("QEMU's event stream ended.")
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._all()

    async def _all(self) -> AsyncIterator[Event]:
        while True:
            yield await self.next()

    def close(self) -> None:
        """Take no more."""
        self._readers.discard(self._queue)
