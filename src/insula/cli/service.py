"""Being the daemon: in the foreground, or as a child that goes on when the command has ended.

Order: the lock, the settings, then everything that `assemble` puts together; the lock file, systemd and whoever waits for
the detached child are told when it is ready. SIGTERM and SIGINT end it in order, in the middle of a start as well; a second
signal ends it at once, which loses nothing: workloads go on and the next start takes them back.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import msgspec

from insula import __version__
from insula.cli import daemon, loading, unit
from insula.cli import settings as settings_module
from insula.cli.daemon import AlreadyRuns, Serving
from insula.cli.errors import sentence
from insula.cli.paths import Paths
from insula.errors import DeadlineExceeded, HostFault, InsulaError, Invalid, Unavailable

if TYPE_CHECKING:
    from insula.cli.assemble import Running

log = logging.getLogger(__name__)
_M_ARENA_MAX = -8  # mallopt(3)
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def foreground(paths: Paths, ready_fd: int = -1, changed: Mapping[str, Any] | None = None) -> None:
    """Run until SIGTERM or SIGINT. What happens before readiness is told to `ready_fd` as well, where there is one. `changed` are
    settings that the command line gave."""
    try:
        with daemon.locked(paths) as file:
            daemon.write(file, _said())
            settings = msgspec.structs.replace(settings_module.load(paths.config), **(changed or {}))
            logging.basicConfig(level=settings.log_level.upper(), format=_FORMAT)
            logging.getLogger("aiohttp.server").addFilter(_worth_a_word)
            paths.data.mkdir(mode=0o711, parents=True, exist_ok=True)
            _few_arenas()
            _many_descriptors()
            _run(paths, settings, file, ready_fd)
            daemon.write(file, None)
    except BaseException as fault:
        known = isinstance(fault, InsulaError)
        _tell(ready_fd, {"error": sentence(fault), "known": known, "runs": isinstance(fault, AlreadyRuns)})
        raise


def _said(running: Running | None = None) -> Serving:
    name = os.environ.get("INSULA_UNIT", "")
    if running is None:
        return Serving(pid=os.getpid(), version=__version__, unit=name, ready=False)
    return Serving(
        pid=os.getpid(),
        version=__version__,
        node=running.node,
        api=running.api,
        docker=running.docker,
        docker_tcp=running.docker_tcp,
        unit=name,
    )


def _worth_a_word(record: logging.LogRecord) -> bool:
    """Whether the HTTP server's complaint belongs into the log: what a client did wrong, or its leaving, does not; anybody
    who reaches the port could fill the disk with it."""
    kind = (record.exc_info or (None,))[0]
    return kind is None or not (issubclass(kind, ConnectionError) or kind.__module__ == "aiohttp.http_exceptions")


def _many_descriptors() -> None:
    """As many open files as this process may have: shells give 1,024, and every stream and container needs some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _few_arenas() -> None:
    """Two malloc arenas are enough for this many threads, and keep memory that the threads gave back from staying around."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _run(paths: Paths, settings: settings_module.Settings, file: IO[bytes], ready_fd: int) -> None:
    # Imports that other commands never need take most of the start; no signal handler holds up an end meanwhile.
    complete = loading.first()
    import uvloop

    uvloop.run(_serve(paths, settings, file, ready_fd, complete))


async def _serve(
    paths: Paths, settings: settings_module.Settings, file: IO[bytes], ready_fd: int, complete: Callable[[], None]
) -> None:
    import asyncio

    from insula.cli.assemble import assembled
    from insula.tasks import in_thread

    stop, began = asyncio.Event(), time.monotonic()
    starting = asyncio.current_task()

    def end() -> None:
        if stop.is_set():
            os._exit(128 + signal.SIGTERM)
        stop.set()
        if starting is not None:
            starting.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    try:
        await in_thread(complete)
        async with assembled(paths, settings) as running:
            starting = None
            _ready(file, _said(running), ready_fd, time.monotonic() - began)
            await in_thread(loading.rest)
            await running.placing()
            loading.settled()
            await stop.wait()
            _notify("STOPPING=1")
            log.info("stopping")
    except asyncio.CancelledError:
        if starting is None or not stop.is_set():
            raise
        raise Unavailable("Insula was told to stop while it was starting") from None


def _ready(file: IO[bytes], said: Serving, ready_fd: int, took_s: float) -> None:
    daemon.write(file, said)
    log.info("ready after %.2f s: Docker at %s, Kubernetes at %s", took_s, said.docker, said.api)
    if ready_fd < 0:
        print(f"{doors_line(said)}. Stop with Ctrl-C; workloads go on.", flush=True)
    _tell(ready_fd, {"ready": msgspec.to_builtins(said)})
    _notify("READY=1")


def doors_line(said: Serving) -> str:
    """Where the doors are, in one line."""
    doors = " and ".join((f"unix://{said.docker}", *said.docker_tcp))
    return f"Insula is ready (pid {said.pid}): Docker at {doors}, Kubernetes at {said.api}"


def _tell(ready_fd: int, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody listens, or nobody does any longer
        os.write(ready_fd, msgspec.json.encode(message) + b"\n")
        os.close(ready_fd)


def _notify(state: str) -> None:
    """sd_notify(3), where systemd started us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, contextlib.suppress(OSError):
            notify.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def started(paths: Paths, changed: Mapping[str, Any] | None = None) -> Serving:
    """Start a daemon in the background, as the systemd unit where `insula install` has made one, and wait until it is
    ready. Raises what it says when it cannot start."""
    if not (paths.unit.exists() and unit.runs_systemd()):
        return detached(paths, changed)
    if changed:
        raise Invalid(
            f"systemd starts this Insula, without {', '.join(changed)} of a command line",
            hint=f"set it in {paths.config}",
        )
    daemon.need_root()
    daemon.systemctl("start", paths.unit.name)
    return daemon.need_running(paths)


