"""The ledger: what was acknowledged is there after the process is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from insula.engine.contract import SandboxConfig
from insula.engine.ledger import Ledger
from insula.engine.records import Entry, SandboxEntry
from insula.errors import HostFault, Unavailable
from insula.model.instance import InstanceConfig


def entry(id: str, name: str = "") -> Entry:
    return Entry(id=id, config=InstanceConfig(name=name or id), created="now")


async def test_entries_come_back(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "e" / "ledger.db")
    await ledger.put(entry("a"))
    await ledger.put(entry("a", "renamed"))
    await ledger.put(entry("b"))
    await ledger.put(SandboxEntry(config=SandboxConfig(id="s"), created="now"))
    await ledger.delete("instances", "b")
    await ledger.delete("instances", "unknown")
    await ledger.close()
    ledger = await Ledger.open(tmp_path / "e" / "ledger.db")
    assert [each.name for each in await ledger.instances()] == ["renamed"]
    assert [each.id for each in await ledger.sandboxes()] == ["s"]
    await ledger.close()
    await ledger.close()


async def test_writers_share_a_transaction_and_a_bad_write_spoils_no_other(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "ledger.db")
    await ledger.put(entry("first", "taken"))
    writes = [ledger.put(entry(str(number))) for number in range(200)]
    bad = ledger.put(entry("second", "taken"))
    results = await asyncio.gather(*writes, bad, return_exceptions=True)
    assert results[:-1] == [None] * 200
    assert isinstance(results[-1], HostFault)
    assert len(await ledger.instances()) == 201
    await ledger.close()


async def test_a_cancelled_writer_leaves_the_others_alone(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "ledger.db")
    tasks = [asyncio.create_task(ledger.put(entry(str(number)))) for number in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert {each.id for each in await ledger.instances()} == {"0", "1", "2"}
    await ledger.close()


async def test_one_owner_at_a_time(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "ledger.db")
    with pytest.raises(Unavailable, match="another Insula"):
        await Ledger.open(tmp_path / "ledger.db")
    await ledger.close()
    await (await Ledger.open(tmp_path / "ledger.db")).close()


async def test_a_ledger_that_cannot_be_read_is_not_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database, and long enough to be looked at" * 30)
    with pytest.raises(HostFault, match="cannot be read"):
        await Ledger.open(path)
    assert path.read_bytes().startswith(b"this is no database")


_CHILD = """
import asyncio, sys
from pathlib import Path
from insula.engine.ledger import Ledger
from insula.engine.records import Entry
from insula.model.instance import InstanceConfig
async def main():
    ledger = await Ledger.open(Path(sys.argv[1]))
    number = 0
    while True:
        await ledger.put(Entry(id=str(number), config=InstanceConfig(name=str(number)), created="now"))
        print(number, flush=True)
        number += 1
asyncio.run(main())
"""


@pytest.mark.may_block
async def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "src"}
    )
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(100)]
    child.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().splitlines()]
    child.stdout.close()
    child.wait()
    ledger = await Ledger.open(path)
    known = {int(each.id) for each in await ledger.instances()}
    await ledger.close()
    assert set(acknowledged) <= known
