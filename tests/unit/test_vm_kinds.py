"""VirtualMachine and VirtualMachineInstance as kinds, and the instance that the agent makes of one."""

from __future__ import annotations

import base64
import re
from copy import deepcopy
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from insula.agent import vmspec
from insula.agent.vmspec import OVERHEAD_BYTES, image_references, instance_of, secret_names, topology
from insula.errors import Cause, Invalid, Unsupported
from insula.kinds import validation
from insula.kinds.kubevirt import virtualmachine, virtualmachineinstance
from insula.kinds.printing import Since
from insula.kinds.registry import Registry
from insula.model.instance import DiskConfig, MachineConfig, NetworkAttachment

VM, VMI = virtualmachine.KIND, virtualmachineinstance.KIND

INSTANCE = """
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: demo, namespace: lab, uid: 6f1c}
spec:
  domain:
    memory: {guest: 256Mi}
    devices:
      disks:
      - {name: root, disk: {bus: virtio}, bootOrder: 1}
      - {name: seed, cdrom: {bus: sata}}
      - {name: data, disk: {bus: scsi}, serial: D42}
      interfaces:
      - {name: default, masquerade: {}, macAddress: "DE-AD-00-00-BE-AF", model: e1000}
      rng: {}
  networks:
  - {name: default, pod: {}}
  volumes:
  - {name: root, containerDisk: {image: insula/linux, path: /disk/linux.img}}
  - {name: seed, cloudInitNoCloud: {userData: "#cloud-config\\n", networkDataSecretRef: {name: net}}}
  - {name: data, emptyDisk: {capacity: 2Gi}}
"""


def instance(**changes: Any) -> dict[str, Any]:
    """The example with fields of its spec replaced; a path is written with double underscores."""
    obj: dict[str, Any] = yaml.safe_load(INSTANCE)
    for path, value in changes.items():
        *steps, last = path.split("__")
        target = obj["spec"]
        for step in steps:
            target = target.setdefault(step, {})
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value
    return obj


def problems(obj: dict[str, Any]) -> list[Cause]:
    """As a creation finds them: defaults, schema, then what the kind checks."""
    kind = VMI if obj["kind"] == VMI.kind else VM
    validation.conform(kind, obj, "Strict")
    kind.default(obj)
    kind.prepare(obj, None)
    return [*validation.problems(kind, obj)] or kind.validate(obj, None)


def machine(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "demo", "namespace": "lab"},
        "spec": {"template": {"spec": instance()["spec"]}, **spec},
    }


def test_they_are_registered_with_their_names() -> None:
    registry = Registry.builtin()
    assert registry.by_gvk("kubevirt.io/v1", "VirtualMachine").short_names == ("vm", "vms")
    assert registry.by_gvk("kubevirt.io/v1", "VirtualMachineInstance").short_names == ("vmi", "vmis")


