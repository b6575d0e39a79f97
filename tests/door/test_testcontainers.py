"""testcontainers, unmodified: containers and networks as the test suites of other projects start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from door.docker_support import DOCKER, running

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]

PROGRAM = Path(__file__).with_name("testcontainers_program.py")


def test_a_suite_of_containers_and_networks() -> None:
    for daemon in running():
        done = subprocess.run(
            [sys.executable, str(PROGRAM)],
            env={**daemon.environment, "TESTCONTAINERS_RYUK_DISABLED": "true"},  # its reaper would have to be pulled
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "all of it holds\n"), done.stderr[-3000:]
        assert not daemon.text("ps", "-aq") and "bridge" in daemon.text("network", "ls")
