"""kill -9 of the daemon while execs run: they go on, and the daemon after it knows them and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault.fault_support import IMAGE, Island, running, until

pytestmark = [pytest.mark.root, pytest.mark.may_block]


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    yield from running()


@pytest.fixture
def name(island: Island, tmp_path: Path) -> Iterator[str]:
    name = island.name()
    island.docker("run", "-d", "--name", name, "-v", f"{tmp_path}:/told", IMAGE, "sleep", "1000")
    yield name
    island.docker("rm", "-f", name)


def begin(island: Island, name: str, command: str, **wish: Any) -> str:
    """Start an exec that nobody is attached to. Returns its id."""
    body = {"Cmd": ["sh", "-c", command], **wish}
    id = island.docker_api("POST", f"/containers/{name}/exec", body).json["Id"]
    assert island.docker_api("POST", f"/exec/{id}/start", {"Detach": True}).status == 200
    return str(id)


def told(island: Island, id: str) -> Any:
    return island.docker_api("GET", f"/exec/{id}/json").json


def kept(island: Island) -> list[Path]:
    return list((island.paths.run / "instances").glob("*/exec/*"))


def test_one_that_goes_on_is_known_and_its_end_is_told(island: Island, name: str, tmp_path: Path) -> None:
    id = begin(
        island, name, "while ! [ -e /told/go ]; do sleep 0.02; done; exit 7", Env=["A=b"], WorkingDir="/tmp", Tty=True
    )
    before = told(island, id)
    assert before["Running"] and before["Pid"]
    island.kill()
    island.up()
    after = told(island, id)
    assert after["Running"] and after["ExitCode"] is None
    assert (after["Pid"], after["ProcessConfig"], after["ContainerID"]) == (
        before["Pid"],
        before["ProcessConfig"],
        before["ContainerID"],
    )
    assert island.docker_api("POST", f"/exec/{id}/resize?h=40&w=100").status == 200
    assert island.docker_api("POST", f"/exec/{id}/start", {"Detach": True}).status == 409
    (tmp_path / "go").touch()
    until(lambda: not told(island, id)["Running"], what="the exec has ended")
    assert told(island, id)["ExitCode"] == 7
    until(lambda: not kept(island), what="its files are gone")


def test_ends_while_nobody_looks_are_told_afterwards(island: Island, name: str, tmp_path: Path) -> None:
    wait = "while ! [ -e /told/go ]; do sleep 0.02; done"
    ids = [begin(island, name, f"{wait}; exit {number}") for number in range(3)]
    assert all(told(island, id)["Running"] for id in ids)
    island.kill()
    (tmp_path / "go").touch()
    exits = [path / "persist" / "exit" for path in kept(island)]
    until(lambda: all(path.exists() for path in exits), what="they have ended")
    island.up()
    for number, id in enumerate(ids):
        until(lambda id=id: not told(island, id)["Running"], what="its end is told")
        assert told(island, id)["ExitCode"] == number
    until(lambda: not kept(island), what="their files are gone")


def test_one_whose_start_was_cut_short_is_ended(island: Island, name: str) -> None:
    id = begin(island, name, "exec sleep 500")
    (folder,) = kept(island)
    pid = int((folder / "container.pid").read_text())
    island.kill()
    (folder / "container.pid").unlink()  # as if conmon had not come as far
    island.up()
    assert island.docker_api("GET", f"/exec/{id}/json").status == 404
    assert not kept(island)
    until(lambda: not Path(f"/proc/{pid}").exists(), what="its process is gone")


def test_a_container_that_ends_takes_its_execs_with_it(island: Island, name: str) -> None:
    id = begin(island, name, "sleep 500")
    island.kill()
    island.up()
    island.docker("kill", name)
    assert (told(island, id)["Running"], told(island, id)["ExitCode"]) == (False, 137)
    until(lambda: not kept(island), what="its files are gone")
