"""Rules of other tools that end the process of an older libnftables: told as a fault, and the daemon lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

# In a network namespace of its own: a set as nft 1.1 describes it, and what we then do with libnftables.
PROGRAM = """
import socket, struct
from insula.errors import Unavailable
from insula.host.nft import Nft

def attribute(kind, data):
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)

def message(kind, flags, body, family=1):
    body = struct.pack(">BBH", family, 0, 10 if kind in (16, 17) else 0) + body
    return struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body

def number(value):
    return struct.pack(">I", value)

described = bytes.fromhex("00040100000003080004040000000100")  # of `type ifname`, as nft 1.1 writes it
nft = Nft()
nft.run("add table inet ours")
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
table = attribute(1, b"theirs\\0")
set_ = table + attribute(2, b"s\\0") + attribute(4, number(0x29)) + attribute(5, number(16))
set_ += attribute(10, number(1)) + attribute(13, described)
link.send(
    message(16, 1, b"", 0) + message(10 << 8, 0x401, table) + message(10 << 8 | 9, 0x401, set_) + message(17, 1, b"", 0)
)
for commands in ("add table inet ours", "delete table inet ours"):
    try:
        nft.run(commands)
        print("done")
    except Unavailable as fault:
        print(fault.message)
nft.close()
"""


def test_tables_of_a_newer_nft_do_not_end_the_daemon() -> None:
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": source},
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    for line in done.stdout.splitlines():
        assert line == "done" or "nftables cannot read the rules of this host" in line
    assert len(done.stdout.splitlines()) == 2
