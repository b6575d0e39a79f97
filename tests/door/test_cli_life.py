"""Insula's life by its real command: up, status, down, and all that may go wrong on the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
import yaml

from door.cli_support import Home
from insula.cli import daemon

pytestmark = pytest.mark.root


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home()
    try:
        yield made
    finally:
        made.destroy()


def pid(home: Home) -> int:
    found = daemon.serving(home.paths)
    assert found is not None
    return found.pid


def test_a_life(home: Home) -> None:
    said = home.ok("up", "--detach")
    assert f"Docker at unix://{home.folder}/run/docker.sock, Kubernetes at https://127.0.0.1:" in said
    status = home.json("status")
    assert status["workloads"] == []
    assert status["daemon"]["ready"] is True
    assert status["daemon"]["docker"] == str(home.paths.docker_socket)
    assert f"pid {pid(home)}" in home.ok("status")
    assert "already runs" in home.ok("up", "--detach")
    assert "already runs" in home.fails("up")
    config = yaml.safe_load(home.ok("kubeconfig"))
    assert config["clusters"][0]["cluster"]["server"] == status["daemon"]["api"]
    assert home.json("version")["daemon"]["pid"] == pid(home)
    assert "ready after" in home.ok("logs", "-n", "50")
    assert home.json("image", "list") == []
    assert home.ok("down") == "Insula is stopped; workloads go on.\n"
    assert "does not run here" in home.fails("status")


def test_the_port_stays_the_same_and_gives_way(home: Home) -> None:
    home.ok("up", "-d")
    api = home.json("version")["daemon"]["api"]
    os.kill(pid(home), signal.SIGKILL)
    while daemon.serving(home.paths) is not None:
        time.sleep(0.02)
    assert "does not run here" in home.fails("status")  # with both sockets left behind
    home.ok("up", "-d")
    assert home.json("version")["daemon"]["api"] == api
    home.ok("down")
    with socket.create_server(("127.0.0.1", int(api.rpartition(":")[2]))):
        home.ok("up", "-d")
        assert home.json("version")["daemon"]["api"] != api


def test_two_that_start_at_once(home: Home) -> None:
    both = [home.spawn("up", "--detach") for _ in range(2)]
    asking = home.spawn("status")
    said = [process.communicate(timeout=90) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    asking.communicate(timeout=90)
    assert home.json("status")["daemon"]["pid"] == pid(home)


@pytest.mark.parametrize("patience_s", [0.15, 0.5, 1.0])
def test_an_end_in_the_middle_of_a_start(home: Home, patience_s: float) -> None:
    starting = home.spawn("up", "--detach")
    time.sleep(patience_s)
    home.ok("down")
    _, said = starting.communicate(timeout=90)
    if starting.returncode == 0:
        home.ok("down")  # it was quicker than we
    else:
        assert "Insula did not start: " in said or "does not run" in said
    assert daemon.serving(home.paths) is None
    assert [line for line in home.traces().get("processes", []) if "insula.cli" in line] == []


def test_the_foreground(home: Home) -> None:
    running = home.spawn("up")
    try:
        assert running.stdout is not None
        assert "Insula is ready" in running.stdout.readline()
        assert home.json("status")["daemon"]["pid"] == running.pid
    finally:
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 0, err
    assert out == "Insula is stopped; workloads go on.\n"


def test_faults_of_a_start_are_sentences(home: Home) -> None:
    home.paths.config.write_text("api_port: many\n")
    assert "is not a valid settings file" in home.fails("up", "-d")
    home.paths.config.write_text("colour: red\n")
    assert "colour" in home.fails("up", "-d")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        home.paths.config.write_text(f"api_port: {port}\n")
        said = home.fails("up", "-d")
        assert f"cannot listen on 127.0.0.1:{port}" in said
        assert (
            f"(pid {os.getpid()}) does already (end that program, or set another api_port in {home.paths.config})"
            in said
        )
    home.paths.config.unlink()
    home.paths.docker_socket.write_text("x")
    assert "is there already and is no socket" in home.fails("up", "-d")
    home.paths.docker_socket.unlink()
    home.paths.agent_socket.unlink(missing_ok=True)
    home.paths.agent_socket.mkdir()  # a fault late in the start, after the doors were opened
    assert "Is a directory" in home.fails("up", "-d")
    home.paths.agent_socket.rmdir()
    assert daemon.serving(home.paths) is None
    assert [line for line in home.traces().get("processes", []) if "insula.cli" in line] == []
    home.ok("up", "-d")


def test_a_store_that_is_none(home: Home) -> None:
    home.paths.data.mkdir(parents=True)
    home.paths.state.write_bytes(os.urandom(20_000))
    assert "cannot be opened" in home.fails("up", "-d")
    home.paths.state.unlink()
    home.ok("up", "-d")


def test_somebody_who_is_not_root(home: Home) -> None:
    home.folder.chmod(0o755)
    home.ok("up", "-d")

    def as_nobody(*words: str) -> tuple[int, str]:
        nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        done = subprocess.run(
            [*nobody, *home.argv(*words)], env=home.env, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    if as_nobody("version")[0] != 0:
        pytest.skip("the interpreter is out of reach for others than root")
    for words in (("status",), ("image", "list"), ("vm", "list"), ("down",), ("kubeconfig",), ("install",)):
        code, said = as_nobody(*words)
        assert code == 1
        assert "Traceback" not in said
        assert "sudo" in said, words
    code, said = as_nobody("doctor")
    assert code == 1
    assert "only root can try it" in said


def test_the_doctor(home: Home) -> None:
    done = home.run("doctor", "-o", "json")
    found = {(line["area"], line["name"]): line for line in json.loads(done.stdout)}
    assert done.returncode == (1 if any(line["state"] == "missing" for line in found.values()) else 0)
    assert found["host", "Insula"]["found"] == "does not run"
    assert found["kernel", "overlayfs"]["state"] == "ok"
    assert ("level", "3 oci") in found
    assert home.traces() == {}
    home.ok("up", "-d")
    assert f"runs (pid {pid(home)}" in home.run("doctor").stdout
