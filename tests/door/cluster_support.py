"""A whole running Insula in a folder of its own, one per test worker, and kubectl to drive it.

Every test works in a namespace of its own (`space`). At the end of the run everything is stopped with `insula down --all`, and
what that leaves behind fails the run (tests/conftest.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent
KUBECTL = str(BIN / "kubectl")
INSULA = [sys.executable, "-m", "insula.cli"]
DOCKER = shutil.which("docker")
IMAGE, NEXT_IMAGE = "busybox:1", "busybox:2"
_ADD_IMAGES = """
import asyncio, sys
from insula.cli import demoimages, doors
from insula.cli.paths import paths_of

async def main():
    async with doors.docker(paths_of(sys.argv[1])) as door:
        await demoimages.add_busybox(door)
        for tag in ("1", "2"):
            await door.call("POST", f"/images/busybox/tag?repo=busybox&tag={tag}")

asyncio.run(main())
"""


def until(holds: Callable[[], Any], timeout_s: float = 20.0, every_s: float = 0.05) -> Any:
    """Wait for something true and return it. Fails the test with the last answer."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = holds()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout_s} s; last: {answer!r}"
        time.sleep(every_s)


class Insula:
    """One Insula below a temporary root."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="insula-cl-"))
        self.kubeconfig = self.root / "data/admin.kubeconfig"
        self.docker_socket = self.root / "run/docker.sock"
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "KUBECONFIG": str(self.kubeconfig),
            "DOCKER_HOST": f"unix://{self.docker_socket}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    # life

    def command(self, *words: str, timeout_s: float = 120.0) -> str:
        """Run the `insula` command."""
        done = subprocess.run(
            [*INSULA, "--root", str(self.root), *words], env=self.env, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"insula {' '.join(words)}: {done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout

    def up(self) -> None:
        """Start it in the background; returns when it is ready."""
        self.command("up", "--detach")

    def add_images(self) -> None:
        """The busybox image under names whose pull policy is IfNotPresent."""
        subprocess.run([sys.executable, "-c", _ADD_IMAGES, str(self.root)], env=self.env, check=True, timeout=120)

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return int(json.loads((self.root / "run/insula.lock").read_text())["pid"])

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))

    @classmethod
    def begun(cls) -> Insula:
        """A new one that runs and has its images. One that cannot start leaves nothing behind."""
        made = cls()
        try:
            made.up()
            made.add_images()
        except BaseException:
            made.stop()
            raise
        return made

    def stop(self) -> None:
        """Stop everything and remove the folder."""
        try:
            self.command("down", "--all")
        finally:
            shutil.rmtree(self.root, ignore_errors=True)

    def log(self) -> str:
        """The daemon's last words."""
        path = self.root / "data/log/insula.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    # clients

    def run(
        self,
        *words: str,
        stdin: bytes | str | None = None,
        check: int | None = 0,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run kubectl. `check` is the exit code that is expected, None for any."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        arguments = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(
            [KUBECTL, *words], env=self.env, cwd=self.root, capture_output=True, timeout=timeout_s, **arguments
        )
        if check is not None:
            said = (done.stdout + done.stderr).decode(errors="replace")
            assert done.returncode == check, (
                f"kubectl {' '.join(words)}: exit code {done.returncode}: {said}\n{self.log()}"
            )
        return done

    def docker(self, *words: str, check: bool = True) -> str:
        """Run docker; what it printed, without the last line end."""
        assert DOCKER is not None
        done = subprocess.run([DOCKER, *words], env=self.env, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
        return (done.stdout + done.stderr).strip()


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Space:
    """A namespace for one test."""

    def __init__(self, insula: Insula, name: str) -> None:
        self.insula = insula
        self.name = name

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """kubectl in this namespace. Raises what `Insula.run` does."""
        return self.insula.run("-n", self.name, *words, **options)

    def text(self, *words: str, **options: Any) -> str:
        """What kubectl printed, without the last line end."""
        return self.run(*words, **options).stdout.decode().removesuffix("\n")

    def fails(self, *words: str, code: int = 1, **options: Any) -> str:
        """What a kubectl that fails said."""
        done = self.run(*words, check=code, **options)
        return (done.stdout + done.stderr).decode()

    def get(self, kind: str, name: str) -> Any:
        """One object."""
        return json.loads(self.run("get", kind, name, "-o", "json").stdout)

    def all(self, kind: str, *words: str) -> list[Any]:
        """All objects of a kind."""
        found: list[Any] = json.loads(self.run("get", kind, *words, "-o", "json").stdout)["items"]
        return found

    def apply(self, *objects: dict[str, Any], words: tuple[str, ...] = (), **options: Any) -> str:
        """kubectl apply."""
        manifest = "\n---\n".join(json.dumps(obj) for obj in objects)
        return self.text("apply", "-f", "-", *words, stdin=manifest, **options)

    def ready(self, *names: str, timeout_s: float = 30.0) -> None:
        """Wait until pods are ready."""
        pods = [f"pod/{name}" for name in names]
        self.run("wait", "--for=condition=Ready", f"--timeout={timeout_s:.0f}s", *pods, timeout_s=timeout_s + 10)

    def phase(self, name: str, *phases: str, timeout_s: float = 30.0) -> Any:
        """Wait until a pod is in one of these phases; returns it."""

        def there() -> Any:
            pod = self.get("pod", name)
            return pod if pod.get("status", {}).get("phase") in phases else None

        return until(there, timeout_s)

    def status(self, pod: str, container: str, part: str = "containerStatuses") -> Any:
        """A container's status, empty before there is one."""
        found = self.get("pod", pod).get("status", {}).get(part) or []
        return next((one for one in found if one["name"] == container), {})

    def logs(self, *words: str) -> str:
        """kubectl logs."""
        return self.run("logs", *words).stdout.decode()

    def events(self, name: str) -> list[tuple[str, str]]:
        """(reason, message) of what was told of an object."""
        found = self.all("events", "--field-selector", f"involvedObject.name={name}")
        return [(event["reason"], event["message"]) for event in found]


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A Pod that ends quickly when it is told to."""
    whole = {"terminationGracePeriodSeconds": 1, "containers": list(containers), **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": whole}


def container(name: str, script: str = "", **fields: Any) -> dict[str, Any]:
    """A busybox container that runs a shell script; without one it does nothing until it is told to end."""
    script = script or "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"
    return {"name": name, "image": IMAGE, "command": ["sh", "-c", script], **fields}


def deployment(name: str, replicas: int = 1, **fields: Any) -> dict[str, Any]:
    """A Deployment of pods that end quickly."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod(name, container("main", **fields))["spec"]}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


class Shell:
    """kubectl on a pseudo-terminal, with someone typing."""

    def __init__(self, space: Space, *words: str, rows: int = 24, columns: int = 80) -> None:
        self._main, child = os.openpty()
        termios.tcsetwinsize(child, (rows, columns))
        self._process = subprocess.Popen(
            [KUBECTL, "-n", space.name, *words],
            stdin=child,
            stdout=child,
            stderr=child,
            env={**space.insula.env, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)
        self.seen = b""

    def __enter__(self) -> Shell:
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

    def expect(self, text: bytes, timeout_s: float = 20.0) -> None:
        """Until it was shown; what came before is forgotten."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, (text, self.seen)
            if select.select([self._main], [], [], left)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self._main, 65536)
        self.seen = self.seen.split(text, 1)[1]

    def wait(self, timeout_s: float = 20.0) -> int:
        """Its exit code."""
        return self._process.wait(timeout_s)


_shared: list[Insula] = []


def _stop_shared() -> None:
    while _shared:
        _shared.pop().stop()


@pytest.fixture(scope="session")
def insula() -> Iterator[Insula]:
    """The worker's Insula. Several test files import this fixture; they all get the same one."""
    if not _shared:
        _shared.append(Insula.begun())
    yield _shared[0]
    _stop_shared()


@pytest.fixture
def space(insula: Insula) -> Iterator[Space]:
    """A namespace of the test's own, with its service account."""
    name = f"t-{secrets.token_hex(4)}"
    insula.run("create", "namespace", name)
    made = Space(insula, name)
    until(lambda: made.run("get", "serviceaccount", "default", check=None).returncode == 0)
    yield made
    insula.run("delete", "pods", "-n", name, "--all", "--force", "--grace-period=0", "--wait=false", check=None)
    insula.run("delete", "namespace", name, "--wait=false", check=None)
