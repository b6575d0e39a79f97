"""Other engines on this machine. None of them is in the way; what they share with Insula is said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from insula.cli.doctor.finding import Finding, State

AREA = "beside"
# The name of a process (15 characters at most, proc_pid_comm(5)) to what is good to know.
KNOWN: Mapping[str, str] = {
    "dockerd": "its containers are its own: docker uses it unless DOCKER_HOST names Insula's socket",
    "containerd": "its containers are its own",
    "podman": "its containers are its own",
    "libvirtd": "its machines and networks are its own",
    "virtqemud": "its machines and networks are its own",
    "incusd": "its instances are its own",
    "lxd": "its instances are its own",
    "kubelet": "this machine is a node of another cluster",
    "k3s-server": "this machine is a node of another cluster, whose API may hold port 6443",
    "kube-apiserver": "another cluster's API may hold port 6443",
    "firewalld": "when it reloads it leaves Insula's table alone, but its own policy may drop forwarded packets",
    "dnsmasq": "it must not listen on all addresses, or it answers for Insula's segments as well",
}


def findings() -> list[Finding]:
    """One line per neighbour. Blocking."""
    return judge(dict(_processes()))


def _processes() -> Iterator[tuple[str, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield (entry / "comm").read_text().strip(), int(entry.name)


def judge(processes: Mapping[str, int]) -> list[Finding]:
    """What running programs mean. `processes` maps names to pids."""
    found = [
        Finding(area=AREA, name=name, state=State.OK, found=f"runs (pid {processes[name]}); {words}")
        for name, words in KNOWN.items()
        if name in processes
    ]
    return found or [Finding(area=AREA, name="other engines", state=State.OK, found="none runs")]
