"""Images, networks, volumes and the node, by the docker CLI."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import shutil
import socket
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, running, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]


# As `htpasswd -B` writes it, the only kind of hash that the registry takes.
BCRYPT_OF_SECRET = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A real registry on loopback; yields its host:port."""
    yield from serve_registry(tmp_path, "")


@pytest.fixture
def registry_with_password(tmp_path: Path) -> Iterator[str]:
    """The same, for bob with the password `secret` only."""
    (tmp_path / "htpasswd").write_text(f"bob:{BCRYPT_OF_SECRET}\n")
    yield from serve_registry(tmp_path, f"auth: {{htpasswd: {{realm: here, path: {tmp_path}/htpasswd}}}}\n")


def serve_registry(tmp_path: Path, more: str) -> Iterator[str]:
    """Run one until the test is over."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = tmp_path / "registry.yml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n{more}"
    )
    server = subprocess.Popen([program, "serve", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=2) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as answer:
            answer.close()
            return answer.code == 401
        except OSError:
            return False

    try:
        until(answers)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def web_server(content: bytes) -> Iterator[str]:
    """Serves one file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/root.tar" else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def root_tar(**files: bytes) -> bytes:
    """A root file system with busybox and some files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(shutil.which("busybox") or "/bin/busybox", "bin/busybox")
        link = tarfile.TarInfo("bin/cat")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


# --- images -----------------------------------------------------------------------------------------------------


def test_save_remove_load_and_run(daemon: Daemon, tmp_path: Path) -> None:
    name = f"{daemon.name()}/saved:1"
    daemon.docker("tag", IMAGE, name)
    daemon.docker("save", "-o", str(tmp_path / "image.tar"), name)
    with tarfile.open(tmp_path / "image.tar") as tar:
        assert {"manifest.json", "index.json", "oci-layout"} <= set(tar.getnames())
    assert daemon.text("rmi", name) == f"Untagged: {name}"
    assert f"Loaded image: {name}" in daemon.text("load", "-i", str(tmp_path / "image.tar"))
    assert daemon.text("run", "--rm", "--network", "none", name, "echo", "loaded") == "loaded"
    both = daemon.docker("save", name, IMAGE).stdout
    assert b"Loaded image" in daemon.docker("load", input=both).stdout
    daemon.docker("rmi", name)
    assert b"No such image" in daemon.docker("rmi", name, check=1).stderr


def test_import_from_stdin_and_from_a_url(daemon: Daemon) -> None:
    archive = root_tar(**{"etc/greeting": b"hello\n"})
    name = f"{daemon.name()}:1"
    id = daemon.text("import", "-m", "a message", "-c", 'CMD ["cat", "/etc/greeting"]', "-", name, input=archive)
    assert id.startswith("sha256:")
    assert daemon.text("run", "--rm", "--network", "none", name) == "hello"
    assert json.loads(daemon.text("history", "--format", "json", name))["Comment"] == "a message"
    with web_server(archive) as url:
        done = daemon.docker("import", f"{url}/root.tar", f"{name}url")
        assert b"sha256:" in done.stdout
        assert b"404" in daemon.docker("import", f"{url}/missing", f"{name}x", check=1).stderr
    assert daemon.text("run", "--rm", "--network", "none", f"{name}url", "/bin/cat", "/etc/greeting") == "hello"
    daemon.docker("rmi", name, f"{name}url")


def test_push_and_pull(daemon: Daemon, registry: str) -> None:
    name = f"{registry}/some/thing:v1"
    daemon.docker("tag", IMAGE, name)
    pushed = daemon.text("push", name)
    assert "v1: digest: sha256:" in pushed
    daemon.docker("rmi", name)
    pulled = daemon.text("pull", name)
    assert "Digest: sha256:" in pulled and f"Status: Downloaded newer image for {name}" in pulled
    assert "Image is up to date" in daemon.text("pull", name)
    daemon.docker("rmi", name)
    assert daemon.text("run", "--rm", "--network", "none", name, "echo", "pulled") == "pulled"
    digests = daemon.text("image", "inspect", "-f", '{{join .RepoDigests " "}}', name).split()
    [digest] = [each for each in digests if registry in each]
    assert digest.startswith(f"{registry}/some/thing@sha256:")
    daemon.docker("rmi", name)
    missing = daemon.docker("pull", f"{registry}/no/such:1", check=1)
    assert b"not found" in missing.stderr or b"manifest unknown" in missing.stderr
    assert b"does not exist locally" in daemon.docker("push", f"{registry}/none:1", check=1).stderr


def test_every_tag_goes_and_comes(daemon: Daemon, registry: str) -> None:
    name = f"{registry}/some/thing"
    for tag in ("1", "2"):
        daemon.docker("tag", IMAGE, f"{name}:{tag}")
    pushed = daemon.text("push", "-a", name)
    assert "1: digest: sha256:" in pushed and "2: digest: sha256:" in pushed and "Layer already exists" in pushed
    moved = daemon.text("tag", IMAGE, f"{registry}/other:1") + daemon.text("push", f"{registry}/other:1")
    assert "Mounted from some/thing" in moved
    daemon.docker("rmi", f"{name}:1", f"{name}:2", f"{registry}/other:1")
    pulled = daemon.text("pull", "-a", name)
    assert "1: Pulling from some/thing" in pulled and "2: Pulling from some/thing" in pulled
    assert f"Status: Downloaded newer image for {name}" in pulled
    assert sorted(daemon.text("images", "--format", "{{.Tag}}", name).split()) == ["1", "2"]
    found = daemon.api("GET", f"/v1.51/distribution/{name}:1/json").json
    assert found["Descriptor"]["digest"] in pulled and found["Platforms"] == [{"architecture": "amd64", "os": "linux"}]
    now = f"{time.time():.9f}"  # the client cuts `0s` down to the second
    told = daemon.text("events", "--since", "1", "--until", now, "--filter", "type=image", "--filter", "event=pull")
    assert f"image pull {name} (name={name}" in told or f"image pull {name}:" in told
    missing = daemon.api("POST", f"/v1.51/images/create?fromImage={name}&tag=none")
    assert missing.status == 404
    assert missing.message == f"manifest for {name}:none not found: manifest unknown: manifest unknown"
    assert daemon.api("POST", "/v1.51/images/create?fromImage=scratch&tag=1").status == 400
    daemon.docker("rmi", f"{name}:1", f"{name}:2")


def test_what_an_image_was_made_from(daemon: Daemon) -> None:
    base, child, holder = f"{daemon.name()}:base", f"{daemon.name()}:child", daemon.name()
    daemon.docker("import", "-", base, input=root_tar(unique=daemon.name().encode()))
    daemon.docker("create", "--name", holder, base, "/bin/cat")
    daemon.docker("commit", holder, child)
    daemon.docker("rm", holder)
    id = daemon.text("image", "inspect", "-f", "{{.Id}}", base)
    assert daemon.text("history", "-q", "--no-trunc", child).splitlines()[1] == id
    refused = daemon.docker("rmi", "-f", id, check=1)
    assert b"(cannot be forced) - image has dependent child images" in refused.stderr
    assert daemon.text("rmi", base) == f"Untagged: {base}"
    assert id not in daemon.text("images", "-q", "--no-trunc")
    assert id in daemon.text("images", "-aq", "--no-trunc")
    assert f"Deleted: {id}" in daemon.text("rmi", child)
    usage = json.loads(daemon.api("GET", "/v1.51/system/df?type=image").body)
    assert set(usage) == {"LayersSize", "Images"} and usage["LayersSize"] > 0
    assert all(image["SharedSize"] >= 0 and "VirtualSize" not in image for image in usage["Images"])


def test_login(daemon: Daemon, registry_with_password: str) -> None:
    server = registry_with_password
    done = daemon.docker("login", "-u", "bob", "--password-stdin", server, input="wrong", check=1)
    assert b"incorrect username or password" in done.stderr
    daemon.docker("tag", IMAGE, f"{server}/private:1")
    assert b"no basic auth credentials" in daemon.docker("push", f"{server}/private:1", check=1).stderr
    assert "Login Succeeded" in daemon.text("login", "-u", "bob", "--password-stdin", server, input="secret")
    daemon.docker("push", f"{server}/private:1")
    daemon.docker("rmi", f"{server}/private:1")
    daemon.docker("pull", f"{server}/private:1")
    daemon.docker("logout", server)
    daemon.docker("rmi", f"{server}/private:1")


def test_images_are_listed_and_inspected(daemon: Daemon) -> None:
    name = f"{daemon.name()}:x"
    daemon.docker("tag", IMAGE, name)
    assert daemon.text("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference={name}") == name
    assert daemon.text("images", "-q", name) == daemon.text("images", "-q", IMAGE)
    assert daemon.text("images", "-q", "--filter", "dangling=true") == ""
    found = json.loads(daemon.text("image", "inspect", name))[0]
    assert (found["Os"], found["Config"]["Cmd"], found["RootFS"]["Type"]) == ("linux", ["sh"], "layers")
    assert name in found["RepoTags"] and found["Id"].startswith("sha256:")
    assert len(daemon.text("history", "-q", name).splitlines()) == 1
    daemon.docker("rmi", name)
    assert b"invalid reference format" in daemon.docker("tag", IMAGE, "Up:1:2", check=1).stderr
    assert b"not supported" in daemon.docker("search", "busybox", check=1).stderr


def test_an_image_in_use_is_kept(daemon: Daemon) -> None:
    name = f"{daemon.name()}:1"
    daemon.docker("import", "-", name, input=root_tar())
    holder = daemon.name()
    daemon.docker("create", "--name", holder, name, "/bin/cat")
    refused = daemon.docker("rmi", name, check=1)
    assert b"conflict: unable to remove repository reference" in refused.stderr
    daemon.docker("rm", holder)
    daemon.docker("rmi", name)


def test_prune_of_images(daemon: Daemon) -> None:
    id = daemon.text("import", "-", input=root_tar(unique=daemon.name().encode()))
    assert id.removeprefix("sha256:")[:12] in daemon.text("images", "-q", "--filter", "dangling=true")
    assert id in daemon.text("image", "prune", "-f")
    assert daemon.text("images", "-q", "--filter", "dangling=true") == ""


# --- volumes ----------------------------------------------------------------------------------------------------


def test_volumes(daemon: Daemon) -> None:
    name = daemon.name()
    assert daemon.text("volume", "create", "--label", "a=b", name) == name
    assert daemon.text("volume", "ls", "-q", "--filter", "label=a=b") == name
    found = json.loads(daemon.text("volume", "inspect", name))[0]
    assert (found["Name"], found["Driver"], found["Labels"], found["Scope"]) == (name, "local", {"a": "b"}, "local")
    assert Path(found["Mountpoint"]).is_dir()
    with daemon.container("--network", "none", "-v", f"{name}:/v", IMAGE, "sleep", "60") as holder:
        refused = daemon.docker("volume", "rm", name, check=1)
        assert f"remove {name}: volume is in use - [".encode() in refused.stderr
        assert daemon.text("ps", "-q", "--filter", f"volume={name}", "--no-trunc") == daemon.text(
            "inspect", "-f", "{{.Id}}", holder
        )
    daemon.docker("volume", "rm", name)
    assert f"get {name}: no such volume".encode() in daemon.docker("volume", "inspect", name, check=1).stderr
    assert b"includes invalid characters" in daemon.docker("volume", "create", "a/b", check=1).stderr
    assert b'plugin "nfs" not found' in daemon.docker("volume", "create", "-d", "nfs", check=1).stderr


def test_anonymous_volumes_go_with_their_container_or_by_prune(daemon: Daemon) -> None:
    before = set(daemon.text("volume", "ls", "-q").split())
    daemon.docker("run", "--rm", "--network", "none", "-v", "/data", IMAGE, "true")
    assert set(daemon.text("volume", "ls", "-q").split()) == before
    name = daemon.name()
    daemon.docker("run", "--name", name, "--network", "none", "-v", "/data", IMAGE, "true")
    [left] = set(daemon.text("volume", "ls", "-q").split()) - before
    daemon.docker("rm", name)
    assert left in daemon.text("volume", "prune", "-f")
    assert set(daemon.text("volume", "ls", "-q").split()) == before


# --- networks ---------------------------------------------------------------------------------------------------


def test_networks_join_names_and_leave(daemon: Daemon) -> None:
    net = daemon.name()
    octet = int(daemon.tag[4:], 16)
    daemon.docker("network", "create", "--subnet", f"172.30.{octet}.0/24", "--label", "n=1", net)
    found = json.loads(daemon.text("network", "inspect", net))[0]
    assert (found["Name"], found["Driver"], found["Labels"]) == (net, "bridge", {"n": "1"})
    assert found["IPAM"]["Config"][0]["Subnet"] == f"172.30.{octet}.0/24"
    with (
        daemon.container(
            "--network", net, "--network-alias", "other", "--ip", f"172.30.{octet}.9", IMAGE, "sleep", "60"
        ) as one,
        daemon.container(IMAGE, "sleep", "60") as two,
    ):
        assert daemon.text("inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{net}").IPAddress}}}}', one) == (
            f"172.30.{octet}.9"
        )
        daemon.docker("network", "connect", "--alias", "second", net, two)
        assert b"already exists in network" in daemon.docker("network", "connect", net, two, check=1).stderr
        for target in ("other", one, f"172.30.{octet}.9"):
            assert "1 packets received" in daemon.text("exec", two, "ping", "-c", "1", "-W", "3", target)
        assert "1 packets received" in daemon.text("exec", one, "ping", "-c", "1", "-W", "3", "second")
        members = json.loads(daemon.text("network", "inspect", net))[0]["Containers"]
        assert sorted(member["Name"] for member in members.values()) == sorted([one, two])
        refused = daemon.docker("network", "rm", net, check=1)
        assert b"has active endpoints" in refused.stderr
        daemon.docker("network", "disconnect", net, two)
        assert list(json.loads(daemon.text("inspect", two))[0]["NetworkSettings"]["Networks"]) == ["bridge"]
        assert b"is not connected to" in daemon.docker("network", "disconnect", net, two, check=1).stderr
    daemon.docker("network", "rm", net)
    assert f"network {net} not found".encode() in daemon.docker("network", "inspect", net, check=1).stderr


def test_the_built_in_networks(daemon: Daemon) -> None:
    assert set(daemon.text("network", "ls", "--format", "{{.Name}} {{.Driver}}").splitlines()) == {
        "bridge bridge", "host host", "none null",
    }  # fmt: skip
    assert b"predefined" in daemon.docker("network", "create", "host", check=1).stderr
    assert b"pre-defined network and cannot be removed" in daemon.docker("network", "rm", "bridge", check=1).stderr
    assert b"Swarm is not supported here" in daemon.docker("network", "create", "-d", "overlay", "x", check=1).stderr
    host = daemon.text("run", "--rm", "--network", "host", IMAGE, "hostname")
    assert host == socket.gethostname()
    with daemon.container(IMAGE, "sleep", "60") as name:
        address = daemon.text("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)
        shared = daemon.text("run", "--rm", "--network", f"container:{name}", IMAGE, "ip", "addr")
        assert f"inet {address}/" in shared


def test_prune_of_networks(daemon: Daemon) -> None:
    net = daemon.name()
    daemon.docker("network", "create", net)
    assert net in daemon.text("network", "prune", "-f", "--filter", "label!=keep")
    assert net not in daemon.text("network", "ls", "--format", "{{.Name}}").split()


# --- the node ---------------------------------------------------------------------------------------------------


def test_version_info_and_disk_usage(daemon: Daemon) -> None:
    found = json.loads(daemon.text("version", "--format", "json"))
    assert found["Server"]["ApiVersion"] == "1.51"
    # An older client speaks its own version.
    assert tuple(map(int, found["Client"]["ApiVersion"].split("."))) <= (1, 51)
    assert found["Server"]["Platform"]["Name"] == "Insula"
    info = json.loads(daemon.text("info", "--format", "json"))
    assert (info["Name"], info["Driver"], info["OSType"], info["DefaultRuntime"]) == (
        "testnode",
        "overlay2",
        "linux",
        "runc",
    )
    assert info["MemTotal"] > 1 << 28 and info["NCPU"] >= 1 and not info.get("ServerErrors")
    kinds = {json.loads(line)["Type"] for line in daemon.text("system", "df", "--format", "json").splitlines()}
    assert kinds == {"Images", "Containers", "Local Volumes", "Build Cache"}
    assert daemon.text("system", "df", "-v")


def test_old_and_new_clients(daemon: Daemon) -> None:
    for version in ("1.24", "1.30", "1.41", "1.43", "1.44", "1.51"):
        assert (
            daemon.text("run", "--rm", "--network", "none", IMAGE, "echo", "hi", env={"DOCKER_API_VERSION": version})
            == "hi"
        )
    refused = daemon.docker("ps", check=1, env={"DOCKER_API_VERSION": "1.52"})
    assert b"client version 1.52 is too new. Maximum supported API version is 1.51" in refused.stderr
    refused = daemon.docker("ps", check=1, env={"DOCKER_API_VERSION": "1.23"})
    assert b"client version 1.23 is too old" in refused.stderr


def test_what_is_refused_says_so(daemon: Daemon) -> None:
    assert b"not a swarm manager" in daemon.docker("service", "ls", check=1).stderr
    assert b"not supported" in daemon.docker("plugin", "install", "--grant-all-permissions", "x", check=1).stderr
    assert daemon.text("plugin", "ls", "-q") == ""


def test_system_prune(daemon: Daemon) -> None:
    name = daemon.name()
    daemon.docker("run", "--name", name, "--network", "none", IMAGE, "true")
    assert "Total reclaimed space" in daemon.text("system", "prune", "-f")
    assert daemon.text("ps", "-aq", "--filter", f"name={name}") == ""