def detached(paths: Paths, changed: Mapping[str, Any] | None = None) -> Serving:
    """Start a daemon in the background and wait until it is ready. Raises what it says when it cannot start; two that start
    at once end with one daemon and no fault."""
    daemon.need_root()
    paths.log.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    reader, writer = os.pipe()
    child = os.fork()  # and not a new interpreter, which would cost a tenth of the time to readiness
    if child == 0:
        _child(paths, reader, writer, changed)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            answer = _first_line(pipe)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        raise
    if "ready" in answer:
        return msgspec.convert(answer["ready"], Serving)
    _, status = os.waitpid(child, 0)
    if answer.get("runs") and (other := daemon.wait_ready(paths)):
        return other
    raise HostFault(_why(answer, status, paths.log))


def _why(answer: dict[str, Any], status: int, log_file: Path) -> str:
    """Why a start failed; the log is worth a look only when the fault was not foreseen."""
    if answer.get("known"):
        return f"Insula did not start: {answer['error']}"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM:
        return "Insula did not start: it was told to stop meanwhile"
    ended = f"signal {os.WTERMSIG(status)} ended it" if os.WIFSIGNALED(status) else "it ended without a word"
    return f"Insula did not start: {answer.get('error') or ended}; its log is {log_file}"


def _child(paths: Paths, reader: int, writer: int, changed: Mapping[str, Any] | None) -> NoReturn:
    code = 1
    try:
        os.close(reader)
        os.set_inheritable(writer, False)
        os.setsid()
        os.chdir("/")
        _redirect(paths.log, keep=writer)
        foreground(paths, writer, changed)
        code = 0
    except InsulaError as fault:
        log.error("could not start: %s", fault)
    except BaseException:
        log.exception("could not start")
    finally:
        logging.shutdown()
        os._exit(code)


def _redirect(path: Path, *, keep: int) -> None:
    """Standard streams to the log, and nothing else of the caller's (a pipe that it reads to its end) kept open."""
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)


def _first_line(pipe: IO[bytes]) -> dict[str, Any]:
    readable, _, _ = select.select([pipe], [], [], daemon.READY_S)
    if not readable:
        raise DeadlineExceeded(
            f"Insula was not ready within {daemon.READY_S:.0f} s and goes on starting", hint="see: insula logs"
        )
    line = pipe.readline()
    found: dict[str, Any] = msgspec.json.decode(line) if line.strip() else {}
    return found
