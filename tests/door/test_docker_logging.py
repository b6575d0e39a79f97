"""Log drivers and their options, by the docker CLI."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, running

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]
JOURNAL = Path("/run/systemd/journal/socket")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


def test_details_stand_before_each_line(daemon: Daemon) -> None:
    name = daemon.name()
    options = (
        "--log-opt",
        "labels=who",
        "--log-opt",
        "env=WHAT",
        "--log-opt",
        "tag={{.Name}}",
        "--label",
        "who=me",
        "-e",
        "WHAT=a b",
    )
    daemon.docker("run", "--name", name, "--network", "none", *options, IMAGE, "sh", "-c", "echo one; echo two")
    expected = f"WHAT=a+b,tag={name},who=me"
    assert daemon.text("logs", "--details", name).splitlines() == [f"{expected} one", f"{expected} two"]
    stamped = daemon.text("logs", "--details", "-t", name).splitlines()
    assert all(re.fullmatch(rf"\S+Z {re.escape(expected)} (one|two)", line) for line in stamped)
    assert daemon.text("inspect", "--format", "{{.LogPath}}", name).endswith("/log")
    daemon.docker("rm", name)


@pytest.mark.parametrize(("driver", "readable"), [("local", True), ("none", False)])
def test_drivers_without_a_file_of_their_own(daemon: Daemon, driver: str, readable: bool) -> None:
    name = daemon.name()
    daemon.docker("run", "--name", name, "--network", "none", "--log-driver", driver, IMAGE, "echo", "word")
    assert daemon.text("inspect", "--format", "{{.LogPath}}", name) == ""
    if readable:
        assert daemon.text("logs", name) == "word"
    else:
        refused = daemon.docker("logs", name, check=1)
        assert b"configured logging driver does not support reading" in refused.stderr
    daemon.docker("rm", name)


@pytest.mark.parametrize(
    ("config", "status", "sentence"),
    [
        ({"Type": "syslog"}, 501, "the log driver 'syslog' is not supported here"),
        ({"Config": {"tag": "{{.Foo}}"}}, 400, "failed to initialize logging driver: template: log-tag"),
        ({"Config": {"compress": "true"}}, 400, "failed to initialize logging driver: compress cannot be true"),
        ({"Config": {"max-size": "zz"}}, 400, "failed to initialize logging driver: invalid size: 'zz'"),
    ],
)
def test_refusals(daemon: Daemon, config: dict[str, object], status: int, sentence: str) -> None:
    answer = daemon.api("POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"LogConfig": config}})
    assert answer.status == status and answer.message.startswith(sentence)


@contextlib.contextmanager
def journal() -> Iterator[socket.socket]:
    """Who takes what the host's journal would; only where there is none."""
    top = next(parent for parent in (JOURNAL, *JOURNAL.parents) if parent.parent.exists())
    JOURNAL.parent.mkdir(parents=True, exist_ok=True)
    taker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        taker.bind(str(JOURNAL))
        taker.settimeout(10)
        yield taker
    finally:
        taker.close()
        JOURNAL.unlink(missing_ok=True)
        if top.is_dir():
            shutil.rmtree(top)


@pytest.mark.skipif(JOURNAL.exists(), reason="the host's own journal would get the lines")
def test_lines_go_to_the_journal_and_can_be_read_here(daemon: Daemon) -> None:
    refused = daemon.api(
        "POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"LogConfig": {"Type": "journald"}}}
    )
    assert (refused.status, refused.message) == (
        501,
        "failed to initialize logging driver: journald is not enabled on this host",
    )
    name = daemon.name()
    with journal() as taker:
        options = ("--log-driver", "journald", "--log-opt", "tag=mine/{{.Name}}")
        daemon.docker(
            "run", "--name", name, "--network", "none", *options, IMAGE, "sh", "-c", "echo word; echo fault >&2"
        )
        found = [taker.recv(65536).decode() for _ in range(2)]
    by_text = {
        word: next(each for each in found if f"{word}\n" in each and each.startswith("MESSAGE"))
        for word in ("word", "fault")
    }
    id = daemon.text("inspect", "--format", "{{.Id}}", name)
    for text, priority in (("word", 6), ("fault", 3)):
        fields = set(by_text[text].splitlines())
        assert {
            f"CONTAINER_ID_FULL={id}",
            f"CONTAINER_NAME={name}",
            f"CONTAINER_TAG=mine/{name}",
            f"PRIORITY={priority}",
        } <= fields
    assert daemon.text("logs", name) == "word"
    daemon.docker("rm", name)
