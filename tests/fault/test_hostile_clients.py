"""Clients that do not behave: half requests, thousands of idle connections, leaving in the middle of every stream, one name asked
for by many. The daemon answers the others meanwhile and holds nothing for those who left."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fault.fault_support import DOCKER, IMAGE, KUBECTL, Answer, Island, running, unharmed, until
from insula.api.web import HEAD_S

pytestmark = [pytest.mark.root, pytest.mark.may_block]

POD = {
    "metadata": {"name": "p", "labels": {"app": "p"}},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {"name": "c", "image": IMAGE, "imagePullPolicy": "Never", "tty": False, "stdin": True,
             "command": ["sh", "-c", "httpd -h /etc; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done"]}],
    },
}  # fmt: skip
PODS = "/api/v1/namespaces/default/pods"


class Silent:
    """Connections made early that never end the head of their request, at both doors."""

    def __init__(self, island: Island) -> None:
        self.began = time.monotonic()
        self.sockets = [
            island.docker_socket(),
            island.docker_socket(),
            island.kube_socket(),
            island.kube_socket(tls=False),
        ]
        for sock, data in zip(
            self.sockets, (b"", b"GET /info HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x", b""), strict=True
        ):
            sock.sendall(data)


_silent: list[Silent] = []


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    for island in running():
        _silent[:] = [Silent(island)]
        loop = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done"
        island.docker("run", "-d", "-i", "--name", "c", IMAGE, "sh", "-c", loop)
        assert island.kube_api("POST", PODS, POD).status == 201
        until(lambda island=island: island.kube_api("GET", f"{PODS}/p").json["status"].get("phase") == "Running")
        yield island


def answers(island: Island, within_s: float = 2.0) -> None:
    """Both doors, to somebody else."""
    began = time.monotonic()
    assert island.docker_api("GET", "/containers/json").status == 200
    assert island.kube_api("GET", "/api/v1/namespaces/default").status == 200
    assert time.monotonic() - began < within_s


# --- what is hardly HTTP ------------------------------------------------------------------------------------------

HALF = [
    b"", b"G", b"GET /containers/json HTTP/1.1\r\n", b"GET /containers/json HTTP/1.1\r\nHost: x\r\n",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
    b"POST /images/load HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nabc",
    b"PUT /containers/c/archive?path=/tmp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
]  # fmt: skip
WRONG = [
    b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET / HTTP/9.9\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"A" * 100_000, b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 50_000 + b"\r\n", b"GET / HTTP/1.1\r\nX-A: " + b"b" * 1_000_000 + b"\r\n\r\n",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nx",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://user:pw@other:99999/info HTTP/1.1\r\nHost: x\r\n\r\n", b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET //containers//json HTTP/1.1\r\nHost: x\r\n\r\n", b"GET containers/json HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /_ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET /_ping HTTP/1.1\r\n Host: folded\r\n\r\n",
    b"GET /_ping HTTP/1.1\r\nHost : x\r\n\r\n", b"GET /_ping?a=%zz&b=%ff%00&c HTTP/1.1\r\nHost: x\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("door", ["docker", "kube"])
def test_what_is_no_http_is_refused(island: Island, door: str) -> None:
    connect = island.docker_socket if door == "docker" else island.kube_socket
    with unharmed(island):
        for data in WRONG:
            with contextlib.closing(connect(5)) as sock:
                with contextlib.suppress(ConnectionError, BrokenPipeError):
                    sock.sendall(data)
                if door == "docker":
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    answer = sock.recv(65536)
                    head = answer.split(b"\r\n", 1)[0]
                    assert not head or head.split()[1][:1] in (b"2", b"3", b"4"), (data[:100], answer[:500])
        answers(island)
    assert island.tracebacks() == []


def test_no_host_is_needed(island: Island) -> None:
    """HTTP/1.0 without Host, as some health checks speak."""
    with contextlib.closing(island.docker_socket()) as sock:
        sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.0 200")


def test_half_requests_and_idle_crowds_hold_nobody_up(island: Island) -> None:
    """Slow-loris at both doors, 1,500 silent connections each, half of them left without a word."""
    with unharmed(island, grown_mib=250):
        sockets: list[socket.socket] = []
        try:
            for number in range(1500):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.connect(str(island.paths.docker_socket))
                sock.send(HALF[number % len(HALF)])
                sockets.append(sock)
                if number % 3 == 0:
                    sockets.append(island.kube_socket(tls=False))
                    with contextlib.suppress(OSError):
                        sockets[-1].send([b"", b"\x16", b"GET / HTTP/1.1\r\n"][number % 9 // 3])
            answers(island, 4)
            for sock in sockets[::2]:
                sock.close()
            answers(island, 4)
            island.docker("run", "--rm", "--network", "none", IMAGE, "true")
        finally:
            for sock in sockets:
                sock.close()
    answers(island)


def test_half_closed_connections(island: Island) -> None:
    """An end of file outside of a hijacked stream is the client's leaving, which cannot be told from half a close."""
    with unharmed(island):
        sockets = [
            raw(island, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            for path in ("/events", "/containers/c/logs?stdout=1&follow=1", "/containers/c/stats") * 30
        ]
        for sock in sockets:
            sock.shutdown(socket.SHUT_WR)
        answers(island)
        for sock in sockets:
            with contextlib.suppress(ConnectionError):
                while sock.recv(1 << 20):
                    pass
            sock.close()
    assert island.tracebacks() == []


# --- leaving in the middle ----------------------------------------------------------------------------------------

CLI = [
    (DOCKER, "attach", "--sig-proxy=false", "c"), (DOCKER, "logs", "-f", "c"), (DOCKER, "events"), (DOCKER, "stats", "c"),
    (DOCKER, "exec", "-i", "c", "cat"), (DOCKER, "wait", "c"),
    (KUBECTL, "logs", "-f", "p"), (KUBECTL, "attach", "-i", "p"), (KUBECTL, "get", "pods", "-w"),
    (KUBECTL, "exec", "-i", "p", "--", "cat"),
    (KUBECTL, "port-forward", "--address=127.0.0.1", "pod/p", ":80"),
]  # fmt: skip


def test_clients_killed_in_the_middle_of_a_stream(island: Island) -> None:
    """Every stream of both doors, by the real clients, killed without a word; also its processes are gone."""
    with unharmed(island):
        clients = [island.popen(*argv, stdin=subprocess.PIPE) for argv in CLI]
        try:
            time.sleep(1.5)
            answers(island)
        finally:
            for client in clients:
                client.kill()
                client.wait()
                assert client.stdin is not None
                client.stdin.close()
    answers(island)
    assert island.inspect("c")["State"]["Running"]
    assert island.kube_api("GET", f"{PODS}/p").json["status"]["phase"] == "Running"
    assert island.tracebacks() == []


def raw(island: Island, request: bytes, kube: bool = False) -> socket.socket:
    sock = island.kube_socket() if kube else island.docker_socket()
    sock.sendall(request)
    return sock


def test_connections_cut_in_the_middle(island: Island) -> None:
    """Uploads, downloads and upgrades, torn after a few bytes, many times."""
    archive = island.docker("save", IMAGE).stdout
    length = f"Content-Length: {len(archive)}".encode()
    key = base64.b64encode(os.urandom(16))
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key
    torn: list[tuple[bytes, bool]] = [
        (b"POST /images/load HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n" + archive[:300_000], False),
        (b"POST /images/create?fromSrc=-&repo=torn HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n" + archive[:5000], False),
        (b"PUT /containers/c/archive?path=/tmp HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n" + archive[:100_000], False),
        (b"POST /build?t=torn HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\n" + length + b"\r\n\r\n"
         + archive[:100_000], False),
        (b"POST /build?t=torn HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n" + archive[:200], False),
        (f"GET /images/{IMAGE}/get HTTP/1.1\r\nHost: x\r\n\r\n".encode(), False),
        (b"GET /containers/c/export HTTP/1.1\r\nHost: x\r\n\r\n", False),
        (b"GET /containers/c/archive?path=/bin HTTP/1.1\r\nHost: x\r\n\r\n", False),
        (b"GET /containers/c/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: x\r\n\r\n", False),
        (b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n", False),
        (b"POST /containers/c/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
         b"Upgrade: tcp\r\n\r\n", False),
        (b"GET /containers/c/attach/ws?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n\r\n", False),
        (b"GET /api/v1/pods?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n", True),
        (f"GET {PODS}/p/log?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode(), True),
        (f"GET {PODS}/p/exec?command=cat&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n".encode() + upgrade
         + b"\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n", True),
        (f"GET {PODS}/p/portforward?ports=80 HTTP/1.1\r\nHost: x\r\n".encode() + upgrade
         + b"\r\nSec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n\r\n\x82\x05hello", True),
        (f"POST {PODS} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{\"kind\":".encode(), True),
    ]  # fmt: skip
    with unharmed(island):
        for _ in range(4):
            sockets = [raw(island, request, kube) for request, kube in torn]
            time.sleep(0.05)
            for sock in sockets:
                sock.close()
        answers(island)
    assert b"torn" not in island.docker("images").stdout
    assert island.tracebacks() == []


def test_readers_that_do_not_read(island: Island) -> None:
    """Output and events that nobody takes are not piled up."""
    with unharmed(island, grown_mib=60):
        sockets = [raw(island, b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(20)]
        sockets += [
            raw(island, f"GET {PODS}?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode(), kube=True) for _ in range(20)
        ]
        body = b'{"Cmd":["sh","-c","cat /dev/zero"],"AttachStdout":true}'
        made = island.docker_api("POST", "/containers/c/exec", body)
        head = "Host: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        sockets.append(raw(island, f"POST /exec/{made.json['Id']}/start HTTP/1.1\r\n{head}".encode()))
        try:
            for number in range(150):
                change = {"metadata": {"annotations": {"n": str(number) + "x" * 20_000}}}
                assert (
                    island.kube_api("PATCH", f"{PODS}/p", change, Content_Type="application/merge-patch+json").status
                    == 200
                )
            answers(island)
        finally:
            for sock in sockets:
                sock.close()
    assert island.tracebacks() == []


# --- one name -----------------------------------------------------------------------------------------------------


def at_once(count: int, work: Any) -> list[Answer]:
    barrier = threading.Barrier(count)

    def one(_: int) -> Answer:
        barrier.wait()
        found: Answer = work()
        return found

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


MACHINE = {
    "spec": {"runStrategy": "Halted", "template": {"spec": {"domain": {"devices": {}, "memory": {"guest": "64Mi"}}}}}
}


@pytest.mark.parametrize(
    ("kube", "path", "body", "codes"),
    [
        (False, "/containers/create?name=same", {"Image": IMAGE}, (201, 409)),
        (False, "/networks/create", {"Name": "same", "CheckDuplicate": True}, (201, 409)),
        (False, "/volumes/create", {"Name": "same"}, (201, 201)),
        (True, PODS, {"metadata": {"name": "same"}, "spec": POD["spec"]}, (201, 409)),
        (
            True,
            "/apis/kubevirt.io/v1/namespaces/default/virtualmachines",
            {**MACHINE, "metadata": {"name": "same"}},
            (201, 409),
        ),
        (True, "/api/v1/namespaces", {"metadata": {"name": "same"}}, (201, 409)),
    ],
)
def test_many_ask_for_one_name(
    island: Island, kube: bool, path: str, body: dict[str, Any], codes: tuple[int, int]
) -> None:
    send = island.kube_api if kube else island.docker_api
    found = at_once(12, lambda: send("POST", path, body))
    assert sorted(answer.status for answer in found) == sorted([codes[0], *[codes[1]] * 11])
    for answer in found:
        if answer.status == 409:
            assert "same" in (answer.kube_message if kube else answer.docker_message)
    if not kube:
        listed = island.docker_api(
            "GET", path.partition("?")[0].replace("/create", "/json?all=1" if "containers" in path else "")
        ).json
        listed = listed["Volumes"] if isinstance(listed, dict) else listed
        assert sum("same" in str(each.get("Names") or each.get("Name")) for each in listed) == 1
    path = path.partition("?")[0].replace("/create", "")
    assert send("DELETE", f"{path}/same").status in (200, 202, 204)


def test_one_container_started_and_removed_by_many(island: Island) -> None:
    for _ in range(3):
        island.docker("create", "--name", "one", "-v", "/v", "-p", "127.0.0.1::80", IMAGE, "sleep", "60")
        started = at_once(8, lambda: island.docker_api("POST", "/containers/one/start"))
        assert {answer.status for answer in started} <= {204, 304}
        removed = at_once(8, lambda: island.docker_api("DELETE", "/containers/one?force=1&v=1"))
        assert {answer.status for answer in removed} <= {204, 404, 409} and 204 in {answer.status for answer in removed}
        until(lambda: island.docker_api("GET", "/containers/one/json").status == 404)
    assert island.tracebacks() == []


def test_silent_connections_are_closed(island: Island) -> None:
    """Begun with the module's Insula, so that most of the wait is over by now."""
    (silent,) = _silent
    for sock in silent.sockets:
        sock.settimeout(max(HEAD_S + 10 - (time.monotonic() - silent.began), 5))
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""
        sock.close()
    assert time.monotonic() - silent.began < HEAD_S + 10
