"""A whole Insula below a folder of its own, started by its own command, that tests may ill-treat: raw requests at both doors, the
real clients, kill -9, and what it holds in the kernel."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import owned
from insula.cli import daemon
from insula.cli.demoimages import add_busybox, add_machine
from insula.cli.doors import docker as docker_door
from insula.cli.paths import paths_of

IMAGE = "insula/busybox"
TIMEOUT_S = 30.0
_BIN = Path(sys.executable).parent
DOCKER = shutil.which("docker") or "docker"
KUBECTL = shutil.which("kubectl", path=f"{_BIN}:{os.environ['PATH']}") or "kubectl"
_SOURCES = str(Path(__file__).parents[2] / "src")


class Answer:
    """What a raw request was answered."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def docker_message(self) -> str:
        """The sentence of an error in Docker's form."""
        found = self.json
        assert set(found) == {"message"} and isinstance(found["message"], str), found
        return str(found["message"])

    @property
    def kube_message(self) -> str:
        """The sentence of an error in Kubernetes' form."""
        found = self.json
        assert (found["kind"], found["apiVersion"], found["status"]) == ("Status", "v1", "Failure"), found
        assert found["code"] == self.status and found["reason"], found
        return str(found["message"])

    def __repr__(self) -> str:
        return f"{self.status} {self.body[:300]!r}"


class _Connection(http.client.HTTPConnection):
    def __init__(self, connect: Callable[[], socket.socket], host: str) -> None:
        super().__init__(host, timeout=TIMEOUT_S)
        self._connect = connect

    def connect(self) -> None:
        self.sock = self._connect()


