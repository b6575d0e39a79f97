"""Logs within limits: how much, taking the head away under writers and readers, and that nothing is done while nothing is
written."""

from __future__ import annotations

import asyncio
import os
from itertools import pairwise
from pathlib import Path

import pytest

from insula.engine import logkeeping
from insula.engine.logkeeping import keep, trim
from insula.engine.loglimits import LogLimit, limit_of, of_files
from insula.engine.logs import Follower, query_of
from insula.engine.watchfile import Watches
from insula.errors import Invalid
from insula.host import holes
from insula.model.instance import InstanceConfig, MachineConfig

MIB = 1 << 20
T = "2026-01-02T03:04:05.000000001+00:00"


def config(driver: str = "json-file", **options: str) -> InstanceConfig:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return InstanceConfig(name="x", log_driver=driver, log_options=named)


@pytest.mark.parametrize(
    ("wish", "most", "kept"),
    [
        (config("local"), 100_000_000, 80_000_000),
        (config("local", max_size="1m"), 5_000_000, 4_000_000),
        (config(max_size="10k"), 10_000, 5_000),
        (config(max_size="1.5 MB", max_file="3"), 4_500_000, 3_000_000),
        (config(max_size="2GiB", max_file="2"), 4_000_000_000, 2_000_000_000),
        (InstanceConfig(name="pod", owner="kube"), 50 * MIB, 40 * MIB),
        (InstanceConfig(name="vm", machine=MachineConfig()), 16 * MIB, 12 * MIB),
    ],
)
def test_how_much_is_kept(wish: InstanceConfig, most: int, kept: int) -> None:
    assert limit_of(wish) == LogLimit(most_bytes=most, keep_bytes=kept)


def test_all_or_nothing_is_kept() -> None:
    assert limit_of(config()) is None
    assert limit_of(config(max_file="3")) is None
    assert limit_of(config("none")) is None


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (config(max_size="abc"), "invalid size: 'abc'"),
        (config(max_size="-1"), "invalid size: '-1'"),
        (config(max_size="0"), "max-size must be a positive number"),
        (config("local", max_file="x"), 'strconv.Atoi: parsing "x": invalid syntax'),
        (config(max_size="1k", max_file="0"), "max-file cannot be less than 1"),
    ],
)
def test_refuses_as_dockerd_does(wish: InstanceConfig, sentence: str) -> None:
    with pytest.raises(Invalid) as fault:
        limit_of(wish)
    assert fault.value.message == f"failed to initialize logging driver: {sentence}"


def lines(first: int, count: int) -> bytes:
    return b"".join(f"{T} stdout F line {number}\n".encode() for number in range(first, first + count))


async def read(path: Path, *, tail: int | None = None, timed: bool = True) -> list[bytes]:
    watches = Watches()
    asked = query_of(follow=False, since="", until="", tail=tail)
    follower = Follower(path, asked, watches, timed=timed, ended=asyncio.Event())
    return [each.data async for each in follower.read()]


async def test_the_head_goes_and_the_rest_is_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(lines(0, 10_000))
    size = log.stat().st_size
    limit = LogLimit(most_bytes=100_000, keep_bytes=50_000)
    trim(log, limit)
    assert log.stat().st_size == size
    assert log.stat().st_blocks * 512 <= 100_000
    got = await read(log)
    assert got[-1] == b"line 9999\n"
    assert got == [f"line {number}\n".encode() for number in range(10_000 - len(got), 10_000)]
    assert 50_000 // 60 < len(got) < 100_000 // 40
    assert await read(log, timed=False) == list(lines(10_000 - len(got), len(got)).splitlines(keepends=True))
    assert await read(log, tail=3) == got[-3:]
    assert await read(log, tail=10**6) == got
    with log.open("ab") as file:
        file.write(lines(10_000, 10))
    trim(log, limit)  # within its limit: left alone
    assert (await read(log))[: len(got)] == got
    trim(tmp_path / "missing", limit)


async def test_a_file_system_without_holes_costs_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(fd: int, begin: int, end: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(holes, "punch", refuses)
    log = tmp_path / "log"
    log.write_bytes(lines(0, 1000))
    trim(log, LogLimit(most_bytes=1000, keep_bytes=500))
    assert log.stat().st_size == 0


async def test_who_follows_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logkeeping, "PAUSE_S", 0.01)
    log, ended, watches = tmp_path / "log", asyncio.Event(), Watches()
    limit = of_files(8192, 3)
    follower = Follower(log, query_of(follow=True, since="", until="", tail=None), watches, timed=True, ended=ended)
    got: list[bytes] = []

    async def follow() -> None:
        async for each in follower.read():
            got.append(each.data)

    reading, keeping = asyncio.create_task(follow()), asyncio.create_task(keep(log, limit, watches))
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for number in range(0, 4000, 20):
        os.write(file, lines(number, 20))
        while len(got) < number:  # what is kept is more than this reader lags behind
            await asyncio.sleep(0.001)
    ended.set()
    async with asyncio.timeout(10):
        await reading
        while log.stat().st_blocks * 512 > limit.most_bytes + holes.BLOCK:
            await asyncio.sleep(0.01)
    assert got == [f"line {number}\n".encode() for number in range(4000)]
    keeping.cancel()
    await asyncio.wait([keeping])
    os.close(file)
    watches.close()


async def test_a_reader_that_lags_jumps_to_what_is_left(tmp_path: Path) -> None:
    log, watches = tmp_path / "log", Watches()
    log.write_bytes(lines(0, 40_000))
    asked = query_of(follow=False, since="", until="", tail=None)
    stream = Follower(log, asked, watches, timed=True, ended=asyncio.Event()).read()
    got = [(await anext(stream)).data]
    trim(log, LogLimit(most_bytes=100_000, keep_bytes=50_000))
    got += [each.data async for each in stream]
    numbers = [int(each.split()[1]) for each in got]
    assert numbers[0] == 0
    assert numbers[-1] == 39_999
    assert sum(after - before != 1 for before, after in pairwise(numbers)) == 1  # one gap


async def test_nothing_is_done_while_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logkeeping, "PAUSE_S", 0.01)
    looks = 0

    def counted(path: Path, limit: LogLimit) -> None:
        nonlocal looks
        looks += 1
        trim(path, limit)

    monkeypatch.setattr(logkeeping, "trim", counted)
    log, watches = tmp_path / "log", Watches()
    log.write_bytes(lines(0, 1000))
    keeping = asyncio.create_task(keep(log, LogLimit(most_bytes=10_000, keep_bytes=5_000), watches))
    await asyncio.sleep(0.1)
    settled = looks
    assert settled <= 2  # the second one because the first one changed it
    await asyncio.sleep(0.2)
    assert looks == settled
    with log.open("ab") as file:
        file.write(b"x")
    await asyncio.sleep(0.1)
    assert looks == settled + 1
    keeping.cancel()
    await asyncio.wait([keeping])
    watches.close()
