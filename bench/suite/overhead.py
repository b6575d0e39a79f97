"""What one more container or machine costs beside the workload itself: helper processes plus the growth of the daemon."""

from __future__ import annotations

import time

from bench import processes
from bench.api import Api
from bench.benchmark import AT_MOST, Benchmark, Budget, Row, summary
from bench.commands import run as run_command
from bench.commands import until
from bench.context import Context
from bench.dockerd import Dockerd
from bench.insula import IMAGE, Insula

MIB = 2**20
HELPERS = ("conmon", "containerd-shim-runc-v2", "docker-proxy")
QEMU = "qemu-system-x86_64"
MACHINES = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances"


def _pss(daemon: Insula | Dockerd) -> int:
    """Of the daemon, its children and its helpers that have left its tree, without the machines' QEMU."""
    pids = {*processes.tree(daemon.pid), *processes.helpers(daemon.mark(), names=HELPERS)}
    machines = processes.helpers(daemon.mark(), names=(QEMU,))
    return processes.cost(pids.difference(machines)).pss_bytes


def _per_container(daemon: Insula | Dockerd, count: int) -> float:
    start = ["docker", "run", "-d", IMAGE, "sleep", "1000"]
    first = run_command(start, env=daemon.env).decode().split()  # pays for what is made once
    time.sleep(1)
    before = _pss(daemon)
    ids = [run_command(start, env=daemon.env).decode().strip() for _ in range(count)]
    time.sleep(1)
    grown = _pss(daemon) - before
    run_command(["docker", "rm", "-f", *ids, *first], env=daemon.env)
    return grown / count / MIB


def machine(name: str) -> dict[str, object]:
    """The demo machine without a disk to write to."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name},
        "spec": {
            "domain": {
                "memory": {"guest": "128Mi"},
                "devices": {
                    "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                    "interfaces": [{"name": "default", "masquerade": {}}],
                },
            },
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [
                {"name": "root", "containerDisk": {"image": "insula/linux:latest", "imagePullPolicy": "IfNotPresent"}}
            ],
        },
    }


def _start_machine(api: Api, name: str) -> None:
    api.call("POST", MACHINES, machine(name))
    path = f"{MACHINES}/{name}"
    until(lambda: (api.call("GET", path).get("status") or {}).get("phase") == "Running", f"a running {name}")


def _per_machine(context: Context, count: int) -> float:
    """Everything but QEMU itself."""
    insula, api = context.insula, Api(context.insula.server())
    try:
        _start_machine(api, "overhead-first")
        time.sleep(1)
        before = _pss(insula)
        for number in range(count):
            _start_machine(api, f"overhead-{number}")
        time.sleep(1)
        grown = _pss(insula) - before
        names = ["overhead-first", *(f"overhead-{number}" for number in range(count))]
        for name in names:
            api.call("DELETE", f"{MACHINES}/{name}?gracePeriodSeconds=0")
        for name in names:
            until(lambda n=name: api.call("GET", f"{MACHINES}/{n}", accept=(404,))["kind"] == "Status", f"no {name}")  # type: ignore[misc]
    finally:
        api.close()
    return grown / count / MIB


def run(context: Context) -> list[Row]:
    """Containers on both daemons, machines on Insula."""
    count = context.times(20, 5)
    ours = _per_container(context.insula, count)
    theirs = _per_container(context.dockerd, count) if context.dockerd else None
    return [
        Row(
            what=f"memory (PSS) per container, of {count}, beside its processes",
            unit="MiB",
            insula=summary([ours]),
            peer=summary([theirs]) if theirs is not None else None,
            peer_name="dockerd",
            absent=context.no_dockerd(),
            budgets=(Budget(AT_MOST, 3),),
        ),
        Row(
            what="memory (PSS) per machine beside QEMU",
            unit="MiB",
            insula=summary([_per_machine(context, context.times(4, 2))]),
            budgets=(Budget(AT_MOST, 15),),
        ),
    ]


BENCHMARK = Benchmark("overhead", "memory per container and per machine", run)
