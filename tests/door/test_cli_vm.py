"""`insula vm` with the demo machine: made, entered, paused, stopped, deleted; and `down --all` with one running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator

import pytest

from door.cli_support import Home, Terminal
from host.vm_support import demo_machine

pytestmark = [pytest.mark.root, pytest.mark.vm]


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    cache = demo_machine().kernel.parent.parent
    made = Home()
    try:
        made.paths.data.mkdir(parents=True)
        (made.paths.data / "cache").symlink_to(cache)
        made.ok("up", "--detach")
        made.ok("image", "demo")
        yield made
    finally:
        made.destroy()


def test_a_machines_life(home: Home) -> None:
    assert "life is made and runs." in home.ok("vm", "create", "life", "--memory", "192Mi", "--wait")
    (row,) = home.json("vm", "list")
    assert (row["name"], row["status"], row["memory"], row["cpus"]) == ("life", "Running", "192Mi", 1)
    assert "already exists" in home.fails("vm", "create", "life")
    assert row["address"] in home.ok("vm", "show", "life")
    assert home.json("vm", "show", "life")["instance"]["status"]["phase"] == "Running"
    (card,) = home.json("vm", "show", "life")["instance"]["status"]["interfaces"]
    assert [found["kind"] for found in home.json("status")["workloads"]] == ["machine"]

    home.ok("vm", "pause", "life")
    assert home.json("vm", "list")[0]["status"] == "Paused"
    assert "already paused" in home.fails("vm", "pause", "life")
    home.ok("vm", "unpause", "life")
    home.ok("vm", "stop", "life", "--force", "--wait")
    assert "is stopped (insula vm start life)" in home.fails("vm", "console", "life")
    assert "not running" in home.fails("vm", "stop", "life")
    home.ok("vm", "start", "life", "--wait")
    (again,) = home.json("vm", "show", "life")["instance"]["status"]["interfaces"]
    assert (again["mac"], again["ipAddress"]) == (card["mac"], card["ipAddress"])
    home.ok("vm", "delete", "life", "--force", "--wait")
    assert home.json("vm", "list") == []
    assert "does not exist" in home.fails("vm", "console", "life")


def test_the_console_on_a_terminal(home: Home) -> None:
    home.ok("vm", "create", "seat", "--memory", "192Mi", "--no-start")
    home.ok("vm", "start", "seat")
    terminal = Terminal(home, "vm", "console", "seat")  # waits for the machine
    try:
        terminal.read_until(b"leave with Ctrl-]")
        terminal.read_until(b"login: ")
        assert not termios.tcgetattr(terminal.fd)[3] & termios.ICANON
        terminal.write(b"root\n")
        terminal.read_until(b"# ")
        terminal.write(b"echo 4$((1+1)); sleep 60\n")
        terminal.read_until(b"42\r\n")
        terminal.write(b"\x03")  # for the guest, not for us
        terminal.nudge(b"\x03", b"# ")
        terminal.write(b"\x1d")
        terminal.read_until(b"left seat")
        assert termios.tcgetattr(terminal.fd)[3] & termios.ICANON
        assert terminal.wait() == 0
    finally:
        terminal.close()
    ended = Terminal(home, "vm", "console", "seat")
    try:
        ended.read_until(b"leave with Ctrl-]")
        ended.write(b"\n")
        ended.read_until(b"# ")
        os.kill(ended.pid, signal.SIGTERM)
        assert ended.wait() == 128 + signal.SIGTERM
        assert termios.tcgetattr(ended.fd)[3] & termios.ICANON
    finally:
        ended.close()
    piped = home.ok("vm", "console", "seat", stdin="echo 7$((1+1))\n")
    assert "72" in piped
    watching = Terminal(home, "vm", "console", "seat")
    try:
        watching.read_until(b"leave with Ctrl-]")
        watching.write(b"\n")
        watching.read_until(b"# ")
        home.ok("vm", "stop", "seat", "--force")
        watching.read_until(b"has closed its serial line")
        assert watching.wait() == 0
    finally:
        watching.close()
        home.ok("vm", "delete", "seat", "--force", "--wait")


def test_the_screen(home: Home) -> None:
    home.ok("vm", "create", "eyes", "--memory", "192Mi")
    serving = home.spawn("vm", "vnc", "eyes", "-o", "json")
    try:
        assert serving.stdout is not None
        text = serving.stdout.readline() + serving.stdout.readline() + serving.stdout.readline()
        port = int(text.partition(":")[2].strip(" }\n"))
        for _ in range(2):  # one viewer after the other
            with socket.create_connection(("127.0.0.1", port), timeout=20) as viewer:
                assert viewer.recv(12).startswith(b"RFB 003.")
    finally:
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=20)
        home.ok("vm", "delete", "eyes", "--force")
    assert serving.returncode == 0


def test_cloud_init_from_a_secret_that_goes_with_its_machine(home: Home) -> None:
    seed = home.folder / "user-data"
    seed.write_text("#cloud-config\nhostname: sown\n" + "# x\n" * 1000)
    home.ok("vm", "create", "seeded", "--memory", "192Mi", "--cloud-init", str(seed), "--wait")
    terminal = Terminal(home, "vm", "console", "seeded")
    try:
        terminal.read_until(b"sown login: ")
        terminal.write(b"\x1d")
        terminal.wait()
    finally:
        terminal.close()
    home.ok("vm", "delete", "seeded", "--force", "--wait")


def test_an_image_that_cannot_be_had(home: Home) -> None:
    done = home.run("vm", "create", "lost", "--image", "127.0.0.1:1/none:1", "--wait")
    assert done.returncode == 1
    assert 'insula: the machine "lost" cannot start: failed to pull image' in done.stderr
    home.ok("vm", "delete", "lost")


def test_everything_ends_with_down_all() -> None:
    cache = demo_machine().kernel.parent.parent
    home = Home()
    try:
        home.paths.data.mkdir(parents=True)
        (home.paths.data / "cache").symlink_to(cache)
        home.ok("up", "-d")
        home.ok("image", "demo")
        home.ok("vm", "create", "m", "--memory", "192Mi", "--wait")
        env = {**os.environ, "DOCKER_HOST": f"unix://{home.paths.docker_socket}"}
        subprocess.run(["docker", "run", "-d", "busybox", "sleep", "1000"], env=env, check=True, capture_output=True)
        home.ok("down")
        assert set(home.traces()) >= {"processes", "links", "tables", "groups"}  # workloads go on
    finally:
        home.destroy()
