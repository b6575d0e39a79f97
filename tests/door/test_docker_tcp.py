"""The Docker door over TCP, by the unmodified docker CLI: TLS with client certificates, contexts, dial-stdio."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from door.cli_support import Home
from door.docker_support import PLUGINS

DOCKER = shutil.which("docker")
pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    made = Home()
    try:
        made.ok("up", "--detach", "--docker-host", "tcp://127.0.0.1:0")
        made.ok("image", "demo")
        yield made
    finally:
        made.destroy()


@pytest.fixture
def address(home: Home) -> str:
    [found] = home.json("status")["daemon"]["docker_tcp"]
    return str(found)


def docker(folder: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """The docker CLI with a configuration of its own."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "DOCKER_CONFIG": str(folder / "config"),
        **more.pop("env", {}),
    }
    return subprocess.run(["docker", *words], env=env, capture_output=True, timeout=60, check=False, **more)


def test_a_context_with_a_certificate(home: Home, tmp_path: Path) -> None:
    command = home.ok("docker", "context", "far", "--out", str(tmp_path / "far"), "--print").split()
    assert docker(tmp_path, *command[1:]).returncode == 0
    done = docker(tmp_path, "--context", "far", "version", "--format", "{{.Server.Version}}")
    assert done.stdout.strip(), done.stderr
    # Input ends by half of a close, and what is said after it still arrives.
    script = ("run", "-i", "--rm", "--network", "none", "busybox", "sh", "-c", "md5sum; sleep .2; echo end; exit 7")
    data = os.urandom(3_000_000)
    done = docker(tmp_path, "--context", "far", *script, input=data)
    expected = subprocess.run(["md5sum"], input=data, capture_output=True, check=True).stdout
    assert (done.stdout, done.returncode) == (expected + b"end\n", 7)


def test_variables_instead_of_a_context(home: Home, address: str, tmp_path: Path) -> None:
    said = home.ok("docker", "cert", "alice", "--out", str(tmp_path / "alice"))
    assert address in said and "--tlsverify" in said
    env = {"DOCKER_HOST": address, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path / "alice")}
    big = docker(tmp_path, "run", "--rm", "--network", "none", "busybox", "head", "-c", "5000000", "/dev/zero", env=env)
    assert len(big.stdout) == 5_000_000


def test_a_build_over_tls(home: Home, address: str, tmp_path: Path) -> None:
    if not (PLUGINS / "docker-buildx").exists():
        pytest.skip(f"{PLUGINS}/docker-buildx is missing: run scripts/cli-plugins.sh")
    home.ok("docker", "cert", "builder", "--out", str(tmp_path / "cert"))
    (tmp_path / "config" / "cli-plugins").mkdir(parents=True)
    (tmp_path / "config" / "cli-plugins" / "docker-buildx").symlink_to(PLUGINS / "docker-buildx")
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM busybox\nCOPY blob /\nRUN --network=none md5sum /blob\n")
    data = os.urandom(5_000_000)
    (tmp_path / "context" / "blob").write_bytes(data)
    env = {"DOCKER_HOST": address, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path / "cert")}
    done = docker(tmp_path, "build", "--progress", "plain", str(tmp_path / "context"), env=env)
    assert hashlib.md5(data).hexdigest() in done.stderr.decode(), done.stderr[-2000:]


def test_nobody_else_comes_in(home: Home, address: str, tmp_path: Path) -> None:
    plain = docker(tmp_path, "-H", address, "version")
    assert b"Client sent an HTTP request to an HTTPS server" in plain.stderr and plain.returncode == 1
    home.ok("docker", "cert", "x", "--out", str(tmp_path / "x"))
    ca = ("--tlsverify", "--tlscacert", str(tmp_path / "x/ca.pem"))
    nobody = docker(tmp_path, "-H", address, *ca, "version")
    assert nobody.returncode == 1 and b"Server: Insula" not in nobody.stdout
    assert "Traceback" not in home.log()


def test_over_ssh_the_client_speaks_through_dial_stdio(home: Home, tmp_path: Path) -> None:
    """What `DOCKER_HOST=ssh://...` runs at the other end."""
    request = b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    line = home.ok("docker", "env").strip()
    assert line == f"export DOCKER_HOST=unix://{home.paths.docker_socket}"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DOCKER_HOST": line.partition("=")[2]}
    with subprocess.Popen(
        ["docker", "system", "dial-stdio"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(request)
        child.stdin.flush()
        said = child.stdout.read()
    assert said.startswith(b"HTTP/1.1 200 OK") and said.endswith(b"OK")


def test_plain_tcp_beyond_this_machine_is_refused(home: Home) -> None:
    other = Home()
    try:
        said = other.fails("up", "--detach", "--docker-host", "tcp://0.0.0.0:0", "--no-docker-tls")
        assert "without encryption" in said and "docker_plain_tcp" in said
        assert "is not an address" in other.fails("up", "--detach", "--docker-host", "0.0.0.0:2375")
    finally:
        other.destroy()
