"""A real engine behind a real Docker door, in a process of its own, and the unmodified clients that talk to it.

Run as a program (`python docker_support.py FOLDER TAG`) this file is that process: it says `ready` when the door is open, and
on SIGTERM destroys everything that it made.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import json
import logging
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import owned

DOCKER = shutil.which("docker")
# Made by scripts/cli-plugins.sh.
PLUGINS = Path(os.environ.get("INSULA_CLI_PLUGINS", "/var/cache/insula-tests/cli-plugins"))
IMAGE = "busybox"


class Answer:
    """What a raw request was answered."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The sentence of an error in Docker's form."""
        assert set(self.json) == {"message"}, self.json
        return str(self.json["message"])


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


class Daemon:
    """One running engine with its door."""

    def __init__(self) -> None:
        self.tag = secrets.token_hex(3)
        self.folder = Path(tempfile.gettempdir()) / f"insula-dd-{self.tag}"
        owned.note("d" + self.tag[:5], f"docker_{self.tag}", f"docker-{self.tag}")
        self.folder.mkdir()
        self.socket = self.folder / "docker.sock"
        self.log = self.folder / "log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when the door is open."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DOCKER_CONFIG": str(self.folder)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(self.folder), self.tag],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], 30)
        line = self._process.stdout.readline() if readable else ""
        assert line == "ready\n", self.log.read_text()[-3000:]

    def stop(self) -> None:
        """Destroys everything; fails when the daemon had to be killed or logged a traceback."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            log = self.log.read_text()
            shutil.rmtree(self.folder, ignore_errors=True)
        assert "Traceback" not in log, log[-4000:]

    def restart_killed(self) -> None:
        """kill -9, and start again on the same folder."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.socket.unlink()
        self.start()

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """What points a client here."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(self.folder / "client"),
        }

    def docker(
        self,
        *arguments: str,
        input: bytes | str | None = None,
        check: int | None = 0,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the docker CLI; `check` is the exit code that is expected."""
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            [DOCKER or "docker", *arguments],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout_s,
            env={**self.environment, **(env or {})},
            check=False,
        )
        if check is not None:
            assert done.returncode == check, (arguments, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done

    def text(self, *arguments: str, **more: Any) -> str:
        """The stdout of the docker CLI, stripped."""
        return self.docker(*arguments, **more).stdout.decode().strip()

    def popen(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start the docker CLI."""
        return subprocess.Popen([DOCKER or "docker", *arguments], env=self.environment, **more)

    def plug(self, plugin: str) -> None:
        """Give the CLI of this daemon one of the plugins `docker-buildx`, `docker-compose`; skips the test without it."""
        import pytest  # not in the daemon's process, which this file is as well

        folder = Path(self.environment["DOCKER_CONFIG"]) / "cli-plugins"
        source = PLUGINS / plugin
        if not os.access(source, os.X_OK):
            pytest.skip(f"{source} is missing: run scripts/cli-plugins.sh")
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (folder / plugin).symlink_to(source)

    def name(self) -> str:
        """A name that no other test has."""
        return f"t{secrets.token_hex(5)}"

    def api(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One raw request."""
        connection = UnixConnection(str(self.socket))
        try:
            sent = dict(headers or {})
            data = body
            if body is not None and not isinstance(body, bytes):
                data = json.dumps(body).encode()
                sent.setdefault("Content-Type", "application/json")
            connection.request(method, path, body=data, headers=sent)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def raw(self) -> socket.socket:
        """A bare connection."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(str(self.socket))
        return sock

    @contextlib.contextmanager
    def container(self, *arguments: str) -> Iterator[str]:
        """A container in the background: `docker run -d ARGUMENTS`; removed afterwards. Yields its name."""
        name = self.name()
        self.docker("run", "-d", "--name", name, *arguments)
        try:
            yield name
        finally:
            self.docker("rm", "-fv", name, check=None)


class Terminal:
    """The docker CLI on a pseudo-terminal, with someone typing."""

    def __init__(self, daemon: Daemon, *arguments: str, rows: int = 24, columns: int = 80) -> None:
        self._main, child = os.openpty()
        termios.tcsetwinsize(child, (rows, columns))
        self._process = subprocess.Popen(
            [DOCKER or "docker", *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            env=daemon.environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)
        self._seen = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._main)

    def send(self, data: bytes) -> None:
        """Type."""
        os.write(self._main, data)

    def resize(self, rows: int, columns: int) -> None:
        """Change the window."""
        termios.tcsetwinsize(self._main, (rows, columns))

    def expect(self, text: bytes, timeout_s: float = 20) -> None:
        """Until it was shown; what came before is forgotten."""
        assert self.shows(text, timeout_s), (text, self._seen)

    def shows(self, text: bytes, timeout_s: float) -> bool:
        """Whether it is shown in time."""
        deadline = time.monotonic() + timeout_s
        while text not in self._seen:
            left = deadline - time.monotonic()
            if left <= 0 or not self._more(left):
                return False
        self._seen = self._seen.partition(text)[2]
        return True

    def _more(self, timeout_s: float) -> bool:
        readable, _, _ = select.select([self._main], [], [], timeout_s)
        try:
            chunk = os.read(self._main, 65536) if readable else b""
        except OSError:  # nobody is at the other end any more
            return False
        self._seen += chunk
        return bool(chunk)

    def ends(self, timeout_s: float = 20) -> int:
        """The exit code."""
        deadline = time.monotonic() + timeout_s
        while self._more(max(0.0, deadline - time.monotonic())):
            pass
        return self._process.wait(timeout_s)


def running() -> Iterator[Daemon]:
    """For a fixture: one daemon, stopped afterwards."""
    daemon = Daemon()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


def until(test: Any, *, timeout_s: float = 15.0, what: str = "") -> Any:
    """Ask again until the answer is true."""
    deadline = time.monotonic() + timeout_s
    while not (answer := test()):
        assert time.monotonic() < deadline, f"never happened: {what or test}"
        time.sleep(0.02)
    return answer


# --- the process ------------------------------------------------------------------------------------------------


async def _serve(folder: Path, tag: str) -> None:
    from insula.api.docker.app import make_app, serve_unix
    from insula.api.docker.door import NodeInfo
    from insula.engine.node import NodeEngine
    from insula.engine.settings import EnginePaths, EngineSettings

    octets = bytes.fromhex(tag)
    settings = EngineSettings(
        prefix="d" + tag[:5],
        table=f"docker_{tag}",
        cgroup=f"docker-{tag}",
        default_subnet=f"10.{octets[0]}.{octets[1]}.0/24",
    )
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    engine = await NodeEngine.open(EnginePaths(data=folder / "d", runtime=folder / "r"), settings)
    await engine.recover()
    if not await engine.images.list():
        await engine.images.add_demo()
    info = NodeInfo(id=tag, name="testnode", version="0.1.0", data_root=str(folder / "d"))
    served = await serve_unix(make_app(engine, info=info), folder / "docker.sock")
    print("ready", flush=True)
    await ending.wait()
    await served.close()
    await engine.destroy()


if __name__ == "__main__":
    import uvloop

    logging.basicConfig(level=logging.INFO)
    uvloop.run(_serve(Path(sys.argv[1]), sys.argv[2]))
