"""Handing all frames of one network interface to another, by traffic control: for a machine that takes over an interface of its
namespace. The kernel's `mirred` action at the ingress of either; the interface keeps its addresses, and nothing of its own
namespace sees its frames any more.

Sources: tc(8), tc-mirred(8), tc-u32(8); linux/rtnetlink.h, linux/pkt_cls.h, linux/pkt_sched.h, linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import socket
import struct

from insula.host.netlink import ACCEPT, CREATE, EXCLUSIVE, Request, attribute

_NEWQDISC, _DELQDISC, _NEWTFILTER = 36, 37, 44
_NESTED = 0x8000
_INGRESS, _INGRESS_PARENT = 0xFFFF0000, 0xFFFFFFF1
_EVERY_PROTOCOL = 0x0003  # ETH_P_ALL
_PRIORITY = 1
_STOLEN, _EGRESS_REDIRECT, _TERMINAL = 4, 1, 1

_TCMSG = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_SELECTOR = struct.Struct("=BBBxHHhhI")  # flags, shift of the offset, number of keys, and what is not used
_MIRRED = struct.Struct("=IIiiiiI")  # index, capabilities, action, counts, what to do, interface


def take_ingress(index: int) -> Request:
    """Let what comes in at an interface be filtered."""
    body = _TCMSG.pack(socket.AF_UNSPEC, index, _INGRESS, _INGRESS_PARENT, 0) + attribute(1, b"ingress\0")
    return Request(_NEWQDISC, ACCEPT | CREATE | EXCLUSIVE, body, f"tc qdisc add dev #{index} ingress")


def leave_ingress(index: int) -> Request:
    """Remove what `take_ingress` made, with all redirections. EINVAL or ENOENT where there is nothing."""
    body = _TCMSG.pack(socket.AF_UNSPEC, index, _INGRESS, _INGRESS_PARENT, 0) + attribute(1, b"ingress\0")
    return Request(_DELQDISC, ACCEPT, body, f"tc qdisc del dev #{index} ingress")


def redirect(index: int, target: int) -> Request:
    """Everything that comes in at `index` leaves through `target` instead."""
    mirred = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, target)
    action = attribute(1, b"mirred\0") + attribute(2 | _NESTED, attribute(2, mirred))
    every = _SELECTOR.pack(_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + bytes(16)  # one key, whose mask is empty
    options = attribute(5, every) + attribute(7 | _NESTED, attribute(1 | _NESTED, action))
    info = _PRIORITY << 16 | socket.htons(_EVERY_PROTOCOL)
    body = _TCMSG.pack(socket.AF_UNSPEC, index, 0, _INGRESS, info)
    body += attribute(1, b"u32\0") + attribute(2 | _NESTED, options)
    command = f"tc filter add dev #{index} ingress u32 match u32 0 0 action mirred egress redirect dev #{target}"
    return Request(_NEWTFILTER, ACCEPT | CREATE, body, command)
