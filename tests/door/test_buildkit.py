"""`docker build` and `docker buildx` with the real buildx: BuildKit's protocol from the first ping to the last export."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from door.docker_support import IMAGE, Daemon, running, until
from door.test_docker_images import BCRYPT_OF_SECRET, serve_registry
from insula.api.grpc.connection import Connection
from insula.api.grpc.status import RpcFault

pytestmark = pytest.mark.root

DOCKERFILE = f"""FROM {IMAGE} AS base
ARG WORD=none
COPY a.txt sub /x/
RUN --network=none cat /x/a.txt && echo "$WORD" > /word
FROM base
COPY --from=base /word /word2
ENV A=b
CMD ["cat", "/word2"]
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    source = running()
    daemon = next(source)
    try:
        daemon.plug("docker-buildx")
        yield daemon
    finally:
        next(source, None)


class Folder:
    """A build context of one test."""

    def __init__(self, daemon: Daemon, path: Path) -> None:
        self.daemon, self.path = daemon, path
        (path / "sub").mkdir()
        self.write("Dockerfile", DOCKERFILE)
        self.write("a.txt", "hi\n")
        self.write("sub/s.txt", "sub\n")
        (path / "sub" / "link").symlink_to("../a.txt")

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def build(self, *arguments: str, check: int | None = 0, **more: Any) -> str:
        """`docker buildx build ARGUMENTS FOLDER`: its progress."""
        done = self.daemon.docker(
            "buildx", "build", "--progress", "plain", *arguments, str(self.path), check=check, **more
        )
        return done.stderr.decode()


@pytest.fixture
def folder(daemon: Daemon, tmp_path: Path) -> Folder:
    path = tmp_path / "context"
    path.mkdir()
    return Folder(daemon, path)


def test_docker_build_is_buildx_and_the_image_runs(daemon: Daemon, folder: Folder, tmp_path: Path) -> None:
    name, meta = daemon.name(), tmp_path / "meta.json"
    words = ("-t", name, "-t", f"{name}:two", "--build-arg", "WORD=spoken", "--metadata-file", str(meta))
    done = daemon.docker("build", "--progress", "plain", *words, str(folder.path))
    progress = done.stderr.decode()
    for words in (
        "[internal] load build definition from Dockerfile",
        "[internal] load .dockerignore",
        "[internal] load build context",
        "[base 3/3] RUN --network=none cat /x/a.txt",
        "exporting to image",
        f"naming to docker.io/library/{name}:two",
    ):
        assert words in progress
    assert daemon.text("run", "--rm", name) == "spoken"
    assert daemon.text("run", "--rm", f"{name}:two", "cat", "/x/s.txt") == "sub"
    written = json.loads(meta.read_text())
    image = daemon.text("image", "inspect", "-f", "{{.Id}}", name)
    assert written["containerimage.config.digest"] == written["containerimage.digest"] == image
    assert written["image.name"] == f"docker.io/library/{name}:latest,docker.io/library/{name}:two"
    assert "CACHED" in folder.build("--build-arg", "WORD=spoken")


def test_only_what_changed_is_sent_again(folder: Folder) -> None:
    folder.write("Dockerfile", f"FROM {IMAGE}\nCOPY . /x\n")
    (folder.path / "blob").write_bytes(os.urandom(3_000_000))
    first, second = folder.build(), folder.build()
    assert "3.00MB" in first
    assert "kB" not in second.split("load build context")[1].split("DONE")[0] or "MB" not in second
    assert second.count("CACHED") == 1
    folder.write("a.txt", "changed\n")
    third = folder.build()
    assert "MB" not in third and "CACHED" not in third


