"""Health checks, by the docker CLI."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, running, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


def health(daemon: Daemon, name: str) -> Any:
    return json.loads(daemon.text("inspect", "--format", "{{json .State.Health}}", name))


def becomes(daemon: Daemon, name: str, status: str) -> Any:
    until(lambda: health(daemon, name)["Status"] == status, what=f"{name} {status}")
    return health(daemon, name)


def test_healthy_then_not_then_healthy_again(daemon: Daemon) -> None:
    options = (
        "--health-cmd",
        "cat /here; echo words; test -e /ok",
        "--health-interval",
        "0.1s",
        "--health-retries",
        "2",
    )
    begin = time.time_ns()
    with daemon.container("--network", "none", *options, IMAGE, "sleep", "100") as name:
        assert health(daemon, name)["Status"] == "starting"
        assert "(health: starting)" in daemon.text("ps", "--filter", f"name={name}", "--format", "{{.Status}}")
        found = becomes(daemon, name, "unhealthy")
        assert found["FailingStreak"] >= 2
        last = found["Log"][-1]
        assert (last["ExitCode"], set(last)) == (1, {"Start", "End", "ExitCode", "Output"})
        assert "words\n" in last["Output"] and "No such file" in last["Output"]  # both channels
        daemon.docker("exec", name, "touch", "/ok")
        found = becomes(daemon, name, "healthy")
        assert found["FailingStreak"] == 0 and len(found["Log"]) <= 5
        row = daemon.text("ps", "--filter", "health=healthy", "--format", "{{.Names}} {{.Status}}")
        assert row.startswith(name) and row.endswith("(healthy)")
        assert daemon.text("ps", "-q", "--filter", "health=unhealthy") == ""
        daemon.docker("pause", name)
        assert health(daemon, name)["Status"] == "unhealthy"  # nobody checks a paused one
        daemon.docker("unpause", name)
        becomes(daemon, name, "healthy")
    log = daemon.text(
        "events", "--since", f"{begin / 1e9:.9f}", "--until", f"{time.time():.9f}",
        "--filter", f"container={name}", "--format", "{{.Action}}",
    )  # fmt: skip
    lines = log.splitlines()
    said = [line for line in lines if line.startswith("health_status")]
    assert said[:2] == ["health_status: unhealthy", "health_status: healthy"]
    command = "/bin/sh -c cat /here; echo words; test -e /ok"
    first = lines.index(f"exec_create: {command}")
    assert lines[first + 1 : first + 3] == [f"exec_start: {command}", "exec_die"]


def test_a_check_that_takes_too_long_or_cannot_run(daemon: Daemon) -> None:
    options = ("--health-interval", "0.1s", "--health-timeout", "0.3s", "--health-retries", "1")
    with daemon.container(
        "--network", "none", *options, "--health-cmd", "echo begun; exec sleep 77", IMAGE, "sleep", "100"
    ) as name:
        last = becomes(daemon, name, "unhealthy")["Log"][-1]
        assert (last["ExitCode"], last["Output"]) == (-1, "Health check exceeded timeout (300ms): begun\n")
    body = {
        "Image": IMAGE, "Cmd": ["sleep", "100"], "HostConfig": {"NetworkMode": "none"},
        "Healthcheck": {"Test": ["CMD", "/no/such"], "Interval": 100_000_000, "Retries": 1},
    }  # fmt: skip
    id = daemon.api("POST", "/containers/create", body).json["Id"]
    daemon.docker("start", id)
    last = becomes(daemon, id, "unhealthy")["Log"][-1]
    assert last["ExitCode"] == -1 and "/no/such" in last["Output"]
    daemon.docker("rm", "-f", id)


def test_the_images_check_and_no_check(daemon: Daemon) -> None:
    with daemon.container("--network", "none", IMAGE, "sleep", "100") as name:
        assert health(daemon, name) is None
        daemon.docker("commit", "--change", 'HEALTHCHECK CMD ["true"]', name, "checked")
    with daemon.container("--network", "none", "--health-interval", "100ms", "checked") as name:
        becomes(daemon, name, "healthy")
        daemon.docker("stop", "-t", "0", name)
        assert health(daemon, name)["Status"] == "unhealthy"
        daemon.docker("start", name)
        assert health(daemon, name)["Status"] == "starting"
    with daemon.container("--network", "none", "--no-healthcheck", "checked") as name:
        assert health(daemon, name) is None
        assert daemon.text("inspect", "--format", "{{json .Config.Healthcheck.Test}}", name) == '["NONE"]'
    with daemon.container("--network", "none", "--health-retries", "9", "--health-interval", "9s", "checked") as name:
        found = json.loads(daemon.text("inspect", "--format", "{{json .Config.Healthcheck}}", name))
        assert found == {"Test": ["CMD", "true"], "Interval": 9_000_000_000, "Retries": 9}
    daemon.docker("rmi", "checked")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"Interval": 1}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"Retries": -1}, "Retries in Healthcheck cannot be negative"),
    ],
)
def test_refusals(daemon: Daemon, words: dict[str, int], sentence: str) -> None:
    answer = daemon.api(
        "POST", "/containers/create", {"Image": IMAGE, "Healthcheck": {"Test": ["CMD", "true"], **words}}
    )
    assert (answer.status, answer.message) == (400, sentence)


def test_checks_go_on_after_the_daemon_was_killed() -> None:
    daemon = Daemon()
    daemon.start()
    try:
        options = ("--health-cmd", "test ! -e /bad", "--health-interval", "0.1s", "--health-retries", "1")
        with daemon.container("--network", "none", *options, IMAGE, "sleep", "100") as name:
            becomes(daemon, name, "healthy")
            daemon.restart_killed()
            assert health(daemon, name)["Status"] == "healthy"
            daemon.docker("exec", name, "touch", "/bad")
            becomes(daemon, name, "unhealthy")
    finally:
        daemon.stop()
