"""kill -9 of the daemon around a virtual machine, and of its QEMU: the machine goes on, or comes back as its strategy says."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from fault.fault_support import Island, processes, running, until

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.may_block, pytest.mark.timeout(300)]

MACHINES = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
INSTANCES = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances"


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    yield from running(machine=True)


def machine(name: str, strategy: str) -> dict[str, Any]:
    domain = {
        "memory": {"guest": "160Mi"},
        "devices": {
            "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
            "interfaces": [{"name": "default", "masquerade": {}}],
        },
    }
    volumes = [{"name": "root", "containerDisk": {"image": "insula/linux", "imagePullPolicy": "Never"}}]
    spec = {"domain": domain, "volumes": volumes, "networks": [{"name": "default", "pod": {}}]}
    return {"metadata": {"name": name}, "spec": {"runStrategy": strategy, "template": {"spec": spec}}}


def found(island: Island, name: str) -> dict[str, Any]:
    answer = island.kube_api("GET", f"{INSTANCES}/{name}")
    return dict(answer.json) if answer.status == 200 else {}


def runs(island: Island, name: str) -> bool:
    return bool(found(island, name).get("status", {}).get("phase") == "Running")


def qemus(island: Island) -> list[int]:
    return [int(each.split()[0]) for each in processes(str(island.folder)) if "qemu-system" in each.split()[1]]


def test_a_machine_outlives_the_daemon_and_its_own_end_is_told(island: Island) -> None:
    assert island.kube_api("POST", MACHINES, machine("vm", "Always")).status == 201
    until(lambda: runs(island, "vm"), timeout_s=90)
    (qemu,) = qemus(island)
    uid = found(island, "vm")["metadata"]["uid"]
    island.kill()
    os.kill(qemu, 0)
    island.up()
    assert runs(island, "vm") and found(island, "vm")["metadata"]["uid"] == uid
    assert qemus(island) == [qemu]
    assert (
        island.kube_api(
            "PUT", "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances/vm/pause", {}
        ).status
        < 300
    )
    island.kill()
    island.up()
    unpause = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances/vm/unpause"
    answer = island.kube_api("PUT", unpause, {})
    assert answer.status < 300, answer
    assert qemus(island) == [qemu]
    os.kill(qemu, signal.SIGKILL)  # Always: another one, once
    until(
        lambda: (
            qemus(island) not in ([], [qemu]) and runs(island, "vm") and found(island, "vm")["metadata"]["uid"] != uid
        ),
        timeout_s=90,
    )
    assert len(qemus(island)) == 1
    island.kill()
    (qemu,) = qemus(island)
    os.kill(qemu, signal.SIGKILL)  # nobody sees it end
    island.up()
    until(lambda: qemus(island) and runs(island, "vm"), timeout_s=90)
    assert len(qemus(island)) == 1
    stop = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/vm/stop"
    assert island.kube_api("PUT", stop, {"gracePeriod": 0}).status < 300
    with contextlib.suppress(ProcessLookupError):
        island.kill()  # in the middle of the stop
    island.up()
    until(lambda: not qemus(island) and not found(island, "vm"), timeout_s=60, what="the machine is stopped")
    assert island.kube_api("GET", f"{MACHINES}/vm").json["spec"]["runStrategy"] == "Halted"
    assert island.kube_api("DELETE", f"{MACHINES}/vm").status == 200
    until(lambda: island.kube_api("GET", f"{MACHINES}/vm").status == 404)


@pytest.mark.parametrize("step", ["start.make_machine:before", "start.run"])
def test_a_start_cut_short_is_made_once(island: Island, step: str) -> None:
    island.kill()
    island.up(crash_at=step)
    with contextlib.suppress(OSError):
        island.kube_api("POST", MACHINES, machine("cut", "Always"))
    until(lambda: not island.alive, timeout_s=60, what="the crash point is reached")
    island.up()
    until(lambda: runs(island, "cut"), timeout_s=90)
    assert len(qemus(island)) == 1
    assert island.kube_api("DELETE", f"{MACHINES}/cut").status == 200
    until(lambda: not qemus(island) and not found(island, "cut"), timeout_s=60)
