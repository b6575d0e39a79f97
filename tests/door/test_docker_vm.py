"""`docker run --runtime vm`: what people do with a container, done with one that has a kernel of its own. Most tests share one
machine, for an emulated one takes seconds to come up."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, Terminal, running, until
from host.vm_support import demo_machine

pytestmark = [
    pytest.mark.root,
    pytest.mark.vm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed"),
]

SERVICE = (
    "trap 'echo stopping; exit 7' TERM; mkdir -p /www; hostname > /www/index.html; httpd -p 80 -h /www; "
    "echo ready; echo problem >&2; while :; do sleep 0.1; done"
)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    demo_machine()
    for daemon in running():
        give_kernel(daemon)
        yield daemon


def give_kernel(daemon: Daemon) -> None:
    """So that the guest's kernel is built once per host, and not once per test run."""
    (daemon.folder / "d" / "cache").symlink_to(Path.home() / ".cache" / "insula-tests")


@pytest.fixture(scope="module")
def network(daemon: Daemon) -> str:
    return daemon.text("network", "create", daemon.name()) and daemon.text(
        "network", "ls", "--format", "{{.Name}}", "--filter", "type=custom"
    )


@pytest.fixture(scope="module")
def box(daemon: Daemon, network: str) -> Iterator[str]:
    """A machine with a bit of everything."""
    shared = daemon.folder / "shared"
    shared.mkdir()
    (shared / "from-host").write_text("hello\n")
    options = ["--runtime", "vm", "--network", network, "-p", "127.0.0.1::80", "-v", f"{shared}:/shared"]
    options += ["-v", f"{shared}:/fixed:ro", "-v", "/anonymous", "--tmpfs", "/scratch:size=2m", "-e", "WORD=said"]
    options += ["-w", "/kept/place", "-m", "48m", "--cpus", "1.5", "--hostname", "box", "--add-host", "there:192.0.2.7"]
    options += ["--ulimit", "nofile=123:456", "--sysctl", "net.core.somaxconn=77", "--pids-limit", "50"]
    with daemon.container(*options, IMAGE, "sh", "-c", SERVICE) as name:
        until(lambda: "ready" in daemon.text("logs", name))
        yield name


def inside(daemon: Daemon, box: str, script: str, *options: str) -> str:
    return daemon.text("exec", *options, box, "sh", "-c", script)


def test_it_has_a_kernel_of_its_own_and_looks_like_a_container(daemon: Daemon, box: str) -> None:
    assert inside(daemon, box, "uname -r") != os.uname().release
    assert inside(daemon, box, "cat /proc/1/comm; hostname; pwd; echo $WORD").split() == [
        "sh",
        "box",
        "/kept/place",
        "said",
    ]
    assert inside(daemon, box, "ulimit -n; ulimit -Hn; cat /proc/sys/net/core/somaxconn").split() == [
        "123",
        "456",
        "77",
    ]
    assert int(inside(daemon, box, "grep MemTotal /proc/meminfo").split()[1]) < 120_000
    assert inside(daemon, box, "grep -c ^processor /proc/cpuinfo") == str(min(2, os.cpu_count() or 1))
    limits = inside(
        daemon, box, "cat /proc/self/cgroup; ls -l /dev/null; stat -c %a /dev/shm; grep CapEff /proc/1/status"
    )
    assert "0::/\n" in limits and "crw-rw-rw-" in limits and "1777" in limits and "00000000a80425fb" in limits
    state = daemon.text("inspect", box, "--format", "{{.HostConfig.Runtime}} {{.State.Status}}")
    assert state == "vm running"


def test_files_are_the_same_on_both_sides(daemon: Daemon, box: str, tmp_path: Path) -> None:
    assert inside(daemon, box, "cat /shared/from-host; echo back > /shared/from-machine") == "hello"
    assert (daemon.folder / "shared" / "from-machine").read_text() == "back\n"
    assert "Read-only" in daemon.docker("exec", box, "touch", "/fixed/x", check=1).stderr.decode()
    assert inside(daemon, box, "df /scratch | grep -c tmpfs; echo kept > /anonymous/x; cat /anonymous/x") == "1\nkept"
    (tmp_path / "given").write_bytes(sent := os.urandom(300_000))
    daemon.docker("cp", str(tmp_path / "given"), f"{box}:/kept/given")
    until(lambda: "given" in inside(daemon, box, "ls /kept"))
    daemon.docker("cp", f"{box}:/kept/given", str(tmp_path / "taken"))
    assert (tmp_path / "taken").read_bytes() == sent
    assert "A /kept/given" in daemon.text("diff", box)


