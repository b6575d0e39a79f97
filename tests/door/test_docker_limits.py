"""Limits and rules where they take effect: in the files of the control groups, in /proc, and in what a program may do."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, running
from insula.host import cgroups, limits

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]
LAYOUT = cgroups.detect()
HERE = limits.detect(LAYOUT)
FIRST = pytest.mark.skipif(LAYOUT.version != 1, reason="names of version 1's files")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


def group(daemon: Daemon, name: str, controller: str, file: str) -> str:
    """A file of the container's control group, as the host sees it."""
    pid = daemon.text("inspect", "--format", "{{.State.Pid}}", name)
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(",") or (LAYOUT.version == 2 and not names):
            root = LAYOUT.roots[controller if LAYOUT.version == 1 else cgroups.UNIFIED]
            return Path(root + path, file).read_text().strip()
    raise AssertionError(controller)


def disk() -> tuple[str, str]:
    """A whole block device of this host, and its numbers."""
    for each in sorted(Path("/sys/block").iterdir()):
        node = Path("/dev", each.name)
        if node.exists() and stat.S_ISBLK(node.stat().st_mode) and not each.name.startswith("loop"):
            number = node.stat().st_rdev
            return str(node), f"{os.major(number)}:{os.minor(number)}"
    pytest.skip("no block device")


@FIRST
def test_memory_processes_and_processors(daemon: Daemon) -> None:
    options = (
        "--memory", "32m", "--memory-swap", "48m", "--memory-reservation", "16m", "--memory-swappiness", "7",
        "--pids-limit", "33", "--cpu-shares", "77", "--cpu-period", "50000", "--cpu-quota", "20000", "--cpuset-cpus", "0",
        "--oom-score-adj", "123",
    )  # fmt: skip
    with daemon.container("--network", "none", *options, IMAGE, "sleep", "100") as name:
        found = [
            group(daemon, name, *where)
            for where in (
                ("memory", "memory.limit_in_bytes"), ("memory", "memory.soft_limit_in_bytes"), ("memory", "memory.swappiness"),
                ("pids", "pids.max"), ("cpu", "cpu.shares"), ("cpu", "cpu.cfs_period_us"), ("cpu", "cpu.cfs_quota_us"),
                ("cpuset", "cpuset.cpus"),
            )
        ]  # fmt: skip
        assert found == [str(32 << 20), str(16 << 20), "7", "33", "77", "50000", "20000", "0"]
        assert daemon.text("exec", name, "cat", "/proc/1/oom_score_adj") == "123"
        daemon.docker("update", "--memory", "40m", "--memory-swap", "60m", "--pids-limit", "-1", name)
        assert group(daemon, name, "memory", "memory.limit_in_bytes") == str(40 << 20)
        assert group(daemon, name, "pids", "pids.max") == "max"


@FIRST
@pytest.mark.skipif(not HERE.blkio_throttle, reason="the kernel does not throttle block devices")
def test_block_devices_are_throttled(daemon: Daemon) -> None:
    node, numbers = disk()
    options = ("--device-read-bps", f"{node}:1mb", "--device-write-iops", f"{node}:77")
    with daemon.container("--network", "none", *options, IMAGE, "sleep", "100") as name:
        assert group(daemon, name, "blkio", "blkio.throttle.read_bps_device") == f"{numbers} {1 << 20}"
        assert group(daemon, name, "blkio", "blkio.throttle.write_iops_device") == f"{numbers} 77"
        shown = json.loads(daemon.text("inspect", "--format", "{{json .HostConfig.BlkioDeviceReadBps}}", name))
        assert shown == [{"Path": node, "Rate": 1 << 20}]


def test_device_rules_open_what_is_closed(daemon: Daemon) -> None:
    script = "mknod /tmp/f c 10 237 && cat /tmp/f >/dev/null 2>/tmp/e; grep -q 'not permitted' /tmp/e && echo closed || echo open"
    run = ("run", "--rm", "--network", "none", "--cap-add", "MKNOD")
    assert daemon.text(*run, IMAGE, "sh", "-c", script) == "closed"
    assert daemon.text(*run, "--device-cgroup-rule", "c 10:237 rmw", IMAGE, "sh", "-c", script) == "open"


def test_a_folder_of_devices(daemon: Daemon) -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("no folder of devices")
    listed = daemon.text(
        "run", "--rm", "--network", "none", "--device", "/dev/net:/dev/mine", IMAGE, "ls", "-l", "/dev/mine"
    )
    assert listed.startswith("c") or ("\nc" in listed and "tun" in listed)


