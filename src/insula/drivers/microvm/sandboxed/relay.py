"""The first process of a machine's sandbox. It starts virtiofsd and QEMU, gives the agent in the machine its orders, and stands
for the image's process towards conmon: that one's standard streams are this program's, and so is its exit code.

It outlives Insula, as conmon and QEMU do, so no output and no exit code depends on a daemon being there. Insula connects to its
socket for everything else (execs, signals, sizes, questions) and may come and go.

The order in which things are done is that of `Relay.run`; nothing here ever waits for one stream alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
from collections.abc import Callable

from . import frames
from .frames import BadFrame, Reader, pack, pack_number

FOLDER = "/run/insula"  # the machine's own folder of the host, inside of the sandbox
PORT_FD, SHARE_FD = 10, 11  # where QEMU finds its end of the port, and virtiofsd its socket
LOST = 255  # the exit code of a machine that ended without one
_GOODBYE_S = 2.0
_CHUNK = 64 * 1024
_LOG_BYTES = 64 * 1024
_HELD_FOR_MACHINE = 16 * 1024 * 1024
_HELD_FOR_INSULA = 64 * 1024 * 1024
_FROM_INSULA = {frames.RUN, frames.INPUT, frames.MORE_OUTPUT, frames.SIGNAL, frames.RESIZE, frames.CLOSE, frames.LIST}
_OF_IMAGE = {frames.SIGNAL, frames.RESIZE}  # what Insula may say to session 0


class Pipe:
    """Bytes on their way to a descriptor that must not be waited for."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.held = bytearray()
        os.set_blocking(fd, False)

    def flush(self) -> int:
        """Write what can be written; says how much. A reader that has gone takes everything."""
        done = 0
        while self.held:
            try:
                count = os.write(self.fd, self.held[:_CHUNK])
            except BlockingIOError:
                break
            except OSError:
                count = len(self.held)
            del self.held[:count]
            done += count
        return done


