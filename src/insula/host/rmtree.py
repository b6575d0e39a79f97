"""Remove a folder with all that is in it, however deep strangers have nested it: no recursion limit, few descriptors."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH = 32  # folders below this are moved up to the top first


def remove_tree(path: str | Path, *, dir_fd: int | None = None, ignore_errors: bool = False) -> None:
    """Delete a folder and its content, never following a symlink. What is not there is fine. Blocks. Raises OSError (a
    mount inside, a disk that fails) unless `ignore_errors`: for what the next start will try again."""
    try:
        _remove(os.fspath(path), dir_fd)
    except FileNotFoundError:
        return
    except OSError:
        if not ignore_errors:
            raise


def _remove(path: str, dir_fd: int | None) -> None:
    top = os.open(path, _FOLDER, dir_fd=dir_fd)
    try:
        work = _Removal(top)
        while work.empty(top, 0):
            pass
    finally:
        os.close(top)
    os.rmdir(path, dir_fd=dir_fd)


class _Removal:
    def __init__(self, top: int) -> None:
        self._top = top
        self._moved = 0

    def empty(self, folder: int, depth: int) -> bool:
        """Empty a folder. True when something was moved to the top meanwhile, where it has to be looked at again."""
        before = self._moved
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_folder in found:
            with suppress(FileNotFoundError):
                if not is_folder:
                    os.unlink(name, dir_fd=folder)
                elif depth < _DEPTH:
                    self._descend(folder, name, depth)
                else:
                    self._move_up(folder, name)
        return self._moved > before

    def _descend(self, folder: int, name: str, depth: int) -> None:
        inner = os.open(name, _FOLDER, dir_fd=folder)
        try:
            self.empty(inner, depth + 1)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=folder)

    def _move_up(self, folder: int, name: str) -> None:
        while True:
            self._moved += 1
            target = f".removing-{self._moved}"
            try:
                os.stat(target, dir_fd=self._top, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(name, target, src_dir_fd=folder, dst_dir_fd=self._top)
                return
