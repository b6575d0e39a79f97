"""Network namespaces: made, bound to a path, visited and dialled into, without forking.

A namespace belongs to a thread, so all of this happens on threads: `fresh` and `inside` change the calling thread's
namespace for a moment and must never run on the event loop's thread. A socket stays in the namespace it was made in
whichever thread uses it later, which is what `connect_in_netns` builds on.

Sources: network_namespaces(7), setns(2), unshare(2), ioctl_nsfs(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from insula.errors import DeadlineExceeded, HostFault, NotFound, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_GET_NSTYPE = 0xB703
_OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def _check(result: int, command: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise HostFault(f"The kernel refused a namespace change: {os.strerror(code)}.", command=command, code=code)


def _enter(fd: int) -> None:
    _check(_libc.setns(fd, _NEWNET), "nsenter --net")


def _open(path: str | Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"There is no network namespace at {path}.") from None


@contextlib.contextmanager
def inside(namespace: str | Path | int) -> Iterator[None]:
    """Put the calling thread into a namespace (a path or an open descriptor) for a while. Raises NotFound, HostFault."""
    with contextlib.ExitStack() as undo:
        if not isinstance(namespace, int):
            namespace = _open(namespace)
            undo.callback(os.close, namespace)
        home = _open(_OWN)
        undo.callback(os.close, home)
        _enter(namespace)
        undo.callback(_enter, home)
        yield


def fresh(prepare: Callable[[], None]) -> int:
    """Make a namespace and run `prepare` in it; returns the descriptor that keeps it alive. Raises HostFault."""
    home = _open(_OWN)
    try:
        _check(_libc.unshare(_NEWNET), "unshare --net")
        try:
            fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            try:
                prepare()
                return fd
            except BaseException:
                os.close(fd)
                raise
        finally:
            _enter(home)
    finally:
        os.close(home)


def bind(fd: int, path: Path) -> None:
    """Keep a namespace alive under a path, as ip-netns(8) does. Raises HostFault."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o444)
    source = f"/proc/self/fd/{fd}"
    _check(_libc.mount(source.encode(), os.fsencode(path), None, _MS_BIND, None), f"mount --bind {source} {path}")


def unbind(path: Path) -> None:
    """Take the path away; the namespace ends with its last process. Repeatable."""
    while _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        pass  # a killed attempt may have bound twice
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOENT):
        raise HostFault(f"{path} cannot be unmounted: {os.strerror(code)}.", command=f"umount {path}", code=code)
    path.unlink(missing_ok=True)


def is_namespace(path: str | Path) -> bool:
    """Whether a living network namespace is bound there (and not just a file that a reboot left)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, _GET_NSTYPE) == _NEWNET
    except OSError:
        return False
    finally:
        os.close(fd)


def sysctl(name: str, value: str) -> None:
    """Set a network setting of the calling thread's namespace; `name` with slashes, below `net/`. Raises HostFault."""
    path = Path("/proc/sys/net") / name
    try:
        if path.read_text().split() != value.split():
            path.write_text(value)
    except OSError as fault:
        command = f"sysctl -w net/{name}='{value}'"
        raise HostFault(
            f"The kernel setting net/{name} cannot be set to {value}: {fault.strerror}.", command=command
        ) from fault


class NamespaceThread:
    """One thread that lives in a namespace (empty path: the process's own) and runs what it is given, in order."""

    def __init__(self, name: str, path: str | Path = "") -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=self._settle, initargs=(path,))

    @staticmethod
    def _settle(path: str | Path) -> None:
        if path:
            fd = _open(path)
            try:
                _enter(fd)
            finally:
                os.close(fd)

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work there."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, functools.partial(work, *args, **kwargs))

    def close(self) -> None:
        """End the thread when what it was given is done."""
        self._executor.shutdown(wait=False)


async def visit(namespace: str | Path, work: Callable[[], T]) -> T:
    """Run blocking work inside of a namespace on a thread of its own, which ends with it."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, fault: BaseException | None) -> None:
        if answer.done():
            return
        if fault:
            answer.set_exception(fault)
        else:
            answer.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result, fault = None, None
        try:
            with inside(namespace):
                result = work()
        except BaseException as raised:
            fault = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, result, fault)

    threading.Thread(target=body, name="insula-visit", daemon=True).start()
    return await answer


async def connect_in_netns(
    path: str | Path,
    host: str,
    port: int,
    *,
    protocol: Literal["tcp", "udp"] = "tcp",
    deadline_s: float = 5.0,
) -> socket.socket:
    """A connected, non-blocking socket to a port as seen from inside of a namespace. `host` is an address or `localhost`
    (IPv4, then IPv6). Raises NotFound (no namespace), Unavailable (refused, unreachable), DeadlineExceeded."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    hosts = ("127.0.0.1", "::1") if host == "localhost" else (host,)
    refusal: OSError | None = None
    for address in hosts:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            sock = await visit(path, functools.partial(socket.socket, family, kind | socket.SOCK_NONBLOCK))
        except OSError as fault:
            refusal = fault
            continue
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
            return sock
        except TimeoutError:
            sock.close()
            message = f"{address}:{port} in {path} did not answer within {deadline_s:g} s."
            raise DeadlineExceeded(message) from None
        except OSError as fault:
            sock.close()
            refusal = fault
        except BaseException:
            sock.close()
            raise
    raise Unavailable(f"Nothing answers at {host}:{port} in {path}: {refusal and refusal.strerror}.") from refusal