def test_programs_beside_the_first(daemon: Daemon, box: str) -> None:
    sent = os.urandom(1_000_000)
    assert daemon.docker("exec", "-i", box, "cat", input=sent).stdout == sent
    done = daemon.docker("exec", box, "sh", "-c", "echo out; echo err >&2; exit 9", check=9)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    assert b"executable file not found" in daemon.docker("exec", box, "nosuchprogram", check=127).stdout
    assert inside(daemon, box, "id -u; id -g", "-u", "12:34").split() == ["12", "34"]
    assert "privileged" in daemon.docker("exec", "--privileged", box, "true", check=126).stdout.decode()
    with Terminal(daemon, "exec", "-it", box, "sh", rows=30, columns=90) as terminal:
        terminal.send(b"stty size; tty\n")
        terminal.expect(b"30 90")
        terminal.expect(b"/dev/pts/")
        terminal.resize(31, 91)
        terminal.send(b"sleep 0.5; stty size\n")
        terminal.expect(b"31 91")
        terminal.send(b"exit 5\n")
        assert terminal.ends() == 5


def test_it_is_on_the_network_like_any_other(daemon: Daemon, box: str, network: str) -> None:
    port = daemon.text("port", box, "80").rpartition(":")[2]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        assert answer.read() == b"box\n"
    assert daemon.text("run", "--rm", "--network", network, IMAGE, "wget", "-qO-", f"http://{box}/") == "box"
    with daemon.container("--network", network, IMAGE, "sleep", "1000") as other:
        assert "0% packet loss" in inside(daemon, box, f"ping -c 1 -w 10 {other}")
    address = daemon.text(
        "inspect", box, "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.MacAddress}}{{end}}"
    )
    seen = inside(daemon, box, "ip addr show eth0; cat /etc/hosts")
    assert all(word in seen for word in (*address.split(), "there", "192.0.2.7"))
    refused = daemon.docker("network", "connect", "bridge", box, check=1).stderr.decode()
    assert "takes no new network card while it runs" in refused


def test_it_is_watched_and_held_like_any_other(daemon: Daemon, box: str) -> None:
    assert "httpd -p 80" in daemon.text("top", box)
    assert daemon.text("top", box, "-o", "pid,comm").split()[:2] == ["PID", "COMMAND"]
    assert "MiB" in daemon.text("stats", "--no-stream", box)
    daemon.docker("pause", box)
    assert "paused" in daemon.docker("top", box, check=1).stderr.decode()
    daemon.docker("unpause", box)
    assert inside(daemon, box, "echo awake") == "awake"
    assert "memory_bytes" in daemon.docker("update", "-m", "64m", "--memory-swap", "128m", box, check=1).stderr.decode()
    daemon.docker("update", "--cpu-shares", "512", box)


def test_it_outlives_the_daemon_with_its_output_and_its_end() -> None:
    demo_machine()
    daemon = Daemon()
    daemon.start()
    try:
        give_kernel(daemon)
        outlives(daemon)
    finally:
        daemon.stop()


def outlives(daemon: Daemon) -> None:
    count = "trap 'exit 6' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
    with daemon.container("--runtime", "vm", IMAGE, "sh", "-c", count) as name:
        ending = daemon.text("run", "-d", "--runtime", "vm", IMAGE, "sh", "-c", "sleep 2; echo last; exit 9")
        daemon.restart_killed()
        assert inside(daemon, name, "echo still here") == "still here"
        until(lambda: not daemon.text("ps", "-q", "--no-trunc", "--filter", f"id={ending}"), timeout_s=30)
        assert daemon.text("wait", ending) == "9"
        assert daemon.text("logs", ending) == "last"
        daemon.docker("stop", name)
        numbers = [int(line) for line in daemon.text("logs", name).split()]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 10
        assert daemon.text("inspect", name, "--format", "{{.State.ExitCode}}") == "6"
        daemon.docker("rm", ending)


