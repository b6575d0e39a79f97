"""Whether the other side of a Unix socket has accepted a connection: sock_diag(7).

connect(2) returns as soon as the connection is in the listener's queue. The kernel gives the far end an inode only when it is
accepted, and tells that inode to whoever asks about the near end.
"""

from __future__ import annotations

import os
import socket
import struct

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
UDIAG_SHOW_PEER = 4
UNIX_DIAG_PEER = 2
ALL_STATES = ANY_COOKIE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct("=BBHIIIII")  # unix_diag_req
_MESSAGE_BYTES = 16  # unix_diag_msg
_ATTRIBUTE = struct.Struct("=HH")


def request(inode: int) -> bytes:
    """The question about one socket."""
    body = _REQUEST.pack(socket.AF_UNIX, 0, 0, ALL_STATES, inode, UDIAG_SHOW_PEER, ANY_COOKIE, ANY_COOKIE)
    return _HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0) + body


def parse_peer(answer: bytes) -> int | None:
    """The peer's inode in the kernel's answer, 0 while it is not accepted; None when the kernel cannot say."""
    length, kind, *_ = _HEADER.unpack_from(answer)
    if kind != SOCK_DIAG_BY_FAMILY:
        return None
    offset = _HEADER.size + _MESSAGE_BYTES
    while offset + _ATTRIBUTE.size <= min(length, len(answer)):
        size, name = _ATTRIBUTE.unpack_from(answer, offset)
        if name == UNIX_DIAG_PEER:
            return int.from_bytes(answer[offset + 4 : offset + 8], "little" if struct.pack("=H", 1)[0] else "big")
        offset += max(size + 3 & ~3, _ATTRIBUTE.size)
    return None


def accepted(sock: socket.socket) -> bool | None:
    """Whether the far end of a connected Unix socket was accepted; None when this kernel cannot say (no CONFIG_UNIX_DIAG)."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(0.05)
            netlink.send(request(os.fstat(sock.fileno()).st_ino))
            peer = parse_peer(netlink.recv(4096))
    except OSError:
        return None
    return None if peer is None else peer != 0
