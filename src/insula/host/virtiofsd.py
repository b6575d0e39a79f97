"""virtiofsd(1): the program that gives a machine a folder of the host. Two of that name are about: the one that came with QEMU
until 7.2 (C; Debian 12), and its successor (Rust; a package of its own). They differ in their options.

It is started as root in a sandbox that somebody else made, so it only changes its root folder itself, and it leaves the limits
of the sandbox as they are.
"""

from __future__ import annotations

from pathlib import Path

from insula.errors import Unavailable

_SUCCESSOR = "/usr/libexec/virtiofsd"
_OF_QEMU = "/usr/lib/qemu/virtiofsd"


def find() -> str:
    """The program's path, the newer one first. Raises Unavailable."""
    for path in (_SUCCESSOR, _OF_QEMU):
        if Path(path).exists():
            return path
    raise Unavailable(
        "virtiofsd is not installed", hint="install the package virtiofsd (in Debian 12: qemu-system-common)"
    )


def arguments(program: str, folder: str, *, fd: int) -> list[str]:
    """The command that serves a folder on the listening socket `fd`. Pure. Mounts inside of the folder are told to the machine as
    mounts, so that files of different file systems never look like the same one."""
    if program == _OF_QEMU:
        options = f"source={folder},sandbox=chroot,announce_submounts,xattr,cache=auto,log_level=err"
        return [program, f"--fd={fd}", "--rlimit-nofile=0", "-o", options]
    rest = ("--sandbox=chroot", "--announce-submounts", "--xattr", "--cache=auto", "--log-level=error")
    return [program, f"--fd={fd}", "--rlimit-nofile=0", f"--shared-dir={folder}", *rest]