def test_defaults_of_a_minimal_instance() -> None:
    obj = instance(
        domain={"memory": {"guest": "64Mi"}, "cpu": {"cores": 2}, "devices": {}},
        volumes=[{"name": "root", "containerDisk": {"image": "a"}}],
        networks=None,
    )
    assert problems(obj) == []
    assert obj["spec"] == {
        "terminationGracePeriodSeconds": 30,
        "domain": {
            "memory": {"guest": "64Mi"},
            "cpu": {"cores": 2, "sockets": 1, "threads": 1},
            "machine": {"type": "q35"},
            "resources": {"requests": {"memory": "64Mi"}},
            "devices": {
                "disks": [{"name": "root", "disk": {"bus": "sata"}}],
                "interfaces": [{"name": "default", "masquerade": {}}],
            },
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [{"name": "root", "containerDisk": {"image": "a"}}],
    }
    assert obj["status"] == {"phase": "Pending"}
    assert obj["metadata"]["finalizers"] == ["foregroundDeleteVirtualMachine"]
    again = deepcopy(obj)
    VMI.default(again)
    assert again == obj


def test_an_instance_does_not_change() -> None:
    old = instance()
    assert problems(old) == []
    new = deepcopy(old)
    new["metadata"]["labels"] = {"a": "b"}
    VMI.prepare(new, old)
    assert VMI.validate(new, old) == []
    new["spec"]["domain"]["memory"]["guest"] = "1Gi"
    assert [cause.field for cause in VMI.validate(new, old)] == ["spec"]


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"domain__memory": None}, "spec.domain.memory.guest", "no memory requested"),
        ({"domain__memory__guest": "1Mi"}, "spec.domain.memory.guest", "at least 16Mi"),
        ({"domain__memory__guest": "-1Gi"}, "spec.domain.memory.guest", "greater than 0"),
        ({"domain__cpu": {"sockets": 99, "cores": 99}}, "spec.domain.cpu", "9801 CPUs"),
        ({"hostname": "Not.A.Label"}, "spec.hostname", "DNS_LABEL"),
        ({"volumes": []}, "spec.domain.devices.disks[0].name", "'root' not found"),
        ({"networks": []}, "spec.domain.devices.interfaces[0].name", "'default' not found"),
        (
            {"domain__firmware": {"bootloader": {"bios": {}, "efi": {}}}},
            "spec.domain.firmware.bootloader.efi",
            "exclusive",
        ),
        ({"domain__firmware": {"uuid": "x"}}, "spec.domain.firmware.uuid", "no UUID"),
        (
            {"domain__firmware": {"kernelBoot": {"kernelArgs": "quiet"}}},
            "spec.domain.firmware.kernelBoot.kernelArgs",
            "without an external kernel",
        ),
        ({"terminationGracePeriodSeconds": -1}, "spec.terminationGracePeriodSeconds", "greater than or equal to 0"),
    ],
)
def test_what_is_wrong_is_told_by_field(changes: dict[str, Any], field: str, words: str) -> None:
    found = problems(instance(**changes))
    assert found
    assert found[0].field == field
    assert words in found[0].message


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ("disks", {"name": "root", "disk": {"bus": "virtio"}, "cdrom": {"bus": "sata"}}, "single target type"),
        ("disks", {"name": "root", "cdrom": {"bus": "virtio"}}, "Bus type virtio is invalid for CD-ROM"),
        ("disks", {"name": "root", "disk": {"bus": "floppy"}}, "supported values"),
        ("disks", {"name": "root", "disk": {}, "bootOrder": 0}, "greater than or equal to 1"),
        ("disks", {"name": "root", "disk": {}, "serial": "x" * 40}, "36 printable"),
        ("disks", {"name": "seed", "disk": {}}, "Duplicate value"),
        ("interfaces", {"name": "default"}, "exactly one of masquerade, bridge"),
        ("interfaces", {"name": "default", "masquerade": {}, "bridge": {}}, "exactly one of"),
        ("interfaces", {"name": "default", "masquerade": {}, "macAddress": "1"}, "malformed MAC"),
        ("interfaces", {"name": "default", "masquerade": {}, "ports": [{"port": 70000}]}, "0 < x < 65536"),
    ],
)
def test_wrong_devices(where: str, value: dict[str, Any], words: str) -> None:
    obj = instance()
    obj["spec"]["domain"]["devices"][where][0] = value
    assert words in problems(obj)[0].message


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        ({"name": "root"}, "exactly one source"),
        ({"name": "root", "emptyDisk": {"capacity": "1Gi"}, "containerDisk": {"image": "a"}}, "exactly one source"),
        ({"name": "root", "emptyDisk": {"capacity": "0"}}, "greater than 0"),
        ({"name": "root", "cloudInitNoCloud": {}}, "at least one userdatasource"),
        ({"name": "root", "cloudInitNoCloud": {"userData": "a", "userDataBase64": "YQ=="}}, "only one userdatasource"),
        ({"name": "root", "cloudInitNoCloud": {"userData": "x" * 2049}}, "exceeds 2048 byte limit"),
    ],
)
def test_wrong_volumes(volume: dict[str, Any], words: str) -> None:
    obj = instance()
    obj["spec"]["volumes"][0] = volume
    assert words in problems(obj)[0].message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"domain__cpu": {"dedicatedCpuPlacement": True}}, "spec.domain.cpu.dedicatedCpuPlacement"),
        ({"domain__devices__gpus": [{"name": "g"}]}, "spec.domain.devices.gpus"),
        ({"domain__devices__tpm": {}}, "spec.domain.devices.tpm"),
        ({"domain__firmware": {"bootloader": {"efi": {}}}}, "spec.domain.firmware.bootloader.efi.secureBoot"),
        ({"readinessProbe": {"tcpSocket": {"port": 80}}}, "spec.readinessProbe"),
        ({"architecture": "arm64"}, "spec.architecture"),
        ({"networks": [{"name": "default", "multus": {"networkName": "a"}}]}, "spec.networks[0].multus"),
    ],
)
def test_what_insula_does_not_do_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    obj = instance(**changes)
    if "networks" in changes:
        obj["spec"]["domain"]["devices"]["interfaces"] = [{"name": "default", "bridge": {}}]
    found = problems(obj)
    assert (found[0].field, found[0].reason) == (field, "FieldValueNotSupported")
    assert "not supported by Insula" in found[0].message
    if obj["spec"].get("networks") and "domain__firmware" not in changes:
        with pytest.raises(Unsupported) as caught:
            instance_of(obj, {"net": {"networkdata": b""}})
        assert caught.value.field == field


