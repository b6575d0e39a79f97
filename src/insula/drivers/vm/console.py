"""A machine's serial line for several viewers at once.

QEMU's socket takes one client. This listens on a socket of its own, hands the guest's output to every viewer and every
viewer's input to the guest. While nobody looks it holds no connection; output is then only logged, by QEMU itself. The
guest is never held up: what it writes is read at once, and a viewer who does not keep up is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from insula.drivers.driver import Channel
from insula.errors import Unavailable
from insula.host import qemu
from insula.tasks import Tasks

_CHUNK = 64 * 1024
_BEHIND_BYTES = 1024 * 1024  # a viewer with more than this unread is dropped


class Console:
    """Serves `path` from the serial socket `line` until closed."""

    def __init__(self, path: str, line: str) -> None:
        self.path = path
        self._line = line
        self._viewers: set[asyncio.StreamWriter] = set()
        self._guest: asyncio.StreamWriter | None = None
        self._connecting = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._tasks = Tasks("console")

    async def open(self) -> None:
        """Begin to listen, replacing the socket that a killed Insula left."""
        self._server = await asyncio.start_unix_server(self._serve, sock=qemu.listen(self.path))

    async def connect(self) -> None:
        """Connect to the guest now, so that no output from this moment on is missed. Raises Unavailable."""
        async with self._connecting:
            if self._guest is not None:
                return
            try:
                reader, self._guest = await asyncio.open_unix_connection(self._line)
            except OSError as fault:
                raise Unavailable(f"The machine's serial line is gone: {fault.strerror}.") from fault
            self._tasks.spawn(self._spread(reader, self._guest), "spread")

    async def close(self) -> None:
        """Let go of guest and viewers; QEMU goes on."""
        if self._server is not None:
            self._server.close()
        for viewer in list(self._viewers):
            viewer.transport.abort()
        await self._tasks.close()
        await self._hang_up()
        with contextlib.suppress(FileNotFoundError):
            Path(self.path).unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None or not self._server.is_serving():
            writer.transport.abort()
            return
        await asyncio.wait([self._tasks.spawn(self._view(reader, writer), "viewer")])

    async def _view(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._viewers.add(writer)
        try:
            await self.connect()
            while chunk := await reader.read(_CHUNK):
                if self._guest is None:
                    return
                self._guest.write(chunk)
                await self._guest.drain()
        except (OSError, Unavailable):
            return
        finally:
            self._viewers.discard(writer)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()
            if not self._viewers:
                await self._hang_up()

    async def _spread(self, reader: asyncio.StreamReader, guest: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                for viewer in list(self._viewers):
                    if viewer.transport.get_write_buffer_size() > _BEHIND_BYTES:
                        viewer.transport.abort()
                        self._viewers.discard(viewer)
                    else:
                        viewer.write(chunk)
        if self._guest is guest:  # the machine ended: so do its viewers
            for viewer in list(self._viewers):
                viewer.close()
            await self._hang_up()

    async def _hang_up(self) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()
            with contextlib.suppress(OSError):
                await guest.wait_closed()


class ConsoleStreams:
    """One viewer, as the Streams of `attach`: a serial line knows one output only."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, console: Console) -> ConsoleStreams:
        """Connected to the guest when this returns."""
        streams = cls(*await asyncio.open_unix_connection(console.path))
        try:
            await console.connect()
        except BaseException:
            await streams.close()
            raise
        return streams

    async def read(self) -> AsyncIterator[tuple[Channel, bytes]]:
        """Chunks until the machine ends."""
        with contextlib.suppress(ConnectionError):
            while chunk := await self._reader.read(_CHUNK):
                yield Channel.STDOUT, chunk

    async def write(self, data: bytes) -> None:
        """Type on the line."""
        self._writer.write(data)
        await self._writer.drain()

    async def close_stdin(self) -> None:
        """A serial line has no end of file; it stays open for whoever types next."""

    async def close(self) -> None:
        """Let go."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