def test_a_failing_step_shows_its_output_and_its_line(folder: Folder) -> None:
    folder.write("Dockerfile", f"FROM {IMAGE}\nRUN --network=none echo before; exit 3\n")
    said = folder.build(check=1)
    assert "before" in said
    assert "Dockerfile:2" in said and ">>> RUN --network=none echo before; exit 3" in said
    assert said.rstrip().endswith(
        'failed to solve: process "/bin/sh -c echo before; exit 3" did not complete successfully: exit code: 3'
    )


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("FROM busybox\nNONSENSE x\n", "unknown instruction"),
        ("FROM busybox\nCOPY gone /x\n", "gone"),
        (None, "failed to read dockerfile: open Dockerfile: no such file or directory"),
    ],
)
def test_mistakes_are_sentences(folder: Folder, text: str | None, sentence: str) -> None:
    if text is None:
        (folder.path / "Dockerfile").unlink()
    else:
        folder.write("Dockerfile", text)
    said = folder.build(check=1)
    assert sentence in said, said
    assert "Traceback" not in said and "internal error" not in said


def test_secrets_and_named_contexts(daemon: Daemon, folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("from elsewhere\n")
    (tmp_path / "other" / "left-out").write_text("no\n")
    (tmp_path / "other" / ".dockerignore").write_text("left-out\n")
    folder.write(
        "Dockerfile",
        f"FROM {IMAGE}\n"
        "RUN --network=none --mount=type=secret,id=s wc -c < /run/secrets/s > /size\n"
        "COPY --from=more . /more\n",
    )
    name = daemon.name()
    folder.build("-t", name, "--secret", f"id=s,src={tmp_path}/secret", "--build-context", f"more={tmp_path}/other")
    found = daemon.text("run", "--rm", name, "sh", "-c", "cat /size /more/file; ls /more")
    assert found.split() == ["4", "from", "elsewhere", "file"]


def test_an_ssh_agent_is_reached_through_the_session(daemon: Daemon, folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "agent"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    folder.write(
        "Dockerfile",
        f'FROM {IMAGE}\nRUN --network=none --mount=type=ssh test -S "$SSH_AUTH_SOCK" && echo there > /agent\n',
    )
    try:
        folder.build("--ssh", f"default={path}")
        assert "unset ssh forward key other" in folder.build(
            "--ssh",
            f"default={path}",
            "--build-arg",
            "X=1",
            "-f",
            "-",
            check=1,
            input=f"FROM {IMAGE}\nRUN --network=none --mount=type=ssh,id=other,required=true true\n",
        )
    finally:
        listener.close()


def test_outputs(daemon: Daemon, folder: Folder, tmp_path: Path) -> None:
    folder.write("Dockerfile", "FROM scratch\nCOPY a.txt sub/s.txt /out/\nCOPY sub/link /out/link\n")
    folder.build("-o", str(tmp_path / "local"))
    assert (tmp_path / "local" / "out" / "a.txt").read_text() == "hi\n"
    folder.build("-o", f"type=tar,dest={tmp_path}/out.tar")
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert "out/s.txt" in [name.removeprefix("./") for name in archive.getnames()]
    name = daemon.name()
    for kind in ("docker", "oci"):
        folder.build("-t", f"{name}:{kind}", "-o", f"type={kind},dest={tmp_path}/{kind}.tar")
        assert daemon.docker("image", "inspect", f"{name}:{kind}", check=1)
        assert f"{name}:{kind}" in daemon.text("load", "-i", f"{tmp_path}/{kind}.tar")
    assert daemon.text("image", "inspect", "-f", "{{.Os}}", f"{name}:oci") == "linux"


def test_several_platforms_in_one_archive(daemon: Daemon, folder: Folder, tmp_path: Path) -> None:
    folder.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY <<X /arch\n$TARGETARCH\nX\n")
    name, archive, meta = daemon.name(), tmp_path / "two.tar", tmp_path / "meta.json"
    platforms = ("--platform", "linux/amd64,linux/arm64")
    folder.build(*platforms, "-t", name, "-o", f"type=oci,dest={archive}", "--metadata-file", str(meta))
    with tarfile.open(archive) as packed:

        def document(path: str) -> Any:
            file = packed.extractfile(path)
            assert file is not None
            return json.load(file)

        (row,) = document("index.json")["manifests"]
        assert row["annotations"]["org.opencontainers.image.ref.name"] == "latest"
        assert row["digest"] == json.loads(meta.read_text())["containerimage.digest"]
        inner = document("blobs/" + row["digest"].replace(":", "/"))
    assert [each["platform"] for each in inner["manifests"]] == [
        {"os": "linux", "architecture": "amd64"},
        {"os": "linux", "architecture": "arm64"},
    ]
    assert name in daemon.text("load", "-i", str(archive))
    folder.build(*platforms, "-o", str(tmp_path / "files"))
    assert (tmp_path / "files" / "linux_arm64" / "arch").read_text() == "arm64\n"


def test_contexts_and_dockerfiles_on_standard_input(daemon: Daemon, folder: Folder) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder.path, arcname=".")
    name = daemon.name()
    daemon.docker("buildx", "build", "-q", "-t", name, "--build-arg", "WORD=piped", "-", input=packed.getvalue())
    assert daemon.text("run", "--rm", name) == "piped"
    daemon.docker("buildx", "build", "-q", "-t", name, "-", input=f'FROM {IMAGE}\nCMD ["echo", "alone"]\n')
    assert daemon.text("run", "--rm", name) == "alone"
    daemon.docker(
        "buildx",
        "build",
        "-q",
        "-t",
        name,
        "-f",
        "-",
        str(folder.path),
        input=f'FROM {IMAGE}\nCOPY a.txt /\nCMD ["cat", "a.txt"]\n',
    )
    assert daemon.text("run", "--rm", name) == "hi"


def test_a_client_that_leaves_ends_its_build(daemon: Daemon, folder: Folder) -> None:
    mark = daemon.name()
    folder.write("Dockerfile", f"FROM {IMAGE}\nRUN --network=none echo {mark}; sleep 1000\n")
    process = daemon.popen(
        "buildx", "build", "--progress", "plain", str(folder.path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.rstrip().endswith(mark.encode()) and b"RUN" not in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()

    def gone() -> bool:
        found = subprocess.run(["pgrep", "-f", f"echo {mark}; sleep 1000"], capture_output=True, check=False)
        return not found.stdout

    until(gone, what="the step of a build whose client was killed ends")


def test_a_push_takes_the_clients_credentials(daemon: Daemon, folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(f"bob:{BCRYPT_OF_SECRET}\n")
    registry = serve_registry(tmp_path, f"auth: {{htpasswd: {{realm: here, path: {tmp_path}/htpasswd}}}}\n")
    host = next(registry)
    name = f"{host}/{daemon.name()}:1"
    try:
        assert "no basic auth credentials" in folder.build("-t", name, "--push", check=1)
        daemon.docker("login", host, "-u", "bob", "--password-stdin", input="secret")
        assert f"pushing {name}" in folder.build("-t", name, "--push", "--build-arg", "WORD=far")
        daemon.docker("image", "rm", name)
        folder.write("Dockerfile", f"FROM {name}\n")
        folder.build("-t", name + "0")
        assert daemon.text("run", "--rm", name + "0") == "far"
    finally:
        next(registry, None)


def test_compose_builds_by_itself(daemon: Daemon, folder: Folder) -> None:
    daemon.plug("docker-compose")
    project = daemon.name()
    folder.write(
        "compose.yaml",
        "services:\n"
        "  one: {build: {context: ., args: {WORD: composed}}, network_mode: none}\n"
        "  two: {build: {context: ., target: base}, command: [cat, /x/a.txt], network_mode: none}\n",
    )
    words = ("compose", "-p", project, "--project-directory", str(folder.path), "--progress", "plain")
    try:
        said = daemon.docker(*words, "up", "--build", timeout_s=90)
        lines = [line.split("|")[1].strip() for line in said.stdout.decode().splitlines() if "|" in line]
        assert sorted(lines) == ["composed", "hi"]
        assert "[one] exporting to image" in said.stderr.decode() + said.stdout.decode()
    finally:
        daemon.docker(*words, "down", "-v", "--rmi", "local", check=None)


def test_questions_about_a_dockerfile(daemon: Daemon, folder: Folder) -> None:
    experimental = {"BUILDX_EXPERIMENTAL": "1"}
    said = daemon.text("buildx", "build", "--print=outline", str(folder.path), env=experimental)
    assert "WORD" in said and "none" in said
    said = daemon.text("buildx", "build", "--print=targets", str(folder.path), env=experimental)
    assert "base" in said and "(default)" in said


def test_the_cache_is_shown_and_pruned(daemon: Daemon, folder: Folder) -> None:
    folder.build("--build-arg", f"WORD={daemon.name()}")
    assert "local source" in daemon.text("buildx", "du", "--verbose")
    assert "Total:" in daemon.text("buildx", "prune", "-f", "--filter", "type=source.local")
    assert "Total:" in daemon.text("builder", "prune", "-af")
    assert "local source" not in daemon.text("buildx", "du", "--verbose")


def test_the_host_has_a_name(folder: Folder) -> None:
    folder.write("Dockerfile", f"FROM {IMAGE}\nRUN ping -c 1 -w 5 thehost\n")
    assert "1 packets received" in folder.build("--add-host", "thehost:host-gateway")


def test_without_the_plugin_the_classic_builder_is_used(daemon: Daemon, folder: Folder, tmp_path: Path) -> None:
    plain = {"DOCKER_CONFIG": str(tmp_path / "no-plugins")}
    if not daemon.docker("buildx", "version", env=plain, check=None).returncode:
        pytest.skip("buildx is installed for everybody on this machine")
    done = daemon.docker("build", str(folder.path), env=plain)
    assert b"legacy builder is deprecated" in done.stderr and b"Step 1/" in done.stdout
    said = daemon.docker("build", str(folder.path), env={**plain, "DOCKER_BUILDKIT": "1"}, check=1)
    assert b"buildx component is missing" in said.stderr


def test_builders_are_listed(daemon: Daemon) -> None:
    said = daemon.text("buildx", "inspect")
    assert "Driver:        docker" in said and "linux/amd64" in said
    assert "running" in daemon.text("buildx", "ls")


def bake(daemon: Daemon, folder: Folder, targets: dict[str, Any]) -> str:
    """`docker buildx bake` of all targets: its progress."""
    folder.write("docker-bake.json", json.dumps({"group": {"default": {"targets": list(targets)}}, "target": targets}))
    words = ["docker", "buildx", "bake", "--progress", "plain"]
    done = subprocess.run(words, cwd=folder.path, env=daemon.environment, capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stderr.decode()


def test_bake(daemon: Daemon, folder: Folder) -> None:
    name = daemon.name()
    folder.write("Second", f"FROM {IMAGE}\nARG WORD\nRUN --network=none echo $WORD > /word\n")
    progress = bake(
        daemon,
        folder,
        {
            "one": {"args": {"WORD": "first"}, "tags": [f"{name}:one"]},
            "two": {"args": {"WORD": "second"}, "tags": [f"{name}:two"], "dockerfile": "Second"},
        },
    )
    assert "[one base 3/3] RUN --network=none cat" in progress and "[two 2/2] RUN --network=none echo" in progress
    assert daemon.text("run", "--rm", f"{name}:one") == "first"
    assert daemon.text("run", "--rm", f"{name}:two", "cat", "/word") == "second"


def test_a_target_of_bake_is_the_context_of_another(daemon: Daemon, folder: Folder) -> None:
    name = daemon.name()
    folder.write("Base", f"FROM {IMAGE}\nENV KEPT=yes\nRUN --network=none echo {name} > /made\n")
    folder.write("Dockerfile", 'FROM thebase\nCOPY --from=thebase /made /copied\nCMD echo "$KEPT" $(cat /copied)\n')
    before = daemon.text("image", "ls", "-q", "--no-trunc").split()
    bake(
        daemon,
        folder,
        {
            "app": {"contexts": {"thebase": "target:base"}, "tags": [name]},
            "base": {"dockerfile": "Base", "output": ["type=cacheonly"]},
        },
    )
    assert daemon.text("run", "--rm", name) == f"yes {name}"
    assert len(daemon.text("image", "ls", "-q", "--no-trunc").split()) == len(before) + 1


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("--provenance=true",), "Attestations are not supported"),
        (("--cache-to", "type=local,dest=PLACE/cache"), "a cache of type 'local' is not written here"),
        (("--platform", "linux/amd64,linux/arm64"), "type=moby takes one platform, not 2"),
        (("-f", "https://example.invalid/Dockerfile"), "only Dockerfiles are built"),
        (("--network", "other"), 'network mode "other" not supported'),
        (("-o", "type=unknown"), "unknown"),
        (("-o", "type=oci,tar=false,dest=PLACE/never"), "tar=false is not done here"),
        (("--build-context", "x=oci-layout://PLACE/nowhere"), "nowhere"),
    ],
)
def test_refusals(folder: Folder, tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    placed = [each.replace("PLACE", str(tmp_path)) for each in arguments]  # the client makes folders there by itself
    assert sentence in folder.build(*placed, check=1)


# --- clients that do not behave ---------------------------------------------------------------------------------


def _raw(daemon: Daemon, head: bytes, then: bytes = b"") -> bytes:
    with daemon.raw() as sock:
        sock.sendall(head)
        got = sock.recv(65536)
        if then:
            sock.sendall(then)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                more = sock.recv(65536)
                if not more:
                    break
                got += more
        return got


def test_hostile_connections_are_ended(daemon: Daemon) -> None:
    upgrade = b"POST /grpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert _raw(daemon, b"POST /grpc HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert _raw(daemon, upgrade.replace(b"/grpc", b"/session")).startswith(b"HTTP/1.1 400")
    assert _raw(daemon, upgrade, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 101")
    assert _raw(daemon, upgrade, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\5\4\0\0\0\0\0wrong").startswith(b"HTTP/1.1 101")
    assert daemon.text("buildx", "ls")


async def _fuzz(path: str, seed: int) -> list[str]:
    """Random bytes to every method; how each call ended."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"POST /grpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    connection = Connection(_Plain(reader, writer))
    running = asyncio.create_task(connection.run())
    chance, said = random.Random(seed), list[str]()
    try:
        for method in METHODS:
            for size in (0, 1, 7, 60):
                # Control.Solve of nothing waits for its client; a ref that is no build is answered after a while.
                headers = [("buildkit-controlapi-buildid", "none"), ("grpc-timeout", "300m")]
                try:
                    await connection.unary(method, chance.randbytes(size), timeout=5, metadata=headers)
                    said.append("")
                except RpcFault as fault:
                    said.append(str(fault))
    finally:
        connection.close()
        writer.close()
        await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), 5)
    return said


class _Plain:
    """Streams as a pipe."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> bytes:
        try:
            return await self._reader.read(65536)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


CONTROL = ("Solve", "Status", "ListWorkers", "Info", "DiskUsage", "Prune", "ListenBuildHistory", "UpdateBuildHistory")
BRIDGE = [
    "Ping",
    "Solve",
    "Return",
    "Evaluate",
    "Inputs",
    "ResolveImageConfig",
    "ReadFile",
    "ReadDir",
    "StatFile",
    "Warn",
    "NewContainer",
    "Exec",
    "Nonsense",
]
METHODS = [
    *(f"/moby.buildkit.v1.Control/{name}" for name in CONTROL),
    *(f"/moby.buildkit.v1.frontend.LLBBridge/{name}" for name in BRIDGE),
    "/grpc.health.v1.Health/Check",
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
]


def test_random_messages_are_answered_with_a_status(daemon: Daemon) -> None:
    said = asyncio.run(_fuzz(str(daemon.socket), 7))
    assert len(said) == 4 * len(METHODS)
    assert not [words for words in said if "internal error" in words or "connection was closed" in words]
    assert "Traceback" not in daemon.log.read_text()
    assert daemon.text("buildx", "ls")