def test_unsupported_volumes_name_what_is_there() -> None:
    obj = instance()
    obj["spec"]["volumes"][0] = {"name": "root", "persistentVolumeClaim": {"claimName": "c"}}
    [found] = problems(obj)
    assert found.field == "spec.volumes[0].persistentVolumeClaim"
    assert "containerDisk" in found.message


def test_an_unknown_field_is_refused_in_strict_mode() -> None:
    with pytest.raises(Invalid, match=r'unknown field "spec.domain.devices.disk"'):
        problems(instance(domain__devices__disk=[]))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"running": True, "runStrategy": "Always"}, "spec.running"),
        ({"runStrategy": "Sometimes"}, "spec.runStrategy"),
        ({"instancetype": {"name": "u1.small"}}, "spec.instancetype"),
        ({"dataVolumeTemplates": [{}]}, "spec.dataVolumeTemplates"),
        ({"template": {"spec": instance(volumes=[])["spec"]}}, "spec.template.spec.domain.devices.disks[0].name"),
        ({"template": {}}, "spec.template.spec"),
    ],
)
def test_machines_are_checked_with_their_template(spec: dict[str, Any], field: str) -> None:
    assert problems(machine(**spec))[0].field == field


def test_a_machine_keeps_its_template_as_written() -> None:
    obj = machine(running=False)
    before = deepcopy(obj["spec"]["template"])
    assert problems(obj) == []
    before["spec"]["domain"]["machine"] = {"type": "q35"}
    assert obj["spec"]["template"] == before
    assert "status" not in obj


