"""TCP ports of this host: who listens where, and the port that an Insula below a root took last."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

_LISTEN = "0A"  # TCP_LISTEN in proc_net_tcp


class Listener(Struct, frozen=True):
    """A listening TCP socket."""

    address: str
    port: int
    inode: int


def parse_listeners(text: str) -> list[Listener]:
    """The listening sockets in a text of /proc/net/tcp or tcp6: proc_pid_net(5). Lines of other shapes are passed over."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 9 and words[3] == _LISTEN and ":" in words[1]:
            address, port = words[1].split(":")
            found.append(Listener(_address(address), int(port, 16), int(words[9])))
    return found


def _address(hexadecimal: str) -> str:
    """The kernel prints addresses as 32 bit words in the host's byte order."""
    words = [hexadecimal[i : i + 8] for i in range(0, len(hexadecimal), 8)]
    raw = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return str(ipaddress.ip_address(raw))


def listeners() -> list[Listener]:
    """Those of this host."""
    found = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            found += parse_listeners(Path("/proc/net", name).read_text())
    return found


def clash(found: list[Listener], address: str, port: int) -> Listener | None:
    """The listener that keeps `address:port` from being taken: one on that port, at the same address or where either is any."""
    anywhere = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    for listener in found:
        same = listener.address == address or listener.address in anywhere or address in anywhere
        if listener.port == port and same:
            return listener
    return None


def holder(address: str, port: int) -> str:
    """Who listens there, as `NAME (pid N)`; empty when nobody does or it cannot be seen."""
    listener = clash(listeners(), address, port)
    return owner(listener.inode) if listener else ""


def owner(inode: int) -> str:
    """The first process that holds a socket, as `NAME (pid N)`; empty when it cannot be seen."""
    wanted = f"socket:[{inode}]"
    for process, link in _descriptors():
        if link == wanted:
            with contextlib.suppress(OSError):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def _descriptors() -> Iterator[tuple[Path, str]]:
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for entry in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield process, str(entry.readlink())


def remembered(path: Path) -> int:
    """The port that was taken last, 0 when there is none."""
    try:
        port = int(path.read_text())
    except (OSError, ValueError):
        return 0
    return port if 0 < port < 65536 else 0


def remember(path: Path, port: int) -> None:
    """Keep it for the next start."""
    if remembered(path) == port:
        return
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(f"{port}\n")
    fresh.rename(path)


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
            trial.listen(1)
        except OSError:
            return False
    return True
