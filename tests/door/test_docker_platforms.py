"""Images and containers of other processor architectures, by the unmodified docker CLI."""

from __future__ import annotations

import fcntl
import io
import json
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, running
from insula.host import binfmt, mounts

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="arm64 is foreign to x86_64"),
]
CACHE = Path.home() / ".cache/insula-tests/arm64"
ARM64 = next(machine for machine in binfmt.MACHINES if machine.name == "arm64")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


@pytest.fixture(scope="module")
def busybox() -> Path:
    """Debian's static busybox for arm64, by an apt that knows no other architecture."""
    program = CACHE / "busybox"
    if not program.exists():
        (CACHE / "lists/partial").mkdir(parents=True, exist_ok=True)
        (CACHE / "archives/partial").mkdir(parents=True, exist_ok=True)
        (CACHE / "status").touch()
        settings = CACHE / "apt.conf"
        settings.write_text(
            f'APT::Architecture "arm64"; APT::Architectures {{ "arm64"; }}; APT::Sandbox::User "root";\n'
            f'Dir::State "{CACHE}"; Dir::State::status "{CACHE}/status"; Dir::Cache "{CACHE}";\n'
        )
        for words in (("update", "-qq"), ("download", "-qq", "busybox-static")):
            done = subprocess.run(
                ["apt-get", *words], env={"APT_CONFIG": str(settings), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                cwd=CACHE, capture_output=True, timeout=100, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                pytest.skip(f"apt-get {words[0]} for arm64: {done.stderr[-300:]!r}")
        [package] = CACHE.glob("busybox-static_*.deb")
        subprocess.run(["dpkg", "-x", package, CACHE / "unpacked"], check=True, capture_output=True)
        shutil.copy(CACHE / "unpacked/bin/busybox", CACHE / "busybox.part")
        (CACHE / "busybox.part").rename(program)
    return program


@pytest.fixture(scope="module")
def arm(daemon: Daemon, busybox: Path) -> str:
    """An image for arm64."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in ("sh", "uname", "echo", "cat"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    name = f"{daemon.name()}:arm"
    daemon.docker("import", "--platform", "linux/arm64", "-", name, input=out.getvalue())
    return name


@pytest.fixture
def alone() -> Iterator[None]:
    """The rules belong to the whole machine: one test at a time, and nothing stays."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        was_mounted = mounts.is_mounted(binfmt.FOLDER)
        if not binfmt.missing(ARM64, binfmt.rules()):
            pytest.skip("this machine has a rule of its own for arm64")
        try:
            yield
        finally:
            if (binfmt.FOLDER / "register").exists():
                binfmt.disable(ARM64)
            if not was_mounted and mounts.is_mounted(binfmt.FOLDER):
                mounts.unmount(binfmt.FOLDER)


@pytest.mark.usefixtures("alone")
@pytest.mark.skipif(shutil.which("qemu-aarch64-static") is None, reason="qemu-user-static is not installed")
def test_runs_through_qemu_when_it_is_registered(daemon: Daemon, arm: str) -> None:
    refused = daemon.docker("run", "--rm", "--network", "none", arm, "uname", "-m", check=125)
    assert b"exec format error: nothing on this machine runs programs for arm64; install the package" in refused.stderr
    assert b"does not match the detected host platform (linux/amd64)" in refused.stderr
    assert binfmt.enable(ARM64, binfmt.find_emulator(ARM64)) is True
    assert binfmt.enable(ARM64, binfmt.find_emulator(ARM64)) is False
    done = daemon.docker("run", "--rm", "--platform", "linux/arm64", "--network", "none", arm, "uname", "-m")
    assert (done.stdout, done.stderr) == (b"aarch64\n", b"")
    script = ("sh", "-c", "echo one | cat; uname -m")
    assert daemon.text("run", "--rm", "--network", "none", arm, *script) == "one\naarch64"


def test_a_platform_that_the_image_is_not_made_for(daemon: Daemon, arm: str) -> None:
    sentence = b"was found but does not match the specified platform: wanted linux/amd64, actual: linux/arm64"
    answer = daemon.api("POST", "/v1.51/containers/create?platform=linux%2Famd64", {"Image": arm, "Cmd": ["x"]})
    assert answer.status == 404 and sentence.decode() in answer.message
    assert (
        daemon.api("POST", "/v1.40/containers/create?platform=linux%2Famd64", {"Image": arm, "Cmd": ["x"]}).status
        == 201
    )
    asked = json.dumps({"os": "linux", "architecture": "amd64"})
    for path in ("json", "history", "get"):
        answer = daemon.api("GET", f"/v1.51/images/{arm}/{path}?platform={asked.replace(' ', '')}")
        assert answer.status == 404 and sentence.decode() in answer.message, path
    assert daemon.api("GET", f"/v1.47/images/{arm}/history?platform={asked.replace(' ', '')}").status == 200
    done = daemon.docker("rmi", "--platform", "linux/amd64", arm, check=None)
    assert done.returncode == 1


def test_platforms_of_archives(daemon: Daemon, arm: str, tmp_path: Path) -> None:
    archive = tmp_path / "both.tar"
    daemon.docker("save", "-o", str(archive), arm, IMAGE)
    said = daemon.text("load", "-i", str(archive), "--platform", "linux/arm64")
    assert f"Loaded image: {arm}" in said and IMAGE not in said
    nothing = daemon.docker("load", "-i", str(archive), "--platform", "linux/s390x", check=1)
    assert b"no image for the platform linux/s390x" in nothing.stderr
    found = json.loads(daemon.text("image", "inspect", "--platform", "linux/arm64", arm))[0]
    assert found["Architecture"] == "arm64"