class Island:
    """One Insula. `up` and `down` as often as wanted; `destroy` at the end."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="insula-f-"))
        self.paths = paths_of(str(self.folder))
        owned.note_root(self.folder)
        self.client = Path(tempfile.mkdtemp(prefix="insula-fc-"))
        self.prefix: tuple[str, ...] = ()  # what its command is run by
        self._context: ssl.SSLContext | None = None
        self._numbers = iter(range(1 << 30))

    # --- its life

    def insula(self, *arguments: str, check: bool = True, env: Mapping[str, str] | None = None) -> str:
        """The `insula` command for this root; its output."""
        done = subprocess.run(
            [*self.prefix, sys.executable, "-m", "insula.cli", "--root", str(self.folder), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": _SOURCES, **(env or {})},
            check=False,
        )
        if check:
            assert done.returncode == 0, (arguments, done.stdout, done.stderr, self.log()[-3000:])
        return done.stdout + done.stderr

    def up(self, crash_at: str = "") -> None:
        """Start it in the background; ready when this returns."""
        self.insula("up", "--detach", env={"INSULA_CRASH_AT": crash_at} if crash_at else None)
        self._context = None

    def down(self) -> None:
        """Stop the daemon; workloads go on."""
        self.insula("down")

    def destroy(self) -> None:
        """Stop everything and delete the folder."""
        try:
            self.insula("down", "--all")
            assert self.traces() == {}
        finally:
            if keep := os.environ.get("INSULA_KEEP_LOG"):
                shutil.copy(self.paths.log, keep)
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.client, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The daemon's process, which leads its process group."""
        found = daemon.serving(self.paths)
        assert found is not None, f"the daemon has died: {self.log()[-3000:]}"
        return found.pid

    @property
    def alive(self) -> bool:
        return daemon.serving(self.paths) is not None

    def kill(self) -> None:
        """kill -9 of the whole process group."""
        os.killpg(self.pid, signal.SIGKILL)
        until(lambda: not self.alive, what="the daemon is dead")

    def died(self) -> None:
        """Wait until it has killed itself at a crash point."""
        until(lambda: not self.alive, what="the crash point is reached")

    def log(self) -> str:
        return self.paths.log.read_text(errors="replace") if self.paths.log.exists() else ""

    def tracebacks(self) -> list[str]:
        """What the daemon did not foresee, as its log has it."""
        return [part[:3000] for part in self.log().split("\nTraceback")[1:]]

    def add_busybox(self) -> None:
        """Give it `insula/busybox` and `busybox`."""

        async def work() -> None:
            async with docker_door(self.paths) as door:
                await add_busybox(door)

        asyncio.run(work())

    def add_machine(self) -> None:
        """Give it `insula/linux`."""

        async def work() -> None:
            async with docker_door(self.paths) as door:
                await add_machine(door, self.paths, lambda _: None)

        asyncio.run(work())

    # --- its doors

    def name(self) -> str:
        """A name that nothing else here has."""
        return f"n{next(self._numbers)}"

    def docker_socket(self, timeout_s: float = TIMEOUT_S) -> socket.socket:
        """A bare connection to the Docker door."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        sock.connect(str(self.paths.docker_socket))
        return sock

    def kube_socket(self, timeout_s: float = TIMEOUT_S, *, tls: bool = True) -> socket.socket:
        """A bare connection to the Kubernetes door, as the administrator."""
        host, port = self._config()[0]
        sock = socket.create_connection((host, port), timeout=timeout_s)
        try:
            return self._tls().wrap_socket(sock, server_hostname=host) if tls else sock
        except BaseException:
            sock.close()
            raise

    def _config(self) -> tuple[tuple[str, int], dict[str, Any]]:
        config = yaml.safe_load(self.paths.kubeconfig.read_text())
        host, _, port = config["clusters"][0]["cluster"]["server"].removeprefix("https://").rpartition(":")
        return (host, int(port)), config

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            _, config = self._config()
            cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
            authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
            self._context = ssl.create_default_context(cadata=authority)
            pair = self.client / "admin.pem"
            parts = (user["client-certificate-data"], user["client-key-data"])
            pair.write_bytes(b"\n".join(base64.b64decode(part) for part in parts))
            self._context.load_cert_chain(pair)
        return self._context

    def docker_api(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One raw request to the Docker door."""
        return _request(_Connection(self.docker_socket, "docker"), method, path, body, headers)

    def kube_api(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One raw request to the Kubernetes door."""
        return _request(_Connection(self.kube_socket, "localhost"), method, path, body, headers)

    @property
    def environment(self) -> dict[str, str]:
        """What points the clients here."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.client),
            "DOCKER_HOST": f"unix://{self.paths.docker_socket}",
            "DOCKER_CONFIG": str(self.client),
            "KUBECONFIG": str(self.paths.kubeconfig),
        }

    def docker(
        self, *arguments: str, input: bytes | None = None, check: int | None = 0, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """The docker command; `check` is the exit code expected."""
        return self._run(DOCKER, arguments, input, check, timeout_s)

    def kubectl(
        self, *arguments: str, input: bytes | None = None, check: int | None = 0, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """The kubectl command."""
        return self._run(KUBECTL, arguments, input, check, timeout_s)

    def _run(
        self, program: str, arguments: tuple[str, ...], input: bytes | None, check: int | None, timeout_s: float
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [program, *arguments],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout_s,
            env=self.environment,
            check=False,
        )
        if check is not None:
            assert done.returncode == check, (arguments, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done

    def popen(self, program: str, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        """A client that is to be interrupted."""
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([program, *arguments], env=self.environment, **{**quiet, **more})

    def text(self, *arguments: str, **more: Any) -> str:
        """What `docker ...` prints, stripped."""
        return self.docker(*arguments, **more).stdout.decode().strip()

    def inspect(self, name: str) -> Any:
        """A container, as the Docker door describes it."""
        return self.docker_api("GET", f"/containers/{name}/json").json

    # --- what it holds

    def descriptors(self) -> int:
        """Open file descriptors of the daemon."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def children(self) -> int:
        """Child processes of the daemon."""
        return sum(len(path.read_text().split()) for path in Path(f"/proc/{self.pid}/task").glob("*/children"))

    def resident_mib(self) -> int:
        """Resident memory of the daemon."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

    def temporary(self) -> list[str]:
        """Files that only live while something is under way."""
        folder = self.paths.data / "tmp"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []

    def groups(self) -> list[Path]:
        """Its control groups, in every hierarchy."""
        return [*Path("/sys/fs/cgroup").glob(self.paths.cgroup), *Path("/sys/fs/cgroup").glob(f"*/{self.paths.cgroup}")]

    def traces(self) -> dict[str, list[str]]:
        """What this Insula has in the kernel now."""
        root = str(self.folder)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        links = [link.name for link in Path("/sys/class/net").iterdir()]
        tables = subprocess.run(
            ["nft", "list", "tables"], capture_output=True, text=True, timeout=20, check=False
        ).stdout
        found = {
            "mounts": [mount for mount in mounts if mount.startswith(root) and mount != root],
            "interfaces": [name for name in links if name.startswith(self.paths.prefix)],
            "control groups": [str(path) for path in self.groups()],
            "tables": [line for line in tables.splitlines() if line.split()[-1] == self.paths.table],
            "processes": processes(root),
        }
        return {what: sorted(things) for what, things in found.items() if things}


def processes(word: str) -> list[str]:
    """Processes whose command line has a word in it, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                command = (entry / "cmdline").read_bytes()
                if word.encode() in command:
                    found.append(f"{entry.name} {command.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
    return found


def _request(connection: _Connection, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body
    if body is not None and not isinstance(body, bytes):
        data = json.dumps(body).encode()
    if data is not None:
        sent.setdefault("Content-Type", "application/json")
    try:
        connection.connect()
        connection.putrequest(method, path.encode("latin-1").decode("latin-1"), skip_accept_encoding=True)
        for name, value in sent.items():
            connection.putheader(name, value)
        if data is not None and "Transfer-Encoding" not in sent:
            connection.putheader("Content-Length", str(len(data)))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was read
            connection.endheaders(data)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def until(test: Callable[[], Any], *, timeout_s: float = 20.0, what: str = "") -> Any:
    """Ask again until the answer is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := test()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or test}"
        time.sleep(0.02)
    return found


def running(*, machine: bool = False) -> Iterator[Island]:
    """For a fixture: an Insula with the demo image, destroyed afterwards; it may not have met anything unforeseen."""
    island = Island()
    try:
        island.up()
        island.add_busybox()
        if machine:
            island.add_machine()
        yield island
        tracebacks = island.tracebacks()
    finally:
        island.destroy()
    assert not tracebacks, tracebacks


@contextlib.contextmanager
def unharmed(island: Island, *, grown_mib: int = 60) -> Iterator[None]:
    """Afterwards the daemon is the same one, answers, and holds no more descriptors, children, temporary files than before."""

    def held() -> tuple[int, int, list[str]]:
        return island.descriptors(), island.children(), island.temporary()

    pid = island.pid
    island.docker_api("GET", "/_ping")
    before, memory = held(), island.resident_mib()
    yield
    assert island.pid == pid
    assert island.docker_api("GET", "/_ping").body == b"OK"
    deadline = time.monotonic() + 10
    while True:
        descriptors, children, temporary = held()
        if descriptors <= before[0] + 3 and children <= before[1] and temporary == before[2]:
            break
        if time.monotonic() > deadline:
            links = sorted(os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
            raise AssertionError(f"left behind: {(descriptors, children, temporary)}, before {before}: {links}")
        time.sleep(0.05)
    grown = island.resident_mib() - memory
    assert grown < grown_mib, f"the daemon grew by {grown} MiB"
