"""The disk below the data folder is full: every door says so in a sentence, what runs goes on, what was acknowledged stays; when
there is room again everything works as before."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault.fault_support import IMAGE, Answer, Island, until

pytestmark = [pytest.mark.root, pytest.mark.may_block]

ROOM_MIB = 160
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


class Ballast:
    """Fills a file system to the last byte, and frees it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"

    def fill(self) -> None:
        with self._path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))
        with self._path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))

    def free(self) -> None:
        self._path.unlink(missing_ok=True)


@pytest.fixture
def island() -> Iterator[Island]:
    folder = Path(tempfile.mkdtemp(prefix="insula-fd-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM_MIB}m", "insula-test", str(folder)], check=True)
    island = Island(folder / "root")
    island.paths.run.mkdir(parents=True)  # another file system, as /run is
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "insula-test", str(island.paths.run)], check=True)
    try:
        island.up()
        island.add_busybox()
        yield island
    finally:
        (folder / "ballast").unlink(missing_ok=True)
        try:
            island.insula("down", "--all")
            subprocess.run(["umount", "-l", str(island.paths.run)], check=True)
            island.destroy()
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
            folder.rmdir()


def told(answer: Answer, kube: bool = False) -> bool:
    """Whether it was refused, and then with a sentence about room."""
    if answer.status < 400:
        return False
    message = answer.kube_message if kube else answer.docker_message
    assert any(words in message.lower() for words in ("no space left", "full", "disk i/o")), answer
    assert answer.status in (500, 503, 507), answer
    return True


def test_a_full_disk(island: Island) -> None:
    ballast = Ballast(island.folder.parent)
    loop = "trap 'exit 6' TERM; while :; do echo talks; sleep 0.05; done"
    island.docker("run", "-d", "--name", "before", "-v", "kept:/v", IMAGE, "sh", "-c", loop)
    island.docker("run", "-d", "--name", "ends", IMAGE, "sh", "-c", "sleep 2; echo words; exit 4")
    archive = island.docker("save", IMAGE).stdout
    island.kube_api("POST", CONFIG_MAPS, {"metadata": {"name": "before"}})
    ballast.fill()
    pid = island.pid
    answer = island.docker_api("POST", "/images/load?quiet=1", archive, Content_Type="application/x-tar")
    assert answer.status == 200 and b"no space left" in answer.body.lower(), answer
    refused = []
    kept: dict[str, Any] = {"containers": [], "volumes": [], "networks": [], "maps": []}
    for number in range(30):
        name = f"n{number}"
        for what, path, body in (
            (
                "containers",
                f"/containers/create?name={name}",
                {"Image": IMAGE, "Cmd": ["sleep", "60"], "Labels": {"a": "x" * 4000}},
            ),
            ("volumes", "/volumes/create", {"Name": name, "Labels": {"a": "x" * 4000}}),
            ("networks", "/networks/create", {"Name": name, "Labels": {"a": "x" * 4000}}),
        ):
            answer = island.docker_api("POST", path, body)
            refused.append(told(answer))
            if answer.status < 300:
                kept[what].append(name)
        answer = island.kube_api("POST", CONFIG_MAPS, {"metadata": {"name": name}, "data": {"a": "x" * 40_000}})
        refused.append(told(answer, kube=True))
        if answer.status < 300:
            kept["maps"].append(name)
        ballast.fill()
    assert sum(refused) > 60
    for name in kept["containers"]:
        told(island.docker_api("POST", f"/containers/{name}/start"))
    assert island.inspect("before")["State"]["Running"]
    assert island.docker_api("GET", "/containers/json").status == 200
    assert island.kube_api("GET", CONFIG_MAPS).status == 200
    until(lambda: island.inspect("ends")["State"]["Status"] == "exited")
    assert island.inspect("ends")["State"]["ExitCode"] == 4
    assert island.pid == pid

    island.kill()  # and start on a full disk: it comes up, or says why not
    said = island.insula("up", "--detach", check=False)
    if not island.alive:
        assert "Traceback" not in said and ("No space left" in said or "full" in said), said
    ballast.free()
    if not island.alive:
        island.up()
    check_kept(island, kept)
    assert island.inspect("ends")["State"]["ExitCode"] == 4
    island.docker("run", "--rm", IMAGE, "true")
    island.docker("load", input=archive)
    assert island.kube_api("POST", CONFIG_MAPS, {"metadata": {"name": "after"}}).status == 201
    began = time.monotonic()
    island.docker("stop", "before")
    assert time.monotonic() - began < 8
    assert island.inspect("before")["State"]["ExitCode"] == 6
    island.kill()
    island.up()
    check_kept(island, kept)
    unforeseen = [text for text in island.tracebacks() if "No space left" not in text and "disk is full" not in text]
    assert unforeseen == []


def check_kept(island: Island, kept: dict[str, Any]) -> None:
    """All that was acknowledged on the full disk, and before."""
    names = {each["Names"][0].lstrip("/") for each in island.docker_api("GET", "/containers/json?all=1").json}
    assert {"before", "ends", *kept["containers"]} <= names
    volumes = {each["Name"] for each in island.docker_api("GET", "/volumes").json["Volumes"]}
    assert {"kept", *kept["volumes"]} <= volumes
    networks = {each["Name"] for each in island.docker_api("GET", "/networks").json}
    assert set(kept["networks"]) <= networks
    maps = {each["metadata"]["name"] for each in island.kube_api("GET", CONFIG_MAPS).json["items"]}
    assert {"before", *kept["maps"]} <= maps
