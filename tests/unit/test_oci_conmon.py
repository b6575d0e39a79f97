"""What conmon is told, what it says, what it logs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.errors import HostFault
from insula.host import capabilities, unixdiag
from insula.host.conmon import Launch, Report, arguments, environment, parse_report, read_number
from insula.host.conmonlog import Entry, Parser, parse_line

LAUNCH = Launch(
    conmon="/usr/bin/conmon",
    runtime="/usr/sbin/runc",
    runtime_root="/run/insula/runc",
    id="c" * 64,
    uuid="c" * 64,
    name="web",
    bundle="/d/bundle",
    persist="/d/persist",
    log_path="/d/log",
)


def test_a_plain_container() -> None:
    assert arguments(LAUNCH) == [
        "/usr/bin/conmon", "--api-version", "1", "-c", "c" * 64, "-u", "c" * 64, "-n", "web",
        "-r", "/usr/sbin/runc", "--runtime-arg=--root", "--runtime-arg=/run/insula/runc",
        "-b", "/d/bundle", "--persist-dir", "/d/persist", "--full-attach", "--no-sync-log",
        "-p", "/d/bundle/container.pid", "-P", "/d/bundle/conmon.pid", "-l", "k8s-file:/d/log",
    ]  # fmt: skip


def test_flags() -> None:
    argv = arguments(
        msgspec.structs.replace(LAUNCH, terminal=True, stdin=True, leave_stdin_open=True, log_path="", exec_spec="/p")
    )
    assert argv[-9:] == [
        "-l",
        "none",
        "-t",
        "-i",
        "--leave-stdin-open",
        "--exec",
        "--exec-attach",
        "--exec-process-spec",
        "/p",
    ]


def test_a_log_path_with_a_colon_is_refused() -> None:
    with pytest.raises(HostFault, match="colon"):
        arguments(msgspec.structs.replace(LAUNCH, log_path="/a:b"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"data": 42}', Report(42)),
        (b'{"pid": 42}', Report(42)),
        (b'{"data": -1, "message": "runc said no"}', Report(-1, "runc said no")),
        (b'{"data": -1, "message": null}', Report(-1)),
        (b"{}", Report(-1)),
    ],
)
def test_reports(line: bytes, expected: Report) -> None:
    assert parse_report(line) == expected


@pytest.mark.parametrize("line", [b"", b"nonsense", b"[]", b'{"data": []}', b'{"data": "x"}'])
def test_reports_that_make_no_sense(line: bytes) -> None:
    with pytest.raises(HostFault):
        parse_report(line)


def test_a_folder_too_long_for_a_socket_is_not_used() -> None:
    assert environment("/run/insula")["TMPDIR"] == "/run/insula"
    assert "TMPDIR" not in environment("/x" * 60)


def test_numbers_in_files(tmp_path: Path) -> None:
    assert read_number(tmp_path / "none") is None
    (tmp_path / "empty").write_text("")
    assert read_number(tmp_path / "empty") is None
    (tmp_path / "pid").write_text("17\n")
    assert read_number(tmp_path / "pid") == 17


# --- the log

TIME = b"2026-01-02T03:04:05.123456789+01:00"


def _split(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def test_lines() -> None:
    text = TIME.decode()
    assert parse_line(TIME + b" stdout F hello world\n") == Entry(text, "stdout", False, b"hello world\n")
    assert parse_line(TIME + b" stderr P no end\n") == Entry(text, "stderr", True, b"no end")
    assert parse_line(TIME + b" stdout F \n") == Entry(text, "stdout", False, b"\n")
    for foreign in (b"\n", b"x\n", TIME + b" stdin F x\n", TIME + b" stdout Q x\n"):
        assert parse_line(foreign) is None


@given(
    st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=40)), max_size=8),
    st.integers(min_value=1, max_value=50),
)
def test_every_byte_can_be_had_back(pieces: list[tuple[str, bytes]], step: int) -> None:
    log = b""
    for stream, data in pieces:
        for line in _split(data):
            full = line.endswith(b"\n")
            log += TIME + b" " + stream.encode() + (b" F " if full else b" P ") + line + (b"" if full else b"\n")
    parser = Parser()
    entries = [entry for at in range(0, len(log), step) for entry in parser.feed(log[at : at + step])]
    for stream in ("stdout", "stderr"):
        expected = b"".join(data for name, data in pieces if name == stream)
        assert b"".join(entry.data for entry in entries if entry.stream == stream) == expected


# --- small readers of the kernel's words


def test_the_bounding_set() -> None:
    assert capabilities.parse_bounding("Name:\tx\nCapBnd:\t0000000000000003\n") == ("CAP_CHOWN", "CAP_DAC_OVERRIDE")
    assert capabilities.parse_bounding("CapBnd: 000001ffffffffff") == capabilities.NAMES
    assert capabilities.parse_bounding("") == ()


def test_the_kernels_answer_about_a_peer() -> None:
    waiting = bytes.fromhex(
        "300000001400000001000000d63c0000010501009c070300011000000000000008000200000000000500060000000000"
    )
    taken = bytes.fromhex(
        "300000001400000001000000d63c0000010501009c0703000110000000000000080002009e0703000500060000000000"
    )
    error = bytes.fromhex("24000000020000000100000000000000feffffff") + bytes(16)
    assert unixdiag.parse_peer(waiting) == 0
    assert unixdiag.parse_peer(taken) == 0x3079E
    assert unixdiag.parse_peer(error) is None
