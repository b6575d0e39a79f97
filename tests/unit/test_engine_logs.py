"""Reading logs: tails, times, following, rotation."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from insula.engine.contract import LogLine
from insula.engine.logs import Follower, RawParser, TimedParser, moment_ns, query_of
from insula.engine.watchfile import Watches
from insula.errors import Invalid

T = "2026-01-02T03:04:{:02d}.000000001+00:00"


def line(second: int, text: str, *, stream: str = "stdout", tag: str = "F") -> bytes:
    return f"{T.format(second)} {stream} {tag} {text}\n".encode()


async def read(path: Path, *, timed: bool = True, ended: asyncio.Event | None = None, **query) -> list[LogLine]:
    done = ended or asyncio.Event()
    asked = query_of(**{"follow": False, "since": "", "until": "", "tail": None, **query})
    watches = Watches()
    try:
        return [each async for each in Follower(path, asked, watches, timed=timed, ended=done).read()]
    finally:
        watches.close()


def texts(lines: list[LogLine]) -> list[bytes]:
    return [each.data for each in lines]


async def test_everything_in_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(line(1, "a") + line(2, "b", stream="stderr") + line(3, "par", tag="P") + line(3, "tial") + b"torn")
    lines = await read(log)
    assert texts(lines) == [b"a\n", b"b\n", b"par", b"tial\n"]
    assert lines[1].channel == "stderr"
    assert lines[2].partial
    assert lines[0].time == "2026-01-02T03:04:01.000000001Z"
    assert await read(tmp_path / "missing") == []


LONG = b"".join(line(n % 60, f"line {n}") for n in range(20000))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5000, 20000, 99999])
async def test_tail(tmp_path: Path, count: int) -> None:
    log = tmp_path / "log"
    log.write_bytes(LONG)
    got = texts(await read(log, tail=count))
    assert len(got) == min(count, 20000)
    if got:
        assert got[-1] == b"line 19999\n"
        assert got[0] == f"line {20000 - len(got)}\n".encode()


async def test_a_tail_counts_a_line_in_pieces_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(line(1, "x") + line(2, "a", tag="P") + line(2, "b", tag="P") + line(2, "c") + line(3, "y"))
    assert texts(await read(log, tail=1)) == [b"y\n"]
    assert texts(await read(log, tail=2)) == [b"a", b"b", b"c\n", b"y\n"]
    assert texts(await read(log, tail=3)) == [b"x\n", b"a", b"b", b"c\n", b"y\n"]


async def test_since_and_until(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(line(n, str(n)) for n in range(10)))
    since, until = "2026-01-02T03:04:03Z", "2026-01-02T03:04:05Z"
    assert texts(await read(log, since=since, until=until)) == [b"3\n", b"4\n"]
    seconds = str(moment_ns(since) // 10**9)
    assert texts(await read(log, since=seconds, tail=3)) == [b"7\n", b"8\n", b"9\n"]
    with pytest.raises(Invalid, match="is not a time"):
        moment_ns("yesterday")
    assert moment_ns("12.5") == 12_500_000_000


async def test_following_ends_with_the_instance(tmp_path: Path) -> None:
    log, ended = tmp_path / "log", asyncio.Event()
    reading = asyncio.create_task(read(log, follow=True, ended=ended))
    with log.open("ab") as file:
        for number in range(3):
            await asyncio.sleep(0.01)
            file.write(line(number, str(number)))
            file.flush()
        file.write(line(4, "last"))
        file.flush()
    ended.set()
    async with asyncio.timeout(5):
        assert texts(await reading) == [b"0\n", b"1\n", b"2\n", b"last\n"]


async def test_following_sees_a_rotation(tmp_path: Path) -> None:
    log, ended = tmp_path / "log", asyncio.Event()
    log.write_bytes(line(1, "old"))
    reading = asyncio.create_task(read(log, follow=True, ended=ended))
    await asyncio.sleep(0.02)
    log.rename(tmp_path / "log.1")
    log.write_bytes(line(2, "new"))
    await asyncio.sleep(0.02)
    ended.set()
    async with asyncio.timeout(5):
        assert texts(await reading) == [b"old\n", b"new\n"]


async def test_a_raw_log_has_no_times(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"boot\r\n\xff\x00\nlogin: ")
    assert texts(await read(log, timed=False)) == [b"boot\r\n", b"\xff\x00\n", b"login: "]
    assert texts(await read(log, timed=False, tail=1)) == [b"login: "]
    assert texts(await read(log, timed=False, tail=2)) == [b"\xff\x00\n", b"login: "]


def test_tail_offsets_agree_with_a_slow_count() -> None:
    content = b"".join(line(n, str(n), tag="P" if n % 3 == 1 else "F") for n in range(9))
    whole = list(TimedParser().feed(content))
    starts = sum(1 for n, (_, each) in enumerate(whole) if n == 0 or not whole[n - 1][1].partial)
    for lines in range(1, starts + 1):
        rest = list(TimedParser().feed(content[TimedParser().tail_offset(content, lines) :]))
        begins = sum(1 for n, (_, each) in enumerate(rest) if n == 0 or not rest[n - 1][1].partial)
        assert begins == lines
    assert TimedParser().tail_offset(content, starts + 1) == 0
    assert RawParser().tail_offset(b"a\nb\n", 3) == 0
