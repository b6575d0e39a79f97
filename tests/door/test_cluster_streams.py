"""exec, attach, cp, logs and port-forward by kubectl against a whole running Insula."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from door.cluster_support import KUBECTL, Shell, Space, container, insula, pod, space, until

__all__ = ["insula", "space"]
pytestmark = pytest.mark.root
WEB = "mkdir /www; echo hello > /www/index.html; trap exit TERM; httpd -f -p 8080 -h /www & wait"


@pytest.fixture
def running(space: Space) -> Space:
    """A namespace with a ready pod `p` of one container `c`."""
    space.apply(pod("p", container("c")))
    space.ready("p")
    return space


# --- exec -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 7, 137])
def test_exec_passes_the_exit_code_through(running: Space, code: int) -> None:
    running.run("exec", "p", "--", "sh", "-c", f"exit {code}", check=code)


def test_exec_keeps_both_streams_apart(running: Space) -> None:
    done = running.run("exec", "p", "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_exec_says_what_cannot_be_run(running: Space) -> None:
    assert "nosuchprogram" in running.fails("exec", "p", "--", "nosuchprogram")
    assert "not found" in running.fails("exec", "nosuchpod", "--", "true")
    assert "container nosuch is not valid for pod p" in running.fails("exec", "p", "-c", "nosuch", "--", "true")


def test_a_megabyte_of_binary_passes_unharmed_both_ways(running: Space) -> None:
    data = os.urandom(1 << 20)
    digest = running.run("exec", "-i", "p", "--", "sha256sum", stdin=data).stdout.decode().split()[0]
    assert digest == hashlib.sha256(data).hexdigest()
    assert running.run("exec", "-i", "p", "--", "cat", stdin=data).stdout == data


def test_exec_on_a_terminal_types_and_resizes(running: Space) -> None:
    with Shell(running, "exec", "-it", "p", "--", "sh", rows=31, columns=91) as shell:
        shell.expect(b"# ")
        shell.send(b"stty size; tty\n")
        shell.expect(b"31 91")
        shell.expect(b"/dev/pts/")
        shell.resize(40, 100)
        shell.send(b"sleep 0.3; stty size\n")
        shell.expect(b"40 100")
        shell.send(b"exit 5\n")
        assert shell.wait() == 5


def test_a_client_that_leaves_does_not_harm_the_pod(running: Space) -> None:
    words = [KUBECTL, "-n", running.name, "exec", "p", "--", "sh", "-c", "echo here; sleep 1000"]
    leaving = subprocess.Popen(words, env=running.insula.env, stdout=subprocess.PIPE)
    assert leaving.stdout is not None and leaving.stdout.readline() == b"here\n"
    leaving.send_signal(signal.SIGKILL)
    leaving.wait()
    leaving.stdout.close()
    assert running.text("exec", "p", "--", "echo", "fine") == "fine"
    assert running.status("p", "c")["restartCount"] == 0


# --- attach, run -i ---------------------------------------------------------------------------------------------


def test_attach_types_and_reads_until_the_end(space: Space) -> None:
    script = "while read line; do echo got $line; done; echo bye"
    space.apply(pod("p", container("c", script, stdin=True, stdinOnce=True), restartPolicy="Never"))
    space.ready("p")
    done = space.run("attach", "-i", "p", stdin=b"one\ntwo\n", timeout_s=30)
    assert done.stdout == b"got one\ngot two\nbye\n"
    assert space.phase("p", "Succeeded")


def test_attach_only_listens_to_a_pod_without_stdin(space: Space) -> None:
    space.apply(pod("p", container("c", "sleep 1; echo later; sleep 1"), restartPolicy="Never"))
    until(lambda: "running" in space.status("p", "c").get("state", {}))
    assert space.run("attach", "p").stdout == b"later\n"


def test_run_with_a_terminal_and_removal(space: Space) -> None:
    with Shell(space, "run", "-it", "--rm", "--restart=Never", "--image=busybox:1", "t", "--", "sh") as shell:
        shell.expect(b"# ", 40)
        shell.send(b"echo $((40+2)); exit\n")
        shell.expect(b"42")
        shell.expect(b'pod "t" deleted', 40)
    assert not space.all("pods")


def test_run_reads_standard_input_to_its_end_and_is_removed(space: Space) -> None:
    words = ("run", "-i", "--rm", "--restart=Never", "--image=busybox:1", "w", "--", "wc", "-c")
    done = space.run(*words, stdin=b"x" * 5000)
    assert b"5000" in done.stdout
    until(lambda: not space.all("pods"))


# --- cp ---------------------------------------------------------------------------------------------------------


def test_cp_carries_files_and_folders_both_ways(running: Space) -> None:
    root = running.insula.root
    source = root / f"cp-{running.name}"
    (source / "below").mkdir(parents=True)
    data = os.urandom(300_000)
    (source / "below/binary").write_bytes(data)
    (source / "text").write_text("hello\n")
    running.run("cp", str(source), "p:/tmp/copied")
    assert running.run("exec", "p", "--", "cat", "/tmp/copied/below/binary").stdout == data
    back = root / f"back-{running.name}"
    running.run("cp", "p:/tmp/copied", str(back))
    assert (back / "below/binary").read_bytes() == data
    assert (back / "text").read_text() == "hello\n"


# --- logs -------------------------------------------------------------------------------------------------------


def test_logs_tail_timestamps_and_limits(space: Space) -> None:
    space.apply(pod("p", container("c", "seq 1 20; trap exit TERM; sleep 1000 & wait")))
    space.ready("p")
    until(lambda: space.logs("p").count("\n") == 20)
    assert space.logs("p", "--tail=3") == "18\n19\n20\n"
    assert space.logs("p", "--tail=0") == ""
    assert space.logs("p", "--limit-bytes=4") == "1\n2\n"
    first = space.logs("p", "--timestamps", "--tail=1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z 20\n", first)
    assert space.logs("p", "--since=1h").count("\n") == 20


def test_logs_follow_until_the_end(space: Space) -> None:
    script = "for i in 1 2 3; do echo $i; sleep 0.3; done"
    space.apply(pod("p", container("c", script), restartPolicy="Never"))
    until(lambda: space.status("p", "c").get("state", {}).keys() & {"running", "terminated"})
    assert space.logs("-f", "p") == "1\n2\n3\n"


def test_logs_of_the_previous_run(space: Space) -> None:
    space.apply(
        pod(
            "p",
            container(
                "c",
                "echo run $(cat /proc/sys/kernel/random/uuid); test -e /v/f || { touch /v/f; exit 3; }; sleep 1000",
                volumeMounts=[{"name": "v", "mountPath": "/v"}],
            ),
            volumes=[{"name": "v", "emptyDir": {}}],
        )
    )
    until(lambda: space.status("p", "c").get("restartCount") == 1 and "running" in space.status("p", "c")["state"])
    until(lambda: space.logs("p"))
    assert space.logs("p", "--previous").startswith("run ")
    assert space.logs("p", "--previous") != space.logs("p")
    assert space.status("p", "c")["lastState"]["terminated"]["exitCode"] == 3


def test_logs_say_why_there_are_none(space: Space) -> None:
    space.apply(pod("p", container("c"), container("d")))
    space.ready("p")
    assert 'previous terminated container "c" in pod "p" not found' in space.fails("logs", "p", "-c", "c", "--previous")
    assert "is not valid for pod p" in space.fails("logs", "p", "-c", "nosuch")
    space.apply(pod("q", {**container("c"), "image": "nosuch:1", "imagePullPolicy": "Never"}))
    until(lambda: space.status("q", "c").get("state", {}).get("waiting", {}).get("reason") == "ErrImageNeverPull")
    assert "is waiting to start" in space.fails("logs", "q")


def test_logs_of_all_containers(space: Space) -> None:
    space.apply(pod("p", container("c", "echo from c; sleep 1000"), container("d", "echo from d; sleep 1000")))
    space.ready("p")
    until(lambda: set(space.logs("p", "--all-containers").splitlines()) == {"from c", "from d"})
    assert "[pod/p/c] from c" in space.logs("p", "--all-containers", "--prefix")


# --- port-forward -----------------------------------------------------------------------------------------------


@contextmanager
def forwarding(space: Space, *words: str) -> Iterator[list[int]]:
    """kubectl port-forward, with the local ports that it listens on."""
    ports: list[int] = []
    process = subprocess.Popen(
        [KUBECTL, "-n", space.name, "port-forward", *words],
        env=space.insula.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        wanted = sum(1 for word in words if ":" in word)
        while len(ports) < wanted:
            line = process.stdout.readline()
            assert line, "port-forward ended"
            if found := re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", line):
                ports.append(int(found.group(1)))
        yield ports
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def fetch(port: int, path: str = "/") -> tuple[int, bytes]:
    """One HTTP request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_port_forward_carries_many_connections(space: Space) -> None:
    blob = "dd if=/dev/zero of=/www/big bs=1024 count=3000 2>/dev/null; "
    space.apply(
        pod("p", container("c", WEB.replace("trap", blob + "trap"), ports=[{"name": "web", "containerPort": 8080}]))
    )
    space.ready("p")
    with forwarding(space, "pod/p", ":8080", ":web") as ports:
        until(lambda: fetch(ports[0]) == (200, b"hello\n"))
        assert fetch(ports[1]) == (200, b"hello\n")
        answers: list[bytes] = []
        threads = [threading.Thread(target=lambda: answers.append(fetch(ports[0], "/big")[1])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [len(answer) for answer in answers] == [3000 * 1024] * 8


def test_port_forward_carries_uploads_and_half_closed_connections(space: Space) -> None:
    script = "trap exit TERM; while :; do nc -l -p 9000 -e sha256sum; done & wait"
    space.apply(pod("p", container("c", script)))
    space.ready("p")
    data = os.urandom(2_000_000)
    with forwarding(space, "pod/p", ":9000") as ports:

        def upload() -> str:
            with socket.create_connection(("127.0.0.1", ports[0]), 20) as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                return connection.makefile().read()

        assert until(upload).split()[0] == hashlib.sha256(data).hexdigest()


def test_port_forward_says_that_a_port_is_closed(space: Space) -> None:
    space.apply(pod("p", container("c")))
    space.ready("p")
    process = subprocess.Popen(
        [KUBECTL, "-n", space.name, "port-forward", "pod/p", ":7777"],
        env=space.insula.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    found = re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", process.stdout.readline())
    assert found
    with socket.create_connection(("127.0.0.1", int(found.group(1))), 10) as connection:
        connection.sendall(b"x")
        said = process.stdout.read()
    process.wait(20)
    process.stdout.close()
    assert "failed to connect to localhost:7777" in said and "refused" in said.lower()


def test_a_pod_that_does_not_run_has_no_ports(space: Space) -> None:
    space.apply(pod("p", {**container("c"), "image": "nosuch:1", "imagePullPolicy": "Never"}))
    assert "unable to forward port because pod is not running" in space.fails("port-forward", "pod/p", ":80")


# --- proxy ------------------------------------------------------------------------------------------------------


def test_a_pods_web_server_is_reached_through_the_api(space: Space) -> None:
    script = (
        "mkdir -p /www/cgi-bin; echo hello > '/www/a b'; cd /www/cgi-bin; (echo '#!/bin/sh';"
        " echo 'echo Content-Type: text/plain; echo; echo $REQUEST_METHOD $QUERY_STRING; cat') > e; chmod +x e;"
        " httpd -p 8080 -h /www; trap exit TERM; sleep 1000 & wait"
    )
    space.apply(pod("web", container("c", script, ports=[{"containerPort": 8080}])))
    space.ready("web")
    base = f"/api/v1/namespaces/{space.name}/pods"
    for name in ("web", "web:8080", "http:web:8080", "http:web:"):
        until(lambda name=name: space.text("get", "--raw", f"{base}/{name}/proxy/a%20b") == "hello")
    posted = _asked(space, "POST", f"{base}/web/proxy/cgi-bin/e?x=1&y=%2F", b"x" * 100_000)
    assert posted[2] == b"POST x=1&y=%2F\n" + b"x" * 100_000
    assert "the server could not find the requested resource" in space.fails("get", "--raw", f"{base}/web/proxy/no")
    assert "Connect call failed" in space.fails("get", "--raw", f"{base}/web:9/proxy/")
    assert "must be NAME" in space.fails("get", "--raw", f"{base}/ftp:web:80/proxy/")
    assert "a number from 1 to 65535" in space.fails("get", "--raw", f"{base}/web:http/proxy/")
    assert 'pods "none" not found' in space.fails("get", "--raw", f"{base}/none/proxy/")
    denied = ("--as=system:serviceaccount:default:nobody", "get", "--raw", f"{base}/web/proxy/")
    assert 'cannot get resource "pods/proxy"' in space.fails(*denied)


def test_a_redirect_of_a_pod_stays_inside_of_the_proxy(space: Space) -> None:
    script = "mkdir -p /www/sub; echo in > /www/sub/index.html; httpd -p 80 -h /www; trap exit TERM; sleep 1000 & wait"
    space.apply(pod("web", container("c", script)))
    space.ready("web")
    path = f"/api/v1/namespaces/{space.name}/pods/web/proxy/sub"
    status, location, _ = until(lambda: (said := _asked(space, "GET", path))[0] != 503 and said)
    assert (status, location) == (302, f"{path}/")
    assert _asked(space, "GET", location)[2] == b"in\n"


def _asked(space: Space, method: str, path: str, body: bytes = b"") -> tuple[int, str, bytes]:
    """Status, Location and body of what the API answers to the namespace's account."""
    token = space.text("create", "token", "default")
    space.run(
        "create",
        "rolebinding",
        "r",
        "--clusterrole=cluster-admin",
        f"--serviceaccount={space.name}:default",
        check=None,
    )
    address = json.loads(space.text("config", "view", "-o", "json"))["clusters"][0]["cluster"]["server"].rpartition(
        "/"
    )[2]
    connection = http.client.HTTPSConnection(address, context=ssl._create_unverified_context(), timeout=20)
    try:
        connection.request(method, path, body or None, {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Location", ""), answer.read()
    finally:
        connection.close()
