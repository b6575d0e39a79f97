"""`docker run` as people type it, by the docker CLI."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, Terminal, running, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


def test_prints_on_both_streams_and_removes_itself(daemon: Daemon) -> None:
    name = daemon.name()
    done = daemon.docker("run", "--rm", "--name", name, IMAGE, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    assert name not in daemon.text("ps", "-a", "--format", "{{.Names}}")


@pytest.mark.parametrize("code", [0, 1, 7, 130, 255])
def test_passes_the_exit_code_through(daemon: Daemon, code: int) -> None:
    daemon.docker("run", "--rm", "--network", "none", IMAGE, "sh", "-c", f"exit {code}", check=code)


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("nosuchprogram", 127, b'exec: "nosuchprogram": executable file not found in $PATH'),
        ("/no/such", 127, b"no such file or directory"),
        ("/etc", 126, b'exec: "/etc": '),  # "permission denied" by older runtimes, "is a directory" by newer ones
    ],
)
def test_says_when_the_command_cannot_run(daemon: Daemon, command: str, code: int, sentence: bytes) -> None:
    done = daemon.docker("run", "--rm", "--network", "none", IMAGE, command, check=code)
    assert sentence in done.stderr
    assert b"Error waiting" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--runtime", "nosuch"], b"unknown or invalid runtime name: nosuch"),
        (["--network", "nosuch"], b"network nosuch not found"),
        (["--name", "a/b"], b"Invalid container name (a/b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
        (["-w", "relative"], b"the working directory 'relative' is invalid, it needs to be an absolute path"),
        (["-v", "name:/"], b"destination can't be '/'"),
        (["-m", "1m"], b"Minimum memory limit allowed is 6MB"),
        (["--cap-add", "NOSUCH"], b'unknown capability: "CAP_NOSUCH"'),
        (["--log-driver", "nosuch"], b'error looking up logging plugin nosuch: plugin "nosuch" not found'),
        (["--gpus", "all"], b'could not select device driver "" with capabilities: [[gpu]]'),
        (["--link", "a:b"], b"could not get container for a: No such container: a"),
        (["--mount", "type=bind,src=/no/such/folder,dst=/x"], b"bind source path does not exist: /no/such/folder"),
        (["-u", "nosuchuser"], b"unable to find user nosuchuser"),
        (["--stop-signal", "NOSUCH"], b"nvalid signal: NOSUCH"),
        (["--device-cgroup-rule", "x"], b"invalid device cgroup format"),
        (["--network", "container:nosuch"], b"No such container: nosuch"),
    ],
)
def test_refuses_with_a_sentence(daemon: Daemon, arguments: list[str], sentence: bytes) -> None:
    done = daemon.docker("run", "--rm", *arguments, IMAGE, "true", check=125)
    assert sentence in done.stderr, done.stderr


def test_a_missing_image_is_pulled_or_said_to_be_missing(daemon: Daemon) -> None:
    done = daemon.docker("run", "--rm", "--pull", "never", "127.0.0.1:1/none/such", check=125)
    assert b"No such image: 127.0.0.1:1/none/such:latest" in done.stderr
    done = daemon.docker("run", "--rm", "127.0.0.1:1/none/such", check=125)
    assert b"Unable to find image '127.0.0.1:1/none/such:latest' locally" in done.stderr


def test_environment_folder_user_and_entrypoint(daemon: Daemon) -> None:
    text = daemon.text(
        *("run", "--rm", "--network", "none", "-e", "GIVEN=a b", "-e", "TAKEN", "-w", "/var/tmp", "-u", "1000:20"),
        *("--hostname", "box", "--entrypoint", "sh", IMAGE, "-c", "echo $GIVEN $TAKEN; pwd; id -u; id -g; hostname"),
        env={"TAKEN": "from here"},
    )
    assert text.splitlines() == ["a b from here", "/var/tmp", "1000", "20", "box"]


def test_an_empty_entrypoint_takes_the_images_away(daemon: Daemon) -> None:
    assert daemon.text("run", "--rm", "--network", "none", "--entrypoint", "", IMAGE, "echo", "plain") == "plain"


def test_binds_and_volumes(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host")
    volume = daemon.name()
    script = "cat /h/in; echo made > /h/out; touch /r/x || echo readonly; echo kept > /v/f; mount | grep -c ' /t '"
    text = daemon.text(
        *("run", "--rm", "--network", "none", "-v", f"{tmp_path}:/h", "-v", f"{tmp_path}:/r:ro", "-v", f"{volume}:/v"),
        *("--tmpfs", "/t:size=1m", "-v", f"{tmp_path}/new/folder:/n", IMAGE, "sh", "-c", script),
    )
    assert text == "from the hostreadonly\n1"
    assert (tmp_path / "out").read_text() == "made\n"
    assert (tmp_path / "new" / "folder").is_dir()
    mount = f"type=volume,src={volume},dst=/w,readonly"
    assert daemon.text("run", "--rm", "--network", "none", "--mount", mount, IMAGE, "cat", "/w/f") == "kept"
    daemon.docker("volume", "rm", volume)


def test_volumes_from_another_container(daemon: Daemon) -> None:
    with daemon.container(
        "--network", "none", "-v", "/shared", IMAGE, "sh", "-c", "echo x > /shared/f; sleep 60"
    ) as one:
        until(lambda: daemon.docker("exec", one, "test", "-e", "/shared/f", check=None).returncode == 0)
        assert daemon.text("run", "--rm", "--network", "none", "--volumes-from", one, IMAGE, "cat", "/shared/f") == "x"
        script = "echo y > /shared/f || echo no"
        text = daemon.text("run", "--rm", "--network", "none", "--volumes-from", f"{one}:ro", IMAGE, "sh", "-c", script)
        assert text == "no"


def test_a_published_port_is_reached_from_the_host(daemon: Daemon) -> None:
    script = "mkdir -p /www && echo hello from inside > /www/index.html && exec httpd -f -p 80 -h /www"
    with daemon.container("-p", "127.0.0.1::80", "--expose", "81", IMAGE, "sh", "-c", script) as name:
        address = daemon.text("port", name, "80/tcp")
        assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
        assert daemon.text("port", name) == f"80/tcp -> {address}"

        def fetch() -> bytes:
            try:
                with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
                    return bytes(answer.read())
            except OSError:
                return b""

        assert until(fetch) == b"hello from inside\n"
        shown = daemon.text("ps", "--filter", f"name={name}", "--format", "{{.Ports}}")
        assert shown == f"81/tcp, {address}->80/tcp"


def test_a_taken_port_is_refused(daemon: Daemon) -> None:
    with daemon.container("-p", "127.0.0.1::80", IMAGE, "sleep", "60") as name:
        port = daemon.text("port", name, "80/tcp").rpartition(":")[2]
        done = daemon.docker("run", "--rm", "-p", f"127.0.0.1:{port}:80", IMAGE, "true", check=125)
        assert f"127.0.0.1:{port}" in done.stderr.decode()


def test_limits_reach_the_kernel(daemon: Daemon) -> None:
    with daemon.container(
        *("--network", "none", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "--ulimit", "nofile=100:200"),
        *(IMAGE, "sh", "-c", "ulimit -Sn; ulimit -Hn; exec sleep 60"),
    ) as name:
        shown = daemon.text(
            "inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}", name
        )
        assert shown == f"{64 << 20} 500000000 50"
        until(lambda: daemon.text("logs", name) == "100\n200")
        pid = daemon.text("inspect", "-f", "{{.State.Pid}}", name)
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        path = next(line.split(":")[2] for line in groups.splitlines() if ":memory:" in line or line.startswith("0::/"))
        found = [
            file.read_text().strip()
            for file in (
                Path("/sys/fs/cgroup/memory" + path) / "memory.limit_in_bytes",
                Path("/sys/fs/cgroup" + path) / "memory.max",
            )
            if file.exists()
        ]
        assert found == [str(64 << 20)]
        daemon.docker("update", "--memory", "96m", "--memory-swap", "192m", name)
        assert daemon.text("inspect", "-f", "{{.HostConfig.Memory}}", name) == str(96 << 20)


def test_restarts_on_failure_as_often_as_asked(daemon: Daemon) -> None:
    name = daemon.name()
    daemon.docker("run", "-d", "--name", name, "--network", "none", "--restart", "on-failure:2", IMAGE, "false")
    shape = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}} {{.HostConfig.RestartPolicy.Name}}"
    until(lambda: daemon.text("inspect", "-f", shape, name) == "exited 1 2 on-failure", timeout_s=20)
    daemon.docker("rm", name)


def test_one_megabyte_of_binary_goes_through_unharmed(daemon: Daemon) -> None:
    data = random.Random(1).randbytes(1024 * 1024)
    done = daemon.docker("run", "--rm", "-i", "--network", "none", IMAGE, "cat", input=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    done = daemon.docker("run", "--rm", "-i", "--network", "none", IMAGE, "md5sum", input=data)
    assert done.stdout.split()[0].decode() == hashlib.md5(data).hexdigest()
    done = daemon.docker("run", "--rm", "-i", "--network", "none", IMAGE, "sh", "-c", "cat >&2", input=data)
    assert (done.stdout, len(done.stderr)) == (b"", len(data))


def test_input_that_nobody_reads_does_not_hang(daemon: Daemon) -> None:
    daemon.docker("run", "--rm", "-i", "--network", "none", IMAGE, "true", input=b"x" * (1 << 20), timeout_s=20)


def test_a_terminal(daemon: Daemon) -> None:
    script = "test -t 0 && echo terminal; echo $TERM; stty size; read line; echo got $line"
    with Terminal(
        daemon, "run", "--rm", "-it", "--network", "none", IMAGE, "sh", "-c", script, rows=40, columns=99
    ) as tty:
        tty.expect(b"terminal\r\nxterm\r\n")
        tty.expect(b"40 99\r\n")
        tty.send(b"a word\n")
        tty.expect(b"got a word\r\n")
        assert tty.ends() == 0


def test_a_resized_terminal(daemon: Daemon) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done"
    with Terminal(
        daemon, "run", "--rm", "-it", "--network", "none", IMAGE, "sh", "-c", script, rows=24, columns=80
    ) as tty:
        tty.expect(b"ready")
        # The CLI begins to watch its window some time after the start, so the first changes may be missed.
        assert any(_shown_after_resize(tty, rows) for rows in range(50, 80))
        tty.send(b"\x03")
        assert tty.ends() == 130


def _shown_after_resize(tty: Terminal, rows: int) -> bool:
    tty.resize(rows, 132)
    return tty.shows(f"{rows} 132".encode(), 0.5)


def test_detach_keys_leave_it_running(daemon: Daemon) -> None:
    name = daemon.name()
    with Terminal(daemon, "run", "-it", "--name", name, "--network", "none", IMAGE, "sh") as tty:
        tty.expect(b"# ")
        tty.send(b"echo $((40+2))\n")
        tty.expect(b"42\r\n")
        tty.send(b"\x10\x11")
        assert tty.ends() == 0
    assert daemon.text("inspect", "-f", "{{.State.Running}}", name) == "true"
    with Terminal(daemon, "attach", name) as tty:
        tty.send(b"echo $((50+5)); exit 3\n")
        tty.expect(b"55\r\n")
        assert tty.ends() == 3
    daemon.docker("rm", name)


def test_signals_go_to_the_process(daemon: Daemon) -> None:
    script = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    client = daemon.popen("run", "--rm", "--network", "none", IMAGE, "sh", "-c", script, stdout=subprocess.PIPE)
    assert client.stdout is not None
    with client:
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGTERM)
        assert client.stdout.readline() == b"told\n"
        assert client.wait(20) == 9


def test_a_client_that_dies_leaves_the_container_alone(daemon: Daemon) -> None:
    name = daemon.name()
    client = daemon.popen(
        "run", "--name", name, "--network", "none", IMAGE, "sh", "-c", "echo a; sleep 60", stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    with client:
        assert client.stdout.readline() == b"a\n"
        before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
        client.kill()
    assert daemon.text("inspect", "-f", "{{.State.Running}}", name) == "true"
    until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) < before, what="descriptors freed")
    daemon.docker("rm", "-f", name)


def test_two_clients_that_take_one_name(daemon: Daemon) -> None:
    name = daemon.name()
    clients = [
        daemon.popen("create", "--name", name, IMAGE, "true", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    results = [(client.communicate(timeout=30), client.returncode) for client in clients]
    assert sorted(code for _, code in results) == [0, 1, 1, 1]
    for (_, stderr), code in results:
        if code:
            assert f'Conflict. The container name "/{name}" is already in use by container'.encode() in stderr
    daemon.docker("rm", name)


def test_parallel_starts(daemon: Daemon) -> None:
    clients = [
        daemon.popen("run", "--rm", "--network", "none", IMAGE, "echo", str(number), stdout=subprocess.PIPE)
        for number in range(8)
    ]
    assert [client.communicate(timeout=60)[0] for client in clients] == [f"{number}\n".encode() for number in range(8)]


def test_stdin_kept_open_for_a_later_attach(daemon: Daemon) -> None:
    name = daemon.name()
    daemon.docker(
        "run", "-di", "--name", name, "--network", "none", IMAGE, "sh", "-c", "read a; echo $a; read b; echo $b"
    )
    # The CLI waits for the container's end even after its own input ended, so the first one is killed.
    with daemon.popen("attach", name, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdin is not None
        first.stdin.write(b"one\n")
        first.stdin.close()
        until(lambda: daemon.text("logs", name) == "one")
        first.kill()
    client = daemon.popen("attach", name, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, _ = client.communicate(b"two\n", timeout=20)
    until(lambda: daemon.text("inspect", "-f", "{{.State.Status}}", name) == "exited")
    assert daemon.text("logs", name) == "one\ntwo"
    assert b"one" not in out
    daemon.docker("rm", name)
