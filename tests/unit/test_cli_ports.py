"""Who listens where, and the port that is remembered."""

from __future__ import annotations

from pathlib import Path

from insula.cli import ports
from insula.cli.ports import Listener

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000 100 0
   1: 0100007F:192B 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 4343 1 0000000000000000 20 4
"""
TCP6 = """\
  sl  local_address   remote_address  st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 77 1
   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 78 1
"""


def test_reading_the_kernels_tables() -> None:
    assert ports.parse_listeners(TCP) == [Listener("127.0.0.1", 6443, 4242)]
    assert ports.parse_listeners(TCP6) == [Listener("::", 22, 77), Listener("::1", 80, 78)]
    assert ports.parse_listeners("nonsense\n\n") == []


def test_who_is_in_the_way() -> None:
    found = [Listener("127.0.0.1", 1, 10), Listener("0.0.0.0", 2, 20)]
    assert ports.clash(found, "127.0.0.1", 1) == found[0]
    assert ports.clash(found, "10.0.0.1", 1) is None
    assert ports.clash(found, "0.0.0.0", 1) == found[0]
    assert ports.clash(found, "10.0.0.1", 2) == found[1]
    assert ports.clash(found, "10.0.0.1", 3) is None


def test_a_port_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "api-port"
    assert ports.remembered(path) == 0
    ports.remember(path, 40123)
    assert ports.remembered(path) == 40123
    for nonsense in ("", "x", "-1", "70000"):
        path.write_text(nonsense)
        assert ports.remembered(path) == 0
    assert [found.name for found in tmp_path.iterdir()] == ["api-port"]