def test_columns() -> None:
    obj = instance()
    obj["metadata"]["creationTimestamp"] = "2026-01-02T03:04:05Z"
    obj["status"] = {
        "phase": "Running",
        "nodeName": "n1",
        "interfaces": [{"ipAddress": "10.0.0.5"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    assert VMI.row is not None
    assert VM.row is not None
    assert list(VMI.row(obj)) == [Since("2026-01-02T03:04:05Z"), "Running", "10.0.0.5", "n1", "True", "", ""]
    assert len(VMI.columns) == 7
    assert VMI.fields(obj) == {"status.nodeName": "n1", "status.phase": "Running"}
    vm = {"metadata": {}, "status": {"printableStatus": "Stopped"}}
    assert list(VM.row(vm))[1:] == ["Stopped", ""]


def test_a_card_keeps_its_mac_for_as_long_as_the_virtual_machine_lives() -> None:
    def made(uid: str, owner: str = "", card: str = "default") -> str:
        obj = instance(domain__devices__interfaces=[{"name": card, "masquerade": {}}], volumes=[], networks=[])
        obj["spec"]["domain"]["devices"]["disks"] = []
        obj["metadata"]["uid"] = uid
        if owner:
            obj["metadata"]["ownerReferences"] = [{"kind": "VirtualMachine", "name": "demo", "uid": owner}]
        return vmspec.mac_of(obj, card)

    assert made("1", "vm") == made("2", "vm") != made("2", "other")
    assert made("1") != made("2")
    assert made("1", "vm", "second") != made("1", "vm")
    assert re.fullmatch(r"02:49(:[0-9a-f]{2}){4}", made("1"))
    (card,) = instance_of(
        instance(domain__devices__interfaces=[{"name": "default", "masquerade": {}}]),
        {"net": {"networkData": b"version: 2\n"}},
    ).networks
    assert card.mac == vmspec.mac_of(instance(), "default")


def test_the_instance_of_a_machine() -> None:
    obj = instance(domain__resources={"requests": {"cpu": "1500m"}, "limits": {"cpu": "2", "memory": "300Mi"}})
    assert problems(obj) == []
    assert image_references(obj) == [("insula/linux", "")]
    assert secret_names(obj) == ["net"]
    made = instance_of(obj, {"net": {"networkData": b"version: 2\n"}})
    assert made.machine == MachineConfig(
        memory_bytes=256 << 20,
        sockets=2,
        uuid="a14bc0a7-6886-5f6a-893c-9b4eb012c682",
        disks=(
            DiskConfig(name="root", kind="image", source="insula/linux!/disk/linux.img", boot_order=1),
            DiskConfig(
                name="seed",
                kind="cloudinit",
                bus="sata",
                cdrom=True,
                readonly=True,
                files={
                    "meta-data": "instance-id: demo.lab.6f1c\nlocal-hostname: demo\n",
                    "user-data": "#cloud-config\n",
                    "network-config": "version: 2\n",
                },
            ),
            DiskConfig(name="data", kind="empty", size_bytes=2 << 30, bus="scsi", serial="D42"),
        ),
        nic_model="e1000",
        hostname="demo",
    )
    assert made.name == "vmi_demo_lab_6f1c"
    assert (made.driver, made.owner, made.network_mode) == ("vm", "kube", "default")
    assert made.networks == (NetworkAttachment(network="default", mac="de:ad:00:00:be:af"),)
    assert made.resources.cpu_quota_us == 200_000
    assert made.resources.cpu_shares == 1536
    assert made.resources.memory_bytes == (300 << 20) + OVERHEAD_BYTES
    assert made.stop_timeout_s == 30
    assert made.labels["kubevirt.io/vmi-uid"] == "6f1c"
    assert msgspec.convert(msgspec.to_builtins(made), type(made)) == made


def test_the_uuid_stays_with_the_name() -> None:
    def uuid_of(name: str) -> str:
        obj = instance()
        obj["metadata"].update(name=name, uid=name * 2)
        made = instance_of(obj, {"net": {"networkdata": b""}}).machine
        assert made is not None
        return made.uuid

    assert uuid_of("a") == uuid_of("a")
    assert uuid_of("a") != uuid_of("b")


def test_kernel_boot_without_network_and_screen() -> None:
    container = {"image": "k", "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd", "imagePullPolicy": "Never"}
    obj = instance(
        domain={
            "memory": {"guest": "64Mi"},
            "machine": {"type": "microvm"},
            "firmware": {"kernelBoot": {"container": container, "kernelArgs": "console=ttyS0"}, "serial": "S"},
            "devices": {"autoattachPodInterface": False, "autoattachGraphicsDevice": False},
        },
        volumes=None,
        networks=None,
        startStrategy="Paused",
        terminationGracePeriodSeconds=0,
        hostname="h",
    )
    assert problems(obj) == []
    assert image_references(obj) == [("k", "Never")]
    made = instance_of(obj, {})
    hardware = made.machine
    assert hardware is not None
    assert (made.network_mode, made.networks, made.stop_timeout_s) == ("none", (), 0)
    assert (hardware.kernel_image, hardware.kernel_path, hardware.initrd_path) == ("k", "/boot/vmlinuz", "/boot/initrd")
    assert (hardware.kernel_args, hardware.serial_number, hardware.machine_type) == ("console=ttyS0", "S", "microvm")
    assert (hardware.graphics, hardware.rng, hardware.start_paused, hardware.hostname) == (False, False, True, "h")


def test_cloud_init_from_base64_and_secrets() -> None:
    def user_data(seed: dict[str, Any], secrets: dict[str, dict[str, bytes]]) -> str:
        obj = instance()
        obj["spec"]["volumes"][1]["cloudInitNoCloud"] = seed
        made = instance_of(obj, secrets).machine
        assert made is not None
        return made.disks[1].files["user-data"]

    assert user_data({"userDataBase64": base64.b64encode("ä".encode()).decode()}, {}) == "ä"
    assert user_data({"secretRef": {"name": "s"}}, {"s": {"userdata": b"x"}}) == "x"
    assert user_data({"secretRef": {"name": "s"}}, {"s": {"userData": b"y"}}) == "y"
    for seed, secrets in (
        ({"userDataBase64": "%"}, {}),
        ({"secretRef": {"name": "s"}}, {}),
        ({"secretRef": {"name": "s"}}, {"s": {"other": b""}}),
        ({"secretRef": {"name": "s"}}, {"s": {"userdata": b"\xff"}}),
    ):
        with pytest.raises(Invalid) as caught:
            user_data(seed, secrets)  # type: ignore[arg-type]
        assert caught.value.field


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ({}, (1, 1, 1)),
        ({"cpu": {"model": "host-model"}}, (1, 1, 1)),
        ({"cpu": {"cores": 2}}, (1, 2, 1)),
        ({"cpu": {"sockets": 2, "cores": 2, "threads": 2}}, (2, 2, 2)),
        ({"resources": {"requests": {"cpu": "100m"}}}, (1, 1, 1)),
        ({"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2500m"}}}, (3, 1, 1)),
    ],
)
def test_topology(domain: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert topology(domain) == expected


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_PLACES = st.sampled_from(
    [
        "domain", "domain__memory", "domain__cpu", "domain__resources", "domain__machine", "domain__firmware",
        "domain__devices", "domain__devices__disks", "domain__devices__interfaces", "volumes", "networks", "hostname",
    ]
)  # fmt: skip


@given(_PLACES, _ANYTHING)
def test_no_value_anywhere_breaks_the_checks(place: str, value: Any) -> None:
    obj = instance()
    *steps, last = place.split("__")
    target = obj["spec"]
    for step in steps:
        target = target[step]
    target[last] = value
    try:
        found = problems(obj)
    except Invalid:
        return
    if not found:
        instance_of({**obj, "spec": obj["spec"]}, {"net": {"networkdata": b""}})
