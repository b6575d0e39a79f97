"""What a hostile or careless client sends: each gets a clear sentence in Docker's form, nothing leaks, nothing is lost."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from door.docker_support import IMAGE, Answer, Daemon, running, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


@pytest.fixture
def sleeper(daemon: Daemon) -> Iterator[str]:
    made = daemon.api(
        "POST", "/containers/create", {"Image": IMAGE, "Cmd": ["sleep", "300"], "HostConfig": {"NetworkMode": "none"}}
    )
    id = made.json["Id"]
    daemon.api("POST", f"/containers/{id}/start")
    yield id
    daemon.api("DELETE", f"/containers/{id}?force=1")


def create(daemon: Daemon, body: Any, name: str = "", **more: Any) -> Answer:
    return daemon.api("POST", f"/v1.50/containers/create{'?name=' + name if name else ''}", body, **more)


def open_files(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "invalid JSON"),
        (b"[]", "invalid JSON: the body must be an object"),
        (b'"x"', "invalid JSON: the body must be an object"),
        (b"{}", "config cannot be empty in order to create a container"),
        (b"\xff\xfe", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"a":' * 50_000, "invalid JSON"),
        (b'{"Image": 5}', "invalid JSON: Image: expected str, got int"),
        (b'{"Image": "x", "Cmd": {"a": 1}}', "invalid JSON: Cmd: expected"),
        (b'{"Image": "x", "Cmd": [1]}', "invalid JSON: Cmd[0]: expected str, got int"),
        (b'{"Image": "x", "HostConfig": {"Memory": "1g"}}', "invalid JSON: HostConfig.Memory: expected int, got str"),
        (b'{"Image": "x", "HostConfig": []}', "invalid JSON: HostConfig: expected object, got array"),
        (b'{"Image": "x", "Labels": {"a": 1}}', "invalid JSON: Labels[...]: expected str, got int"),
        (b'{"Image": "x", "HostConfig": {"PortBindings": {"99999/tcp": [{}]}}}', "invalid port specification"),
        (b'{"Image": "x", "HostConfig": {"NetworkMode": "a:b"}}', "invalid network mode: a:b"),
        (b'{"Cmd": ["x"]}', "a container needs an image"),
    ],
)  # fmt: skip
def test_bodies(daemon: Daemon, body: bytes, sentence: str) -> None:
    answer = create(daemon, body, headers={"Content-Type": "application/json"})
    assert answer.status == 400 and sentence in answer.message, answer.body[:300]


def test_other_content_types_are_refused(daemon: Daemon) -> None:
    answer = create(daemon, b"a=b", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status == 400 and "must be 'application/json'" in answer.message


def test_unknown_fields_and_nulls_do_no_harm(daemon: Daemon) -> None:
    body = {
        "image": IMAGE,
        "Cmd": None,
        "NoSuchField": {"x": [1]},
        "Env": None,
        "HostConfig": {"Memory": None, "Zzz": 1},
    }
    answer = create(daemon, body)
    assert answer.status == 201
    daemon.api("DELETE", f"/containers/{answer.json['Id']}")


def test_a_body_over_the_limit(daemon: Daemon) -> None:
    answer = create(daemon, {"Image": IMAGE, "Env": ["A=" + "x" * (11 << 20)]})
    assert answer.status == 413 and "over the limit" in answer.message
    with daemon.raw() as sock:
        sock.sendall(
            b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        try:
            for _ in range(12):
                sock.sendall(chunk)
        except OSError:
            pass
        assert b" 413 " in sock.recv(4096)


@pytest.mark.parametrize("name", ["a%2Fb", "..", "-x", "%20", "a" * 300, "%00", "a%0Ab", "%F0%9F%98%80"])
def test_names(daemon: Daemon, name: str) -> None:
    answer = create(daemon, {"Image": IMAGE}, name)
    sentence = "NUL byte" if name == "%00" else "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    assert answer.status == 400 and sentence in answer.message


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("GET", "/nosuch", 404, "page not found"),
        ("PATCH", "/containers/json", 404, "page not found"),
        ("GET", "/v9.9/info", 400, "client version 9.9 is too new"),
        ("GET", "/v1.1/info", 400, "client version 1.1 is too old"),
        ("GET", "/v1.x/info", 404, "page not found"),
        ("GET", "/containers/..%2f..%2fetc/json", 404, "page not found"),
        ("GET", "/containers/json?limit=x", 400, "is not a whole number"),
        ("GET", "/containers/json?filters=%7B", 400, "invalid filter"),
        ("GET", "/containers/json?filters=%7B%22name%22%3A5%7D", 400, "invalid filter"),
        ("GET", "/containers/json?filters=%7B%22name%22%3A%5B%22(a%2B)%2B%24%22%5D%7D", 400, "too complex"),
        ("GET", "/containers/json?filters=%7B%22status%22%3A%5B%22x%22%5D%7D", 400, "invalid filter 'status=x'"),
        ("GET", "/containers/x/logs", 400, "you must choose at least one stream"),
        ("POST", "/containers/x/start", 404, "No such container: x"),
        ("POST", "/containers/x/wait?condition=never", 400, 'invalid condition: "never"'),
        ("POST", "/containers/x/resize?h=99999&w=1", 400, "a terminal cannot be"),
        ("GET", "/images/..%2F..%2Fetc%2Fpasswd/json", 400, "invalid reference format"),
        ("DELETE", "/volumes/..%2F..%2Fetc", 404, "page not found"),
        ("GET", "/exec/zz/json", 404, "No such exec instance: zz"),
        ("POST", "/images/create", 400, "either fromImage or fromSrc must be given"),
        ("POST", "/images/create?fromImage=Bad..Name&tag=x", 400, "invalid reference format"),
        ("GET", "/images/get?names=no/such", 404, "No such image"),
        ("GET", "/events?since=x", 400, "is neither a time nor a duration"),
        ("GET", "/events?filters=%7B%22zz%22%3A%5B%5D%7D", 400, "invalid filter 'zz'"),
        ("GET", "/system/df?type=zz", 400, "unknown object type: zz"),
        (
            "POST",
            "/containers/prune?filters=%7B%22until%22%3A%5B%22zz%22%5D%7D",
            400,
            "is neither a time nor a duration",
        ),
        ("POST", "/build", 400, "Cannot locate specified Dockerfile: Dockerfile"),
        ("POST", "/build?buildargs=x", 400, "error reading buildargs"),
        ("POST", "/session", 400, "X-Docker-Expose-Session-Uuid"),
        ("GET", "/services", 503, "not a swarm manager"),
        ("POST", "/swarm/init", 503, "not a swarm manager"),
        ("GET", "/secrets", 503, "not a swarm manager"),
        ("GET", "/distribution/127.0.0.1:9/x/json", 503, "connection refused"),
    ],
)
def test_requests(daemon: Daemon, method: str, path: str, status: int, sentence: str) -> None:
    answer = daemon.api(method, path)
    assert (answer.status, sentence in answer.message) == (status, True), answer.body


@pytest.mark.parametrize("header", ["%%%", "bm90anNvbg==", "eyJ1c2VybmFtZSI6NX0="])
def test_credentials_that_are_none(daemon: Daemon, header: str) -> None:
    answer = daemon.api("POST", "/images/create?fromImage=127.0.0.1:1/x", headers={"X-Registry-Auth": header})
    assert answer.status == 400 and "X-Registry-Auth" in answer.message


def test_every_answer_carries_the_headers(daemon: Daemon) -> None:
    for method, path in (("GET", "/_ping"), ("HEAD", "/_ping"), ("GET", "/nosuch"), ("GET", "/v1.44/info")):
        answer = daemon.api(method, path)
        assert answer.headers["Api-Version"] == "1.51" and answer.headers["Ostype"] == "linux"
        assert answer.headers["Docker-Experimental"] == "false" and answer.headers["Server"].startswith("Insula/")
    assert daemon.api("GET", "/_ping").body == b"OK"


def test_what_is_no_http(daemon: Daemon) -> None:
    for junk in (b"\0" * 100 + b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", os.urandom(2000) + b"\r\n\r\n"):
        with daemon.raw() as sock:
            sock.sendall(junk)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
    assert daemon.api("GET", "/_ping").status == 200


# --- archives ---------------------------------------------------------------------------------------------------


def _tar(*members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return out.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = 1 if kind == tarfile.REGTYPE else 0
    return info


def test_archives_cannot_leave_the_container(daemon: Daemon, sleeper: str) -> None:
    mark = f"/tmp/escaped-{daemon.tag}"
    attacks = (
        _tar(_member(f"../../../../../../..{mark}")),
        _tar(_member(mark)),
        _tar(_member("link", tarfile.SYMTYPE, "/tmp"), _member(f"link/escaped-{daemon.tag}")),
        _tar(_member("hard", tarfile.LNKTYPE, "/etc/hostname")),
    )
    for attack in attacks:
        answer = daemon.api("PUT", f"/containers/{sleeper}/archive?path=/root", attack)
        assert answer.status in (200, 400, 403, 404), answer.body
        assert not os.path.exists(mark)
    for junk in (b"", b"not a tar" * 1000, _tar(_member("a"))[:700]):
        answer = daemon.api("PUT", f"/containers/{sleeper}/archive?path=/root", junk)
        assert answer.status < 500, answer.body
    assert daemon.api("PUT", f"/containers/{sleeper}/archive?path=/no/such", _tar()).status == 404


def test_archives_that_are_no_images(daemon: Daemon) -> None:
    for junk in (b"", b"x" * 5000, _tar(_member("manifest.json")), _tar(_member("../manifest.json"))):
        answer = daemon.api("POST", "/images/load", junk, headers={"Content-Type": "application/x-tar"})
        assert answer.status == 200 and b'"errorDetail":{"message":"' in answer.body, answer.body
    assert open_files(daemon) < 200


# --- connections that break -------------------------------------------------------------------------------------


def _upgrade(sock: socket.socket, path: str, body: bytes = b"", upgrade: bool = True) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    if upgrade:
        head += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
    sock.sendall(head.encode() + b"\r\n" + body)
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = sock.recv(1)
        assert chunk, answer
        answer += chunk
    return answer


def test_both_forms_of_hijacking(daemon: Daemon) -> None:
    for upgrade, line in ((True, b"HTTP/1.1 101 UPGRADED\r\n"), (False, b"HTTP/1.1 200 OK\r\n")):
        body = {
            "Image": IMAGE,
            "Cmd": ["cat"],
            "OpenStdin": True,
            "StdinOnce": True,
            "HostConfig": {"NetworkMode": "none"},
        }
        id = create(daemon, body).json["Id"]
        with daemon.raw() as sock:
            head = _upgrade(sock, f"/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1", upgrade=upgrade)
            assert head.startswith(line) and b"application/vnd.docker.multiplexed-stream" in head
            assert daemon.api("POST", f"/containers/{id}/start").status == 204
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            got = b""
            while chunk := sock.recv(4096):
                got += chunk
        assert got == b"\x01\0\0\0\0\0\0\x05hello"
        assert daemon.api("POST", f"/containers/{id}/wait").json["StatusCode"] == 0
        daemon.api("DELETE", f"/containers/{id}")


def test_a_client_that_leaves_in_the_middle_of_attach(daemon: Daemon, sleeper: str) -> None:
    before = open_files(daemon)
    socks = []
    for _ in range(5):
        sock = daemon.raw()
        _upgrade(sock, f"/containers/{sleeper}/attach?stream=1&stdin=1&stdout=1&stderr=1")
        socks.append(sock)
    until(lambda: open_files(daemon) >= before + 5)
    for sock in socks:
        sock.close()
    until(lambda: open_files(daemon) <= before)
    assert json.loads(daemon.api("GET", f"/containers/{sleeper}/json").body)["State"]["Running"]


def test_a_client_that_does_not_read_slows_only_itself(daemon: Daemon) -> None:
    body = {"Image": IMAGE, "Cmd": ["cat", "/dev/zero"], "HostConfig": {"NetworkMode": "none"}}
    id = create(daemon, body).json["Id"]
    with daemon.raw() as sock:
        _upgrade(sock, f"/containers/{id}/attach?stream=1&stdout=1")
        daemon.api("POST", f"/containers/{id}/start")
        for _ in range(20):
            assert daemon.api("GET", "/_ping").status == 200
        with open(f"/proc/{daemon.pid}/statm") as file:
            resident = int(file.read().split()[1]) * 4096
        assert resident < 400 << 20
    daemon.api("DELETE", f"/containers/{id}?force=1")


def test_requests_that_are_cut_off_are_finished(daemon: Daemon) -> None:
    """The client leaves while its container starts: it starts all the same, wholly."""
    id = create(daemon, {"Image": IMAGE, "Cmd": ["sleep", "60"], "HostConfig": {"NetworkMode": "none"}}).json["Id"]
    with daemon.raw() as sock:
        sock.sendall(f"POST /containers/{id}/start HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n".encode())
    until(lambda: daemon.api("GET", f"/containers/{id}/json").json["State"]["Running"])
    assert daemon.api("DELETE", f"/containers/{id}?force=1").status == 204


def test_two_clients_create_one_name(daemon: Daemon) -> None:
    name, answers = daemon.name(), []
    body = {"Image": IMAGE, "HostConfig": {"NetworkMode": "none"}}
    threads = [threading.Thread(target=lambda: answers.append(create(daemon, body, name))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7
    assert daemon.api("DELETE", f"/containers/{name}").status == 204


def test_a_wait_sends_its_head_at_once(daemon: Daemon, sleeper: str) -> None:
    with daemon.raw() as sock:
        sock.sendall(
            f"POST /containers/{sleeper}/wait?condition=next-exit HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n".encode()
        )
        head = sock.recv(4096)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        daemon.api("POST", f"/containers/{sleeper}/kill")
        rest = head.partition(b"\r\n\r\n")[2]
        while b"0\r\n\r\n" not in rest:
            rest += sock.recv(4096)
        assert b'{"StatusCode":137}' in rest


def test_attach_over_a_websocket(daemon: Daemon) -> None:
    body = {"Image": IMAGE, "Cmd": ["cat"], "OpenStdin": True, "HostConfig": {"NetworkMode": "none"}}
    id = create(daemon, body).json["Id"]
    daemon.api("POST", f"/containers/{id}/start")
    with daemon.raw() as sock:
        sock.sendall(
            f"GET /containers/{id}/attach/ws?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 101 ")
        sock.sendall(b"\x82\x83\0\0\0\0hi\n")  # one masked binary message
        assert sock.recv(4096) == b"\x82\x03hi\n"
    daemon.api("DELETE", f"/containers/{id}?force=1")