class Relay:
    """One machine."""

    def __init__(self, plan: dict[str, object], folder: str = FOLDER) -> None:
        self._plan = plan
        self._folder = folder
        self._select = selectors.DefaultSelector()
        self._reader = Reader(frames.LARGEST)
        self._outputs = {frames.OUTPUT: Pipe(1), frames.ERRORS: Pipe(2)}
        self._credit = 0  # how much more input the machine takes
        self._input = bool(plan["input"])
        self._state = pack(frames.HELLO, 0)  # what a new connection of Insula's is told first
        self._ordered = self._hung_up = False
        self._code: int | None = None
        self._insula: Pipe | None = None
        self._from_insula = Reader(frames.LARGEST_RUN)
        self._socket: socket.socket | None = None
        self._sessions: set[int] = set()
        self._logged = 0

    # --- beginning

    def run(self) -> int:
        """Until the image's process has ended and all its output is out. Returns the exit code."""
        self._serve()
        self._log, log_end = os.pipe()
        os.set_blocking(self._log, False)
        self._watch(self._log, self._take_log)
        self._start(self._plan["virtiofsd"], log_end, SHARE_FD, self._share())
        mine, its = socket.socketpair()
        self._start(self._plan["qemu"], log_end, PORT_FD, its)
        os.close(log_end)
        self._machine = Pipe(mine.detach())
        while self._code is None or any(pipe.held for pipe in self._outputs.values()):
            self._turn()
        return self._code

    def _share(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self._folder}/share")
        listener.listen(1)
        return listener

    def _serve(self) -> None:
        """Open the socket for Insula, and tell a starting Insula that it is open."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{self._folder}/relay")
        self._listener.listen(4)
        self._watch(self._listener.fileno(), self._accept)
        with contextlib.suppress(OSError):  # nobody waits: Insula was killed meanwhile
            ready = os.open(f"{self._folder}/ready", os.O_WRONLY | os.O_NONBLOCK)
            os.write(ready, b"1")
            os.close(ready)

    def _start(self, argv: object, log: int, at: int, end: socket.socket) -> None:
        """Run a helper with one socket; its end is the machine's end."""
        assert isinstance(argv, list)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_DUP2, end.fileno(), at),
        ]
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
        end.close()
        process = os.pidfd_open(pid)
        self._watch(process, lambda: self._helper_ended(process, argv[0]))

    def _helper_ended(self, process: int, program: str) -> None:
        """QEMU or virtiofsd has gone; what the machine sent before still counts."""
        self._select.unregister(process)
        self._machine_readable()
        self._take_log()
        ended = os.waitid(os.P_PIDFD, process, os.WEXITED)
        how = "was killed by signal" if ended and ended.si_code != os.CLD_EXITED else "ended with code"
        self._refuse(f"{program} {how} {ended.si_status if ended else '?'}")

    def _end(self, code: int) -> None:
        if self._code is None:
            self._code = code

    def _take_log(self) -> None:
        """What the helpers say, as much as is of use to people."""
        try:
            words = os.read(self._log, _CHUNK)
        except BlockingIOError:
            return
        if not words:
            self._select.unregister(self._log)
        elif self._logged < _LOG_BYTES:
            self._logged += len(words)
            log = os.open(f"{self._folder}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(log, words)
            os.close(log)

    # --- one turn of the loop

    def _watch(self, fd: int, call: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        self._select.register(fd, events, call)

    def _want(self, fd: int, call: Callable[[], None], events: int) -> None:
        """Have a descriptor watched for exactly these events."""
        known = self._select.get_map().get(fd)
        if known is None and events:
            self._watch(fd, call, events)
        elif known is not None and not events:
            self._select.unregister(fd)
        elif known is not None and known.events != events:
            self._select.modify(fd, events, call)

    def _turn(self) -> None:
        read, write = selectors.EVENT_READ, selectors.EVENT_WRITE
        for pipe in self._outputs.values():
            self._want(pipe.fd, self._nothing, write if pipe.held else 0)
        reads = read if self._code is None and not self._hung_up else 0
        self._want(self._machine.fd, self._machine_readable, reads | (write if self._machine.held else 0))
        room = len(self._machine.held) < frames.WINDOW and self._code is None
        self._want(0, self._stdin_readable, read if self._input and self._credit and room else 0)
        if self._insula:
            events = (read if room else 0) | (write if self._insula.held else 0)
            self._want(self._insula.fd, self._insula_readable, events)
        ready = self._select.select(_GOODBYE_S if self._hung_up else None)
        if self._hung_up and not ready:
            self._refuse("the machine hung up")
        for key, events in ready:
            if events & read and key.fd in self._select.get_map():
                key.data()
        self._flush()

    def _nothing(self) -> None:
        """A descriptor that is only written to."""

    def _flush(self) -> None:
        for pipe in self._outputs.values():
            if done := pipe.flush():
                self._machine.held += pack_number(frames.MORE_OUTPUT, 0, done)
        self._machine.flush()
        if len(self._machine.held) > _HELD_FOR_MACHINE:
            self._refuse("the machine does not read what it is told")
        if self._insula:
            self._insula.flush()
            if len(self._insula.held) > _HELD_FOR_INSULA:
                self._drop_insula()

    # --- the machine

    def _machine_readable(self) -> None:
        try:
            data = os.read(self._machine.fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._hung_up = not data  # QEMU is at its end: how, is told in a moment
        try:
            for kind, session, body in self._reader.feed(data):
                if self._code is not None:
                    return
                self._from_machine(kind, session, body)
        except BadFrame as fault:
            self._refuse(f"the machine broke the protocol: {fault}")

    def _refuse(self, words: str) -> None:
        """Give the machine up, unless its process has ended already."""
        if self._code is not None:
            return
        with open(f"{self._folder}/log", "a") as log:
            log.write(words + "\n")
        self._end(LOST)

    def _from_machine(self, kind: bytes, session: int, body: bytes) -> None:
        if session:
            if kind in (frames.ENDED, frames.FAILED):
                self._sessions.discard(session)
            self._tell(pack(kind, session, body))
        elif kind == frames.HELLO and not self._ordered:
            self._ordered = True
            self._credit = frames.WINDOW
            self._machine.held += pack(frames.RUN, 0, records(self._plan["run"]))
        elif kind in self._outputs:
            pipe = self._outputs[kind]
            pipe.held += body
            if len(pipe.held) > frames.WINDOW:
                raise BadFrame("more output than it may send")
            if not body:
                raise BadFrame("output without bytes")
        elif kind == frames.MORE_INPUT:
            self._credit = min(self._credit + frames.number(body), frames.WINDOW)
        elif kind in (frames.BEGUN, frames.FAILED, frames.ENDED):
            self._change(kind, pack(kind, 0, body), frames.number(body))

    def _change(self, kind: bytes, told: bytes, value: int) -> None:
        self._state = told
        self._tell(told)
        if kind != frames.BEGUN:
            self._end(value & 0xFF)

    # --- standard input

    def _stdin_readable(self) -> None:
        try:
            data = os.read(0, min(self._credit, _CHUNK))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._credit -= len(data)
        self._input = bool(data)
        self._machine.held += pack(frames.INPUT, 0, data)

    # --- Insula

    def _accept(self) -> None:
        """There is one Insula: a new connection takes the place of an old one."""
        self._drop_insula()
        self._socket = self._listener.accept()[0]
        self._insula = Pipe(self._socket.fileno())
        self._from_insula = Reader(frames.LARGEST_RUN)
        self._tell(self._state)

    def _tell(self, frame: bytes) -> None:
        if self._insula:
            self._insula.held += frame

    def _drop_insula(self) -> None:
        if self._insula and self._socket:
            self._want(self._insula.fd, self._nothing, 0)
            self._socket.close()
            self._insula = None
            for session in self._sessions:
                self._machine.held += pack(frames.CLOSE, session)

    def _insula_readable(self) -> None:
        assert self._insula
        try:
            data = os.read(self._insula.fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            for kind, session, body in self._from_insula.feed(data):
                if kind in (_FROM_INSULA if session else _OF_IMAGE):
                    self._machine.held += pack(kind, session, body)
                if kind == frames.RUN and session:
                    self._sessions.add(session)
        except BadFrame:
            data = b""
        if not data:
            self._drop_insula()


def records(settings: object) -> bytes:
    """The body of a RUN frame."""
    assert isinstance(settings, list)
    return b"".join(f"{key}={value}".encode(errors="surrogateescape") + b"\0" for key, value in settings)


def main() -> None:
    """What the sandbox runs."""
    with open(f"{FOLDER}/machine.json") as file:
        plan = json.load(file)
    code = Relay(plan).run()
    sys.stdout.flush()
    os._exit(code)