def test_logs_stop_and_start(daemon: Daemon, box: str) -> None:
    done = daemon.docker("logs", box)
    assert (done.stdout, done.stderr) == (b"ready\n", b"problem\n")
    inside(daemon, box, "echo kept > /anonymous/x")
    daemon.docker("stop", box)
    assert daemon.text("inspect", box, "--format", "{{.State.Status}} {{.State.ExitCode}}") == "exited 7"
    assert daemon.text("logs", "--tail", "1", box) == "stopping"
    daemon.docker("start", box)
    assert inside(daemon, box, "cat /anonymous/x; cat /www/index.html") == "kept\nbox"
    daemon.docker("kill", box)
    assert daemon.text("wait", box) == "137"
    said = daemon.text("logs", box).count("ready")
    daemon.docker("start", box)  # for the tests that come after this one
    until(lambda: daemon.text("logs", box).count("ready") > said, timeout_s=60)


def test_it_takes_input_and_passes_its_exit_code(daemon: Daemon) -> None:
    sent = os.urandom(500_000)
    done = daemon.docker(
        "run", "--rm", "-i", "--runtime", "vm", IMAGE, "sh", "-c", "cat; exit 200", input=sent, check=200
    )
    assert done.stdout == sent
    with daemon.popen(
        "run", "--rm", "-i", "--runtime", "vm", IMAGE, "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as late:
        assert late.stdin is not None and late.stdout is not None
        late.stdin.write(b"first")
        late.stdin.flush()
        assert late.stdout.read(5) == b"first"
        late.stdin.close()  # the end comes alone, when all before it has been read
        assert late.wait(20) == 0
    options = ("--network", "none", "--read-only", "-u", "1000", "-v", "/data")
    script = "touch /x; cd /data && id -u && ip addr | grep -c eth"
    done = daemon.docker("run", "--rm", "--runtime", "vm", *options, IMAGE, "sh", "-c", script, check=1)
    assert done.stdout == b"1000\n0\n"
    assert b"touch: /x: " in done.stderr


def test_a_terminal_is_inside(daemon: Daemon) -> None:
    with Terminal(daemon, "run", "-it", "--rm", "--runtime", "vm", IMAGE, "sh", rows=33, columns=99) as terminal:
        terminal.send(b"sleep 1; stty size; tty\n")
        terminal.expect(b"33 99", timeout_s=60)
        terminal.expect(b"/dev/pts/0")
        terminal.send(b"exit 4\n")
        assert terminal.ends() == 4


def test_what_cannot_run_says_why(daemon: Daemon) -> None:
    done = daemon.docker("run", "--rm", "--runtime", "vm", IMAGE, "nosuchprogram", check=127)
    assert b'exec: "nosuchprogram": executable file not found in $PATH' in done.stderr
    for wrong in (("--privileged",), ("--network", "host"), ("--pid", "host"), ("--device", "/dev/null")):
        done = daemon.docker("create", "--runtime", "vm", *wrong, IMAGE, "true", check=1)
        assert b"A container with runtime vm cannot have " in done.stderr


def test_memory_is_limited_inside(daemon: Daemon) -> None:
    script = "head -c 60000000 /dev/zero | tail -c 50000000 | wc -c"
    done = daemon.docker("run", "--rm", "--runtime", "vm", "-m", "24m", IMAGE, "sh", "-c", f"({script}); echo after")
    assert b"50000000" not in done.stdout and b"after" in done.stdout


def test_nothing_is_left_on_the_host(daemon: Daemon) -> None:
    def held() -> set[Path]:
        return {*(daemon.folder / "r" / "instances").iterdir(), *(daemon.folder / "r" / "microvm").glob("runc/*")}

    before = held()
    daemon.docker("run", "--rm", "--runtime", "vm", IMAGE, "true")
    until(lambda: held() == before)
