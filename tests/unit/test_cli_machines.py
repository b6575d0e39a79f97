"""Manifests, rows and verdicts of `insula vm`, and that what it makes is valid KubeVirt."""

from __future__ import annotations

from typing import Any

import pytest

from insula.cli import machines
from insula.cli.machines import Boot, Wish
from insula.errors import Invalid
from insula.images.machine import CONFIG
from insula.kinds.kubevirt.virtualmachine import KIND


def test_a_machine_from_a_disk_image() -> None:
    made = machines.machine(Wish(name="web", image="debian:12", memory="2Gi", cpus=2, start=False))
    assert made == {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "runStrategy": "Halted",
            "template": {
                "metadata": {"labels": {"kubevirt.io/domain": "web"}},
                "spec": {
                    "domain": {
                        "cpu": {"cores": 2},
                        "memory": {"guest": "2Gi"},
                        "devices": {
                            "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                            "interfaces": [{"name": "default", "masquerade": {}}],
                            "rng": {},
                        },
                    },
                    "networks": [{"name": "default", "pod": {}}],
                    "volumes": [
                        {"name": "root", "containerDisk": {"image": "debian:12", "imagePullPolicy": "IfNotPresent"}}
                    ],
                },
            },
        },
    }


def test_the_labels_of_the_demo_image_ask_for_its_kernel() -> None:
    boot = machines.boot_of(CONFIG["Labels"])
    domain = machines.machine(Wish(name="m", image="insula/linux:latest", boot=boot))["spec"]["template"]["spec"][
        "domain"
    ]
    assert domain["firmware"]["kernelBoot"] == {
        "container": {
            "image": "insula/linux:latest",
            "imagePullPolicy": "IfNotPresent",
            "kernelPath": "/boot/vmlinuz",
            "initrdPath": "/boot/initrd",
        },
        "kernelArgs": "console=ttyS0 quiet",
    }
    assert domain["devices"]["disks"] == []


@pytest.mark.parametrize(
    "wish",
    [
        Wish(name="a", image="x"),
        Wish(name="a", image="x", boot=Boot(kernel="/boot/vmlinuz", initrd="/boot/initrd", arguments="quiet")),
        Wish(name="a", image="x", user_data="#cloud-config\n"),
        Wish(name="a", image="x", user_data="x" * 5000),
    ],
)
def test_every_form_is_valid(wish: Wish) -> None:
    made = machines.machine(wish)
    KIND.default(made)
    assert KIND.validate(made, None) == []


def test_long_user_data_goes_into_a_secret() -> None:
    short, long = (Wish(name="m", image="x", user_data="#" * size) for size in (2048, 2049))
    assert [found["kind"] for found in machines.manifests(short)] == ["VirtualMachine"]
    secret, made = machines.manifests(long)
    assert secret["stringData"] == {"userdata": "#" * 2049}
    volume = made["spec"]["template"]["spec"]["volumes"][-1]
    assert volume == {"name": "cloud-init", "cloudInitNoCloud": {"secretRef": {"name": secret["metadata"]["name"]}}}


def test_a_size_that_is_none() -> None:
    with pytest.raises(Invalid, match="--memory much is not a size"):
        machines.machine(Wish(name="m", image="x", memory="much"))


def stored(**parts: Any) -> dict[str, Any]:
    made = machines.machine(Wish(name="m", image="x"))
    made["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z", "uid": "u"}
    return made | parts


def instance(phase: str, **conditions: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "metadata": {"name": "m", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": machines.machine(Wish(name="m", image="x"))["spec"]["template"]["spec"],
        "status": {
            "phase": phase,
            "nodeName": "n",
            "interfaces": [{"ipAddress": "10.0.0.7"}],
            "conditions": [
                {"type": kind, "status": status, "reason": reason, "message": message}
                for kind, (status, reason, message) in conditions.items()
            ],
        },
    }


def test_rows() -> None:
    running = instance("Running", Accelerated=("False", "TCG", ""), Ready=("True", "", ""))
    alone = instance("Running", Ready=("True", "", ""))
    alone["metadata"] = {**alone["metadata"], "name": "alone"}
    made = stored(status={"printableStatus": "Running", "ready": True})
    first, second = machines.rows([made], [running, alone])
    assert (first["name"], first["status"], first["ready"], first["address"]) == ("alone", "Running", True, "10.0.0.7")
    assert second["accelerator"] == "TCG"
    assert (second["cpus"], second["memory"], second["image"], second["node"]) == (1, "512Mi", "x", "n")


@pytest.mark.parametrize(
    ("made", "found", "words"),
    [
        (None, None, "does not exist"),
        (stored(), None, ""),
        (stored(spec=stored()["spec"] | {"runStrategy": "Halted"}), None, "is stopped"),
        (stored(), instance("Running"), ""),
        (
            stored(),
            instance("Scheduled", Ready=("False", "ErrImagePull", "no such image")),
            "cannot start: no such image",
        ),
        (stored(), instance("", PodScheduled=("False", "Unschedulable", "no room")), "cannot start: no room"),
        (None, instance("Failed"), "has ended: Failed"),
    ],
)
def test_whether_there_is_hope(made: dict[str, Any] | None, found: dict[str, Any] | None, words: str) -> None:
    assert machines.trouble(made, found) == words
