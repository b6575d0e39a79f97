"""A reboot, and a machine's crash: everything that does not outlive the kernel is gone, and restart policies, pods and machines
come back by themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fault.fault_support import IMAGE, Island, processes, until

pytestmark = [pytest.mark.root, pytest.mark.may_block, pytest.mark.leaks]


class Host:
    """A mount namespace in which the kernel can be told to have booted anew."""

    def __init__(self, island: Island) -> None:
        self.island = island
        self._number = 0
        self._holder = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "infinity"])
        island.prefix = ("nsenter", "-m", "-t", str(self._holder.pid))
        until(lambda: Path(f"/proc/{self._holder.pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink())

    def inside(self, *argv: str) -> str:
        done = subprocess.run([*self.island.prefix, *argv], capture_output=True, text=True, timeout=30, check=False)
        return done.stdout

    def mounts(self) -> list[str]:
        text = Path(f"/proc/{self._holder.pid}/mountinfo").read_text()
        return [line.split()[4] for line in text.splitlines() if line.split()[4].startswith(str(self.island.folder))]

    def reboot(self) -> None:
        """No process, mount, interface, rule, group or file below /run outlives it, and the kernel has a new boot id."""
        island = self.island
        own = set(processes(str(island.folder)))
        groups = [path for path in island.groups() if path.exists()]
        pids = {int(found.split()[0]) for found in own} | {pid for group in groups for pid in members(group)}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), what="all processes are gone")
        for _ in range(3):
            for mount in sorted(self.mounts(), reverse=True):
                self.inside("umount", "-l", mount)
        links = [link.name for link in Path("/sys/class/net").iterdir() if link.name.startswith(island.paths.prefix)]
        for link in links:
            subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
        subprocess.run(["nft", "delete", "table", "inet", island.paths.table], capture_output=True, check=False)
        for group in groups:
            for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                until(lambda folder=folder: gone(folder))
            until(lambda group=group: gone(group))
        shutil.rmtree(island.paths.run)
        self._number += 1
        id = island.folder / "boot_id"
        self.inside("umount", "/proc/sys/kernel/random/boot_id")
        id.write_text(f"00000000-0000-4000-8000-{self._number:012d}\n")
        self.inside("mount", "--bind", str(id), "/proc/sys/kernel/random/boot_id")

    def close(self) -> None:
        try:
            self.island.insula("down", "--all")
            assert self.mounts() == []
            self.island.destroy()
        finally:
            self._holder.kill()
            self._holder.wait()


def members(group: Path) -> set[int]:
    return {int(pid) for path in group.rglob("cgroup.procs") for pid in path.read_text().split()}


def gone(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def pod(name: str, policy: str, *command: str) -> dict[str, Any]:
    container = {"name": "c", "image": IMAGE, "imagePullPolicy": "Never", "command": list(command)}
    return {"metadata": {"name": name}, "spec": {"restartPolicy": policy, "containers": [container]}}


def test_all_comes_back_after_a_reboot() -> None:
    island = Island()
    host = Host(island)
    try:
        island.up()
        island.add_busybox()
        for name, policy in (
            ("always", "always"),
            ("unless", "unless-stopped"),
            ("stopped", "unless-stopped"),
            ("no", "no"),
        ):
            island.docker("run", "-d", "--name", name, "--restart", policy, "-v", f"{name}v:/v", "-p", "127.0.0.1::80", IMAGE,
                          "sh", "-c", "echo $(hostname) >> /v/lives; echo life; exec sleep 600")  # fmt: skip
        island.docker("run", "-d", "--rm", "--name", "once", IMAGE, "sleep", "600")
        island.docker("network", "create", "own")
        island.docker("run", "-d", "--name", "named", "--network", "own", "--restart", "always", IMAGE, "sleep", "600")
        island.docker("stop", "-t", "0", "stopped")
        pods = "/api/v1/namespaces/default/pods"
        for each in (pod("stays", "Always", "sleep", "600"), pod("never", "Never", "sleep", "600")):
            assert island.kube_api("POST", pods, each).status == 201
        phase = lambda name: island.kube_api("GET", f"{pods}/{name}").json.get("status", {}).get("phase")  # noqa: E731
        until(lambda: phase("stays") == "Running" and phase("never") == "Running")
        time.sleep(1.2)  # the ledger is on the disk a second after its last write at the latest
        host.reboot()
        island.up()
        for name in ("always", "unless", "named"):
            until(lambda name=name: island.inspect(name)["State"]["Status"] == "running", what=f"{name} runs again")
        assert island.docker("exec", "always", "cat", "/v/lives").stdout.count(b"\n") == 2
        assert island.text("logs", "always").split() == ["life", "life"]
        assert island.docker("exec", "named", "nslookup", "named").returncode == 0
        assert not island.inspect("stopped")["State"]["Running"]
        lost = island.inspect("no")["State"]
        assert (lost["Status"], lost["ExitCode"]) == ("exited", 255)
        island.docker("start", "no")
        until(lambda: island.docker("inspect", "once", check=None).returncode == 1, what="--rm is gone")
        until(lambda: phase("stays") == "Running" and island.kube_api(
            "GET", f"{pods}/stays").json["status"]["containerStatuses"][0]["restartCount"] == 1)  # fmt: skip
        until(lambda: phase("never") in ("Failed", "Succeeded"), what="a pod that is not to be restarted has failed")
        island.kubectl("exec", "stays", "--", "true")
        port = island.text("port", "always", "80")
        assert port.startswith("127.0.0.1:")
        host.reboot()  # at the worst moment: what has just come up
        island.up()
        until(lambda: island.inspect("always")["State"]["Running"])
        assert len(island.docker_api("GET", '/containers/json?all=1&filters={"name":["always"]}').json) == 1
        assert island.tracebacks() == []
    finally:
        host.close()
