"""A folder with more folders bound into it, seen by nobody else: for working in the root file system of what does not run.

The bindings live in a mount namespace of their own, made by a thread of its own: unshare(2) with CLONE_NEWNS changes the calling
thread for good. The namespace lives as long as its descriptor, and every path below the root's descriptor goes through the
bindings. Nothing of it is ever visible in the host's namespace, and a killed Insula leaves nothing behind.

Sources: mount_namespaces(7), unshare(2), proc_pid_fd(5).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from insula.errors import HostFault
from insula.host import mounts
from insula.host.rootfd import Root, open_in, split

_NEWNS, _FS = 0x00020000, 0x00000200

_libc = ctypes.CDLL(None, use_errno=True)


class Binding(Struct, frozen=True, kw_only=True):
    """A file or folder of the host that shall appear at `target` inside the root."""

    source: str
    target: str
    readonly: bool = False


class View:
    """The root with its bindings, until `close`."""

    def __init__(self, root: str, bindings: Sequence[Binding]) -> None:
        """Blocks. Sources that are not there are left out, targets that are not there are made. Raises HostFault, OSError."""
        done: Future[tuple[int, int]] = Future()
        threading.Thread(target=_build, args=(root, bindings, done), name="mountview", daemon=True).start()
        self._namespace, self._root = done.result()

    @property
    def path(self) -> str:
        """The root, for this process."""
        return f"/proc/self/fd/{self._root}"

    def close(self) -> None:
        """Let go of it; the namespace ends."""
        os.close(self._root)
        os.close(self._namespace)


def _build(root: str, bindings: Sequence[Binding], done: Future[tuple[int, int]]) -> None:
    try:
        done.set_result(_bound(root, bindings))
    except BaseException as fault:
        done.set_exception(fault)


def _bound(root: str, bindings: Sequence[Binding]) -> tuple[int, int]:
    if _libc.unshare(_NEWNS | _FS) != 0:
        code = ctypes.get_errno()
        raise HostFault(f"The kernel gave no mount namespace: {os.strerror(code)}.", command="unshare -m", code=code)
    mounts.set_propagation("/", "rprivate")
    with ExitStack() as undo:
        namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, namespace)
        opened = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, opened)
        for binding in sorted(bindings, key=lambda each: each.target.count("/")):
            _bind(opened, binding)
        undo.pop_all()
    return namespace, opened


def _bind(root: int, binding: Binding) -> None:
    source = Path(binding.source)
    if not source.exists():
        return
    target = _target(root, binding.target, source.is_dir())
    try:
        mounts.bind(binding.source, f"/proc/self/fd/{target}", recursive=True)
    finally:
        os.close(target)
    if binding.readonly:
        above = open_in(root, binding.target, os.O_PATH)
        try:
            mounts.set_readonly(f"/proc/self/fd/{above}")
        finally:
            os.close(above)


def _target(root: int, path: str, folder: bool) -> int:
    try:
        return open_in(root, path, os.O_PATH)
    except FileNotFoundError:
        parts = split(path)
        with Root(f"/proc/self/fd/{root}") as inside:
            parent = inside.folder(parts if folder else parts[:-1], create=True)
            if not folder:
                os.close(os.open(parts[-1], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=parent))
        return open_in(root, path, os.O_PATH)
