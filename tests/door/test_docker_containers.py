"""Everyday commands on containers, by the docker CLI."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, Terminal, running, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


@pytest.fixture
def sleeper(daemon: Daemon) -> Iterator[str]:
    with daemon.container("--network", "none", "--label", "who=sleeper", IMAGE, "sleep", "300") as name:
        yield name


def test_ps_lists_and_filters(daemon: Daemon, sleeper: str) -> None:
    def names(*arguments: str) -> list[str]:
        return daemon.text("ps", "--format", "{{.Names}}", *arguments).split()

    dead = daemon.name()
    daemon.docker("run", "--name", dead, "--network", "none", IMAGE, "sh", "-c", "exit 3", check=3)
    row = json.loads(daemon.text("ps", "--no-trunc", "--format", "json", "--filter", f"name=^/{sleeper}$"))
    assert (row["Image"], row["Command"], row["State"], row["Names"]) == (IMAGE, '"sleep 300"', "running", sleeper)
    assert re.fullmatch(r"Up (\d+ seconds?|Less than a second)", row["Status"])
    assert sleeper in names() and dead not in names()
    assert names("-a", "--filter", "exited=3") == [dead]
    assert names("-a", "--filter", "status=exited", "--filter", f"name={dead}") == [dead]
    assert names("--filter", "label=who=sleeper") == [sleeper]
    assert names("--filter", "label=who=nobody") == []
    assert sleeper in names("--filter", f"ancestor={IMAGE}")
    assert names("-n", "1") == [dead]
    assert names("--filter", f"since={sleeper}", "-a") == [dead]
    assert "Exited (3)" in daemon.text("ps", "-a", "--filter", f"name={dead}", "--format", "{{.Status}}")
    assert re.search(r"virtual", daemon.text("ps", "-s", "--filter", f"name={sleeper}", "--format", "{{.Size}}"))
    refused = daemon.docker("ps", "--filter", "nosuch=1", check=1)
    assert b"invalid filter 'nosuch'" in refused.stderr
    daemon.docker("rm", dead)


def test_logs_of_both_streams_with_tail_and_times(daemon: Daemon) -> None:
    script = "for n in 1 2 3 4 5; do echo out $n; echo err $n >&2; done"
    name = daemon.name()
    daemon.docker("run", "--name", name, "--network", "none", IMAGE, "sh", "-c", script)
    done = daemon.docker("logs", name)
    assert done.stdout == b"".join(b"out %d\n" % n for n in range(1, 6))
    assert done.stderr == b"".join(b"err %d\n" % n for n in range(1, 6))
    done = daemon.docker("logs", "--tail", "2", name)
    assert len(done.stdout.splitlines() + done.stderr.splitlines()) == 2
    stamped = daemon.text("logs", "-t", name).splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z out \d", line) for line in stamped)
    assert daemon.text("logs", "--since", "1h", name) == "\n".join(f"out {n}" for n in range(1, 6))
    assert daemon.text("logs", "--until", "1h", name) == ""
    daemon.docker("rm", name)


def test_logs_follow_until_the_end(daemon: Daemon) -> None:
    name = daemon.name()
    script = "for n in 1 2 3; do echo $n; sleep 0.2; done"
    daemon.docker("run", "-d", "--name", name, "--network", "none", IMAGE, "sh", "-c", script)
    assert daemon.text("logs", "-f", name, timeout_s=20) == "1\n2\n3"
    daemon.docker("rm", name)


def test_a_follower_that_leaves_frees_everything(daemon: Daemon, sleeper: str) -> None:
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    clients = [daemon.popen("logs", "-f", sleeper, stdout=subprocess.DEVNULL) for _ in range(3)]
    clients.append(daemon.popen("events", stdout=subprocess.DEVNULL))
    clients.append(daemon.popen("stats", sleeper, stdout=subprocess.DEVNULL))
    until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) >= before + 5)
    for client in clients:
        client.kill()
        client.wait()
    until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before)


def test_logs_of_a_terminal_are_raw(daemon: Daemon) -> None:
    name = daemon.name()
    daemon.docker("run", "-dt", "--name", name, "--network", "none", IMAGE, "sh", "-c", "echo one; echo two >&2")
    until(lambda: daemon.text("inspect", "-f", "{{.State.Status}}", name) == "exited")
    assert daemon.docker("logs", name).stdout == b"one\r\ntwo\r\n"
    daemon.docker("rm", name)


def test_exec_with_everything(daemon: Daemon, sleeper: str) -> None:
    assert daemon.text("exec", sleeper, "echo", "inside") == "inside"
    done = daemon.docker("exec", sleeper, "sh", "-c", "echo out; echo err >&2; exit 5", check=5)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    script = "echo $A; pwd; id -u"
    text = daemon.text("exec", "-e", "A=b", "-w", "/tmp", "-u", "nobody", sleeper, "sh", "-c", script)
    assert text.splitlines() == ["b", "/tmp", "65534"]
    data = os.urandom(1 << 20)
    assert daemon.docker("exec", "-i", sleeper, "cat", input=data).stdout == data
    daemon.docker("exec", "-d", sleeper, "sh", "-c", "echo done > /tmp/flag")
    until(lambda: daemon.docker("exec", sleeper, "cat", "/tmp/flag", check=None).stdout == b"done\n")
    done = daemon.docker("exec", sleeper, "nosuchprogram", check=127)
    assert b'exec: "nosuchprogram": executable file not found in $PATH' in done.stdout + done.stderr
    daemon.docker("exec", sleeper, "/etc", check=126)


def test_exec_on_a_terminal(daemon: Daemon, sleeper: str) -> None:
    with Terminal(daemon, "exec", "-it", sleeper, "sh", rows=33, columns=77) as tty:
        tty.expect(b"# ")
        tty.send(b"stty size; tty\n")
        tty.expect(b"33 77\r\n")
        tty.expect(b"/dev/pts/")
        tty.send(b"exit 4\n")
        assert tty.ends() == 4


def test_exec_needs_a_running_container(daemon: Daemon) -> None:
    name = daemon.name()
    daemon.docker("create", "--name", name, IMAGE, "true")
    assert b"is not running" in daemon.docker("exec", name, "true", check=1).stderr
    daemon.docker("rm", name)


def test_attach_sees_what_comes(daemon: Daemon) -> None:
    with daemon.container("--network", "none", IMAGE, "sh", "-c", "while :; do echo tick; sleep 0.1; done") as name:
        with daemon.popen("attach", "--sig-proxy=false", name, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"tick\n"
            client.kill()
        assert daemon.text("inspect", "-f", "{{.State.Running}}", name) == "true"


def test_stop_kill_wait_and_start_again(daemon: Daemon) -> None:
    name = daemon.name()
    script = "trap 'exit 21' TERM; echo up; while :; do sleep 0.05; done"
    daemon.docker("run", "-d", "--name", name, "--network", "none", IMAGE, "sh", "-c", script)
    until(lambda: daemon.text("logs", name) == "up")
    with daemon.popen("wait", name, stdout=subprocess.PIPE) as waiter:
        assert daemon.text("stop", name) == name
        assert waiter.communicate(timeout=20)[0] == b"21\n"
    assert daemon.text("wait", name) == "21"
    daemon.docker("stop", name)
    daemon.docker("start", name)
    daemon.docker("start", name)
    daemon.docker("kill", name)
    assert daemon.text("wait", name) == "137"
    refused = daemon.docker("kill", name, check=1)
    assert b"is not running" in refused.stderr
    daemon.docker("restart", name)
    refused = daemon.docker("rm", name, check=1)
    assert b"container is running" in refused.stderr
    daemon.docker("rm", "-f", name)
    assert b"No such container" in daemon.docker("rm", name, check=1).stderr


def test_a_stop_that_is_not_heard_kills(daemon: Daemon, sleeper: str) -> None:
    began = time.monotonic()
    daemon.docker("stop", "-t", "1", sleeper)
    assert 0.8 < time.monotonic() - began < 8
    assert daemon.text("inspect", "-f", "{{.State.ExitCode}}", sleeper) == "137"


def test_pause_and_unpause(daemon: Daemon, sleeper: str) -> None:
    daemon.docker("pause", sleeper)
    assert "(Paused)" in daemon.text("ps", "--filter", f"name={sleeper}", "--format", "{{.Status}}")
    assert b"is paused" in daemon.docker("exec", sleeper, "true", check=1).stderr
    assert b"already paused" in daemon.docker("pause", sleeper, check=1).stderr
    daemon.docker("unpause", sleeper)
    assert daemon.text("inspect", "-f", "{{.State.Status}}", sleeper) == "running"


def test_inspect_gives_back_what_was_said(daemon: Daemon) -> None:
    name = daemon.name()
    daemon.docker(
        *("create", "--name", name, "-e", "A=1", "-w", "/w", "-u", "1:2", "--hostname", "h", "-l", "x=y"),
        *("-p", "8080:80/udp", "--restart", "unless-stopped", "-v", "/tmp:/t:ro", "--tmpfs", "/s:size=1m"),
        *("--cap-add", "NET_ADMIN", "--dns", "9.9.9.9", "--add-host", "a:1.2.3.4", "--shm-size", "128m", "--init"),
        *("--read-only", "--stop-signal", "INT", "--stop-timeout", "7", "--security-opt", "no-new-privileges"),
        *("--entrypoint", "/bin/sh", IMAGE, "-c", "true"),
    )
    found = json.loads(daemon.text("inspect", name))[0]
    config, host = found["Config"], found["HostConfig"]
    assert (found["Path"], found["Args"], found["Name"]) == ("/bin/sh", ["-c", "true"], f"/{name}")
    assert (config["Env"][0], config["WorkingDir"], config["User"], config["Hostname"]) == ("A=1", "/w", "1:2", "h")
    assert (config["Labels"], config["Entrypoint"], config["Cmd"]) == ({"x": "y"}, ["/bin/sh"], ["-c", "true"])
    assert (config["StopSignal"], config["StopTimeout"]) == ("INT", 7)
    assert host["PortBindings"] == {"80/udp": [{"HostIp": "", "HostPort": "8080"}]}
    assert host["RestartPolicy"] == {"Name": "unless-stopped", "MaximumRetryCount": 0}
    assert (host["Binds"], host["Tmpfs"], host["Dns"]) == (["/tmp:/t:ro"], {"/s": "size=1m"}, ["9.9.9.9"])
    assert [name.removeprefix("CAP_") for name in host["CapAdd"]] == ["NET_ADMIN"]  # clients before 28 leave it out
    assert (host["ExtraHosts"], host["ShmSize"]) == (["a:1.2.3.4"], 128 << 20)
    assert (host["Init"], host["ReadonlyRootfs"], host["SecurityOpt"]) == (True, True, ["no-new-privileges"])
    assert [mount["Destination"] for mount in found["Mounts"]] == ["/t"]
    assert (found["State"]["Status"], found["NetworkSettings"]["Ports"]) == ("created", {})
    assert daemon.text("inspect", "-s", "-f", "{{.SizeRw}}", name) == "0"
    daemon.docker("rm", name)
    assert b"No such object" in daemon.docker("inspect", name, check=1).stderr


def test_copies_both_ways(daemon: Daemon, sleeper: str, tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").write_bytes(b"\0binary\xff" * 1000)
    (tmp_path / "folder" / "link").symlink_to("deep/file")
    daemon.docker("cp", str(tmp_path / "folder"), f"{sleeper}:/root/")
    assert daemon.text("exec", sleeper, "readlink", "/root/folder/link") == "deep/file"
    daemon.docker("cp", f"{sleeper}:/root/folder", str(tmp_path / "back"))
    assert (tmp_path / "back" / "deep" / "file").read_bytes() == b"\0binary\xff" * 1000
    assert (tmp_path / "back" / "link").is_symlink()
    daemon.docker("cp", f"{sleeper}:/root/folder/link", str(tmp_path / "one"))
    assert (tmp_path / "one").is_symlink()
    daemon.docker("cp", "-L", f"{sleeper}:/root/folder/link", str(tmp_path / "two"))
    assert (tmp_path / "two").read_bytes() == b"\0binary\xff" * 1000
    daemon.docker("cp", "-q", str(tmp_path / "two"), f"{sleeper}:/root/renamed")
    assert daemon.text("exec", sleeper, "wc", "-c", "/root/renamed").split()[0] == "8000"
    archive = daemon.docker("cp", f"{sleeper}:/etc/passwd", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["passwd"]
    refused = daemon.docker("cp", f"{sleeper}:/no/such", str(tmp_path), check=1)
    assert f"Could not find the file /no/such in container {sleeper}".encode() in refused.stderr
    daemon.docker("cp", str(tmp_path / "two"), f"{sleeper}:/no/such/folder/", check=1)


def test_top_stats_and_diff(daemon: Daemon, sleeper: str) -> None:
    assert daemon.text("top", sleeper).splitlines()[1].split()[-2:] == ["sleep", "300"]
    assert daemon.text("top", sleeper, "-o", "pid,comm").splitlines()[1].split()[1] == "sleep"
    assert b"Couldn't find PID field" in daemon.docker("top", sleeper, "-o", "comm", check=1).stderr
    row = json.loads(daemon.text("stats", "--no-stream", "--format", "json", sleeper))
    assert (row["Name"], row["PIDs"]) == (sleeper, "1")
    assert re.fullmatch(r"\d+\.\d\d%", row["CPUPerc"]) and re.match(r"[\d.]+KiB / [\d.]+GiB", row["MemUsage"])
    daemon.docker("exec", sleeper, "sh", "-c", "touch /new; rm /etc/group; echo >> /etc/passwd")
    assert daemon.text("diff", sleeper).splitlines() == ["C /etc", "D /etc/group", "C /etc/passwd", "A /new"]


def test_stats_show_a_busy_container(daemon: Daemon) -> None:
    with daemon.container(IMAGE, "sh", "-c", "while :; do :; done") as name:
        row = json.loads(daemon.text("stats", "--no-stream", "--format", "json", name))
        assert float(row["CPUPerc"].rstrip("%")) > 5
        assert row["NetIO"] != "--"


def test_rename_and_update(daemon: Daemon, sleeper: str) -> None:
    name = daemon.name()
    daemon.docker("rename", sleeper, name)
    assert daemon.text("inspect", "-f", "{{.Name}}", name) == f"/{name}"
    daemon.docker("rename", name, sleeper)
    assert b"nvalid container name" in daemon.docker("rename", sleeper, "a/b", check=1).stderr
    daemon.docker("update", "--restart", "always", "--cpus", "0.25", sleeper)
    shown = daemon.text("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.NanoCpus}}", sleeper)
    assert shown == "always 250000000"
    assert b"Minimum memory limit" in daemon.docker("update", "--memory", "1m", sleeper, check=1).stderr


def test_export_commit_and_run_what_was_committed(daemon: Daemon, sleeper: str) -> None:
    daemon.docker("exec", sleeper, "sh", "-c", "echo kept > /kept")
    with tarfile.open(fileobj=io.BytesIO(daemon.docker("export", sleeper).stdout)) as tar:
        names = {name.lstrip("./") for name in tar.getnames()}
    assert {"kept", "bin/busybox", "etc/passwd"} <= names
    image = f"committed:{sleeper}"
    daemon.docker(
        "commit", "-m", "a message", "-a", "someone", "-c", "ENV B=2", "-c", 'CMD ["cat", "/kept"]', sleeper, image
    )
    assert daemon.text("run", "--rm", "--network", "none", image) == "kept"
    assert daemon.text("run", "--rm", "--network", "none", image, "sh", "-c", "echo $B") == "2"
    assert daemon.text("inspect", "-f", "{{.Author}} {{.Comment}}", image) == "someone a message"
    daemon.docker("rmi", image)


def test_events_are_told_in_order(daemon: Daemon) -> None:
    name = daemon.name()
    mine = ("--filter", f"container={name}")
    since = f"{time.time():.6f}"
    with daemon.popen("events", "--format", "{{.Type}} {{.Action}}", *mine, stdout=subprocess.PIPE) as client:
        time.sleep(0.3)
        daemon.docker("run", "--rm", "--name", name, "--network", "none", IMAGE, "true")
        assert client.stdout is not None
        seen = []
        deadline = threading.Timer(15, client.kill)
        deadline.start()
        for line in client.stdout:
            seen.append(line.decode().strip())
            if seen[-1] == "container destroy":
                break
        deadline.cancel()
        client.kill()
    wanted = ["container create", "container attach", "container start", "container die", "container destroy"]
    assert [each for each in seen if each in wanted] == wanted
    past = ("events", "--since", since, "--until", str(int(time.time()) + 1), "--filter", "event=die")
    assert name in daemon.text(*past, "--format", "{{.Actor.Attributes.name}}").split()
    words = json.loads(daemon.text(*past, *mine, "--format", "json"))
    assert words["Actor"]["Attributes"]["exitCode"] == "0" and words["from"] == IMAGE and words["scope"] == "local"


def test_prune_takes_what_ended(daemon: Daemon, sleeper: str) -> None:
    name = daemon.name()
    daemon.docker("run", "--name", name, "--label", f"prune={name}", "--network", "none", IMAGE, "true")
    id = daemon.text("inspect", "-f", "{{.Id}}", name)
    assert id in daemon.text("container", "prune", "-f", "--filter", f"label=prune={name}")
    assert daemon.text("ps", "-a", "-q", "--filter", f"name={name}") == ""
    assert daemon.text("inspect", "-f", "{{.State.Running}}", sleeper) == "true"
