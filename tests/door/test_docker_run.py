"""`docker run` as people type it, by the docker CLI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, running

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


def test_run_prints_and_removes(daemon: Daemon) -> None:
    name = daemon.name()
    done = daemon.docker("run", "--rm", "--name", name, IMAGE, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    assert name not in daemon.text("ps", "-a", "--format", "{{.Names}}")
