"""Many containers, one after another: what Insula holds afterwards is what it held before. And a daemon that is restarted while
containers talk and end: no line and no exit code is lost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fault.fault_support import IMAGE, Island, running

pytestmark = pytest.mark.root

# `INSULA_CHURN=1000 pytest tests/fault/test_churn.py` for the long run.
ROUNDS = int(os.environ.get("INSULA_CHURN", "60"))
WARM = 24
GROWTH_MIB = 12  # of the daemon's resident memory: its allocator's slack, not something for each container


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    yield from running()


def run_one(island: Island, number: int) -> None:
    """A container's whole life, with all that leaves traces: a network, a port, a volume, a log, an exec."""
    name = island.name()
    body: dict[str, Any] = {
        "Image": IMAGE,
        "Cmd": ["sh", "-c", f"echo {number}; sleep 60"],
        "Volumes": {"/anonymous": {}},
        "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {
            "NetworkMode": "churn",
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
            "Memory": 64 << 20,
        },
    }
    assert (made := island.docker_api("POST", f"/containers/create?name={name}", body)).status == 201, made
    assert (started := island.docker_api("POST", f"/containers/{name}/start")).status == 204, started
    if number % 10 == 0:
        asked = island.docker_api("POST", f"/containers/{name}/exec", {"Cmd": ["true"], "AttachStdout": True}).json
        assert island.docker_api("POST", f"/exec/{asked['Id']}/start", {}).status == 200
    removed = island.docker_api("DELETE", f"/containers/{name}?force=1&v=1")
    assert removed.status == 204, removed


def held(island: Island) -> dict[str, Any]:
    """All that could pile up, but for memory."""
    listed = ["nft", "list", "table", "inet", island.paths.table.split()[-1]]
    table = subprocess.run(listed, capture_output=True, text=True, timeout=20, check=True).stdout
    traces = island.traces()
    data, run = island.paths.data, island.folder / "run"
    folders = (*data.glob("engine/instances/*"), *data.glob("rootfs/*"), *data.glob("volumes/*"), *run.glob("*/*"))
    return {
        "descriptors": island.descriptors(),
        "children": island.children(),
        "rules": len(table.splitlines()),
        "groups": sum(1 for group in island.groups() for _ in group.rglob("cgroup.procs")),
        "folders": sorted(str(path.relative_to(island.folder)) for path in folders if "netns" not in str(path)),
        "temporary": island.temporary(),
        **{what: len(traces.get(what, [])) for what in ("mounts", "interfaces", "processes")},
    }


def churn(island: Island, rounds: int) -> None:
    with ThreadPoolExecutor(4) as hands:
        list(hands.map(lambda number: run_one(island, number), range(rounds)))


def test_nothing_piles_up(island: Island) -> None:
    island.docker("network", "create", "churn")
    churn(island, WARM)
    before, memory = held(island), island.resident_mib()
    churn(island, ROUNDS)

    settled(island, before)
    assert island.resident_mib() - memory <= GROWTH_MIB


def settled(island: Island, before: dict[str, Any]) -> None:
    """Until it holds what it held. Two descriptors come and go with what it does in the background."""
    deadline = time.monotonic() + 20
    while (now := held(island)) != before:
        if (
            now | {"descriptors": 0} == before | {"descriptors": 0}
            and abs(now["descriptors"] - before["descriptors"]) <= 2
        ):
            break
        assert time.monotonic() < deadline, {
            what: (before[what], now[what]) for what in now if now[what] != before[what]
        }
        time.sleep(0.1)


def test_a_restart_under_load_loses_no_line_and_no_exit_code(island: Island) -> None:
    lines, codes = 400, {f"talker{number}": number + 10 for number in range(6)}
    for name, code in codes.items():
        script = f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.01; done; exit {code}"
        island.docker("run", "-d", "--name", name, "--network", "none", IMAGE, "sh", "-c", script)
    for stop in (island.kill, island.down, island.kill):
        time.sleep(0.5)
        stop()
        time.sleep(0.5)
        island.up()
    for name, code in codes.items():
        assert island.text("wait", name) == str(code)
        assert island.text("logs", name).splitlines() == [f"line {number + 1}" for number in range(lines)]
    island.docker("rm", *codes)
