"""Nothing acknowledged is lost: the store's process is killed while it writes, and its disk refuses to take more."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from insula.errors import AlreadyExists, HostFault, Unavailable
from insula.store.sqlite import SqliteStore

WRITER = """
import asyncio, sys
from insula.store.sqlite import SqliteStore

async def write(store, who):
    number = 0
    while True:
        record = await store.create(f"k/{who}/{number}", b"x" * 500)
        if number % 3 == 1:
            record = await store.update(record.key, b"y", revision=record.revision)
        if number % 3 == 2:
            record = await store.delete(record.key)
        print(record.key, record.revision, number % 3, flush=True)
        number += 1

async def main():
    store = await SqliteStore.open(sys.argv[1], keep_s=0.02)
    await asyncio.gather(*(write(store, who) for who in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 40, 400])
async def test_kill_9_while_writing(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "store.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = [await asyncio.to_thread(child.stdout.readline) for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        told += (await asyncio.to_thread(child.stdout.read)).splitlines(keepends=True)
    store = await SqliteStore.open(path)
    have = {record.key: record for record in (await store.list("")).records}
    for line in told:
        if not line.endswith("\n"):
            continue
        key, revision, outcome = line.split()
        assert int(revision) <= await store.revision()
        if outcome == "2":
            assert key not in have
        else:
            assert (have[key].revision, have[key].value[:1]) == (int(revision), b"xy"[int(outcome) :][:1])
    assert (await store.create("k/after", b"1")).revision == await store.revision()
    await store.close()


async def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    kept = await store.create("k/kept", b"1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "store.db-wal").stat().st_size + 20_000, hard))
    try:
        outcomes = await asyncio.gather(
            *(store.create(f"k/{number}", b"x" * 50_000) for number in range(3)),
            store.update("k/kept", b"2" * 50_000, revision=kept.revision),
            return_exceptions=True,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all(isinstance(one, Unavailable) for one in outcomes)
    assert await store.get("k/kept") == kept
    assert await store.revision() == kept.revision
    again = await store.create("k/0", b"now")
    await store.close()
    reopened = await SqliteStore.open(tmp_path / "store.db")
    assert (await reopened.list("")).records == [again, kept]
    await reopened.close()


async def test_a_cancelled_writer_takes_nothing_back(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    task = asyncio.create_task(store.create("k/x", b"1"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(AlreadyExists):
        await store.create("k/x", b"2")
    await store.close()
    reopened = await SqliteStore.open(tmp_path / "store.db")
    assert (await reopened.get("k/x")).value == b"1"
    await reopened.close()


async def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"this is no database" * 100)
    with pytest.raises(HostFault, match="cannot be opened"):
        await SqliteStore.open(junk)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE log (a)")
    connection.close()
    with pytest.raises(HostFault, match="another program"):
        await SqliteStore.open(other)


async def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.create("k/x", b"1")
    with pytest.raises(HostFault, match="locked"):
        await SqliteStore.open(tmp_path / "store.db")
    await store.close()


async def test_the_past_is_forgotten_by_age_and_only_after_writes(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await SqliteStore.open(path, keep_s=0.05)
    for _ in range(3):
        record = await store.create("k/x", b"1")
        await store.update("k/x", b"2", revision=record.revision)
        await store.delete("k/x")
    await asyncio.sleep(0.4)
    assert store._history.feed.oldest >= 8
    before = path.with_name("store.db-wal").stat().st_mtime_ns
    await asyncio.sleep(0.3)
    assert path.with_name("store.db-wal").stat().st_mtime_ns == before
    await store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM log").fetchone()[0] <= 1
    connection.close()
