"""`docker cp`, archives and `diff`: the table of its rules, through links, into stopped containers, read-only places."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, running

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]

SETUP = (
    "mkdir -p /d/sub /e; echo hi >/d/a.txt; echo x >/d/sub/g; ln -s /d /ld; ln -s a.txt /d/lf; ln -s /no /broken; "
    "ln -s /../../../etc /up; ln -s loop1 /loop2; ln -s loop2 /loop1; rm /bin/ls; touch /ready; exec sleep 1000"
)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


@pytest.fixture(scope="module")
def box(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("readonly")
    options = ("--network", "none", "-v", f"{folder}:/ro:ro", "-v", "/vol")
    with daemon.container(*options, IMAGE, "sh", "-c", SETUP) as name:
        daemon.docker("exec", name, "sh", "-c", "while test ! -e /ready; do sleep 0.05; done")
        yield name


def tar(*members: tuple[str, bytes | None]) -> bytes:
    """A file for bytes, a folder for None."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.uid, info.gid = 5, 6
            if data is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return written.getvalue()


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/d", ["d", "d/a.txt", "d/lf", "d/sub", "d/sub/g"]),
        ("/d/", ["d", "d/a.txt", "d/lf", "d/sub", "d/sub/g"]),
        ("/d/.", [".", "./a.txt", "./lf", "./sub", "./sub/g"]),
        ("/d/a.txt", ["a.txt"]),
        ("/ld", ["ld"]),
        ("/ld/", ["ld", "ld/a.txt", "ld/lf", "ld/sub", "ld/sub/g"]),
        ("/ld/.", [".", "./a.txt", "./lf", "./sub", "./sub/g"]),
        ("d/sub/../a.txt", ["a.txt"]),
    ],
)
def test_names_in_an_archive(daemon: Daemon, box: str, path: str, names: list[str]) -> None:
    answer = daemon.api("GET", f"/containers/{box}/archive?path={path}")
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as archive:
        assert archive.getnames() == names


def test_where_a_path_leads(daemon: Daemon, box: str) -> None:
    def stat(path: str) -> Any:
        head = daemon.api("HEAD", f"/containers/{box}/archive?path={path}").headers["X-Docker-Container-Path-Stat"]
        return json.loads(base64.b64decode(head))

    assert stat("/ld")["linkTarget"] == "/d" and stat("/ld")["mode"] & 1 << 27
    assert stat("/d/lf")["linkTarget"] == "/d/a.txt"
    assert stat("/up")["linkTarget"] == "/etc"
    assert stat("/d")["mode"] == 1 << 31 | 0o755
    assert {"name": "a.txt", "size": 3, "mode": 0o644, "linkTarget": ""}.items() <= stat("/d/a.txt").items()


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("GET", "/no", 404, "Could not find the file /no in container "),
        ("GET", "/d/a.txt/", 404, "Could not find the file /d/a.txt/ in container "),
        ("GET", "/loop1/", 400, "too many levels of symbolic links in /loop1/"),
        ("PUT", "/loop1", 400, "too many levels of symbolic links in /loop1"),
        ("PUT", "/d/a.txt", 400, "extraction point is not a directory"),
        ("PUT", "/broken", 404, "Could not find the file /broken in container "),
        ("PUT", "/ro", 403, "mounted volume is marked read-only"),
        ("PUT", "/d&noOverwriteDirNonDir=1", 400, "cannot overwrite directory 'sub' with non-directory"),
    ],
)
def test_refusals(daemon: Daemon, box: str, method: str, path: str, status: int, sentence: str) -> None:
    body = tar(("sub", b"x")) if method == "PUT" else None
    headers = {"Content-Type": "application/x-tar"}
    answer = daemon.api(method, f"/containers/{box}/archive?path={path}", body, headers=headers)
    assert answer.status == status and answer.message.startswith(sentence)


def test_the_owner_of_what_is_put(daemon: Daemon) -> None:
    headers = {"Content-Type": "application/x-tar"}
    with daemon.container("--network", "none", "--user", "7:8", IMAGE, "sleep", "100") as name:
        daemon.api("PUT", f"/containers/{name}/archive?path=/tmp", tar(("one", b"1")), headers=headers)
        daemon.api("PUT", f"/containers/{name}/archive?path=/tmp&copyUIDGID=1", tar(("two", b"2")), headers=headers)
        owners = daemon.text("exec", name, "stat", "-c", "%u:%g", "/tmp/one", "/tmp/two").split()
        assert owners == ["5:6", "7:8"]


def test_copying_by_the_table_of_docker_cp(daemon: Daemon, box: str, tmp_path: Path) -> None:
    def copy(source: str, target: str, *options: str) -> None:
        daemon.docker("cp", "-q", *options, source, target)

    copy(f"{box}:/d/.", str(tmp_path / "fresh"))
    assert sorted(each.name for each in (tmp_path / "fresh").iterdir()) == ["a.txt", "lf", "sub"]
    (tmp_path / "there").mkdir()
    copy(f"{box}:/d/.", str(tmp_path / "there"))
    assert (tmp_path / "there" / "a.txt").read_text() == "hi\n"
    copy(f"{box}:/d", str(tmp_path / "there"))
    assert (tmp_path / "there" / "d" / "a.txt").read_text() == "hi\n"
    copy(f"{box}:/d/a.txt", str(tmp_path / "renamed"))
    assert (tmp_path / "renamed").read_text() == "hi\n"
    copy(f"{box}:/d/lf", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    copy(f"{box}:/d/lf", str(tmp_path / "followed"), "-L")
    assert (tmp_path / "followed").read_text() == "hi\n" and not (tmp_path / "followed").is_symlink()
    refused = daemon.docker("cp", f"{box}:/d", str(tmp_path / "renamed"), check=1)
    assert b"cannot copy directory" in refused.stderr
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "f").write_text("f")
    copy(f"{tmp_path}/in/.", f"{box}:/e")
    copy(f"{tmp_path}/in", f"{box}:/e/new")
    copy(f"{tmp_path}/in/f", f"{box}:/ld/through")
    found = daemon.text("exec", box, "sh", "-c", "cat /e/f /e/new/f /d/through")
    assert found == "fff"


def test_into_a_stopped_container_and_diff(daemon: Daemon, tmp_path: Path) -> None:
    name = daemon.name()
    daemon.docker("create", "--name", name, "--network", "none", "-v", "/vol", IMAGE, "cat", "/tmp/f", "/vol/f")
    (tmp_path / "f").write_text("f")
    for place in ("/tmp", "/vol"):
        daemon.docker("cp", "-q", f"{tmp_path}/f", f"{name}:{place}/f")
    assert daemon.text("start", "-a", name) == "ff"
    assert daemon.text("diff", name).splitlines() == ["C /tmp", "A /tmp/f", "A /vol"]
    daemon.docker("rm", "-v", name)


def test_diff_tells_of_added_changed_and_deleted(daemon: Daemon, box: str) -> None:
    lines = daemon.text("diff", box).splitlines()
    assert {"C /bin", "D /bin/ls", "A /d", "A /d/sub/g", "A /ld"} <= set(lines)
    assert not [
        line for line in lines if line.endswith(("/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/.dockerenv"))
    ]