@pytest.mark.parametrize(("mode", "own"), [("private", True), ("host", False)])
def test_the_cgroup_namespace(daemon: Daemon, mode: str, own: bool) -> None:
    run = ("run", "--rm", "--network", "none", "--cgroupns", mode)
    assert (
        daemon.text(*run, IMAGE, "readlink", "/proc/self/ns/cgroup") != str(Path("/proc/self/ns/cgroup").readlink())
    ) is own


def test_the_cgroup_parent(daemon: Daemon) -> None:
    parent = f"parent-{daemon.tag}"
    with daemon.container("--network", "none", "--cgroup-parent", f"/{parent}", IMAGE, "sleep", "100") as name:
        pid = daemon.text("inspect", "--format", "{{.State.Pid}}", name)
        assert f"/{parent}/" in Path(f"/proc/{pid}/cgroup").read_text()
    for root in set(LAYOUT.roots.values()):
        if Path(root, parent).is_dir():
            Path(root, parent).rmdir()


def test_what_the_kernel_lacks_is_said(daemon: Daemon) -> None:
    body = {
        "Image": IMAGE,
        "Cmd": ["true"],
        "HostConfig": {"KernelMemory": 64 << 20, "NetworkMode": "host", "PortBindings": {"80/tcp": []}},
    }
    answer = daemon.api("POST", "/containers/create", body)
    first, second = answer.json["Warnings"]
    assert "kernel memory limit is deprecated" in first
    assert second == "Published ports are discarded when using host network mode"
    daemon.docker("rm", answer.json["Id"])


def test_a_readonly_root_has_readonly_host_files(daemon: Daemon) -> None:
    run = ("run", "--rm", "--network", "none", "--read-only", IMAGE)
    assert daemon.text(*run, "sh", "-c", "echo x >> /etc/hosts && echo written; true") == ""
    options = daemon.text(*run, "sh", "-c", "grep ' /etc/hosts ' /proc/mounts").split()[3]
    assert options.split(",")[0] == "ro"


def test_ipc_none_has_no_shared_memory(daemon: Daemon) -> None:
    run = ("run", "--rm", "--network", "none", "--ipc", "none", IMAGE)
    assert (
        daemon.text(*run, "sh", "-c", "grep -c shm /proc/mounts; ls -d /dev/shm 2>&1 | grep -c 'No such'", check=None)
        == "0\n1"
    )


def test_programs_can_tell_that_this_is_docker(daemon: Daemon) -> None:
    name = daemon.name()
    daemon.docker("run", "--name", name, "--network", "none", IMAGE, "stat", "-c", "%A %s", "/.dockerenv")
    assert daemon.text("logs", name) == "-rwxr-xr-x 0"
    assert daemon.text("diff", name) == ""
    daemon.docker("commit", name, "plain")
    layers = [
        json.loads(daemon.text("inspect", "--format", "{{json .RootFS.Layers}}", image)) for image in (IMAGE, "plain")
    ]
    assert len(layers[1]) == len(layers[0]) + 1
    daemon.docker("rm", name)
    daemon.docker("rmi", "plain")


def test_shareable_ipc_can_be_joined_and_private_not(daemon: Daemon) -> None:
    with daemon.container(
        "--network", "none", "--ipc", "shareable", "--shm-size", "1m", IMAGE, "sleep", "100"
    ) as donor:
        daemon.docker("exec", donor, "touch", "/dev/shm/here")
        run = ("run", "--rm", "--network", "none", "--ipc", f"container:{donor}", IMAGE)
        assert daemon.text(
            *run, "sh", "-c", "ls /dev/shm; touch /dev/shm/there; readlink /proc/self/ns/ipc"
        ).splitlines() == [
            "here",
            daemon.text("exec", donor, "readlink", "/proc/self/ns/ipc"),
        ]
        assert daemon.text("exec", donor, "ls", "/dev/shm").split() == ["here", "there"]
        daemon.docker("restart", "-t", "0", donor)
        assert daemon.text("exec", donor, "ls", "/dev/shm") == ""
        daemon.docker("stop", "-t", "0", donor)
        assert not [
            line
            for line in Path("/proc/mounts").read_text().splitlines()
            if f"{daemon.folder}" in line and "/shm " in line
        ]
        refused = daemon.docker(*run, "true", check=125)
        assert b"is not running" in refused.stderr
    with daemon.container("--network", "none", IMAGE, "sleep", "100") as donor:
        refused = daemon.docker("run", "--rm", "--ipc", f"container:{donor}", IMAGE, "true", check=125)
        assert b"non-shareable IPC (hint: use IpcMode:shareable for the donor container)" in refused.stderr
