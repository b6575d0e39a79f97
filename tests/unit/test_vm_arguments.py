"""QEMU's argument lists, golden."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.drivers.vm.argv import cpu_model, escape, machine_uuid, qemu_arguments
from insula.drivers.vm.create import launch_of, uid_of
from insula.drivers.vm.devices import boot_order
from insula.drivers.vm.launch import Firmware, Launch
from insula.errors import Invalid, Unsupported
from insula.model.instance import Disk, MachineConfig, MachineSpec, Tap

ID = "0123456789abcdef" * 4
MIB = 1024 * 1024
LAUNCH = Launch(
    binary="/usr/bin/qemu-system-x86_64",
    version=(7, 2),
    accelerator="kvm",
    id=ID,
    name="web",
    monitor_fd=7,
    serial_fd=8,
    vnc="/run/i/vm/0123/vnc",
    serial_log="/var/log/web",
    pidfile="/data/web/qemu.pid",
    uid=1900000001,
)
BARE = MachineConfig(memory_bytes=256 * MIB, graphics=False, rng=False)

HEAD = [
    "/usr/bin/qemu-system-x86_64", "-no-user-config", "-nodefaults", "-S", "-msg", "timestamp=on",
    "-pidfile", "/data/web/qemu.pid", "-name", "guest=web,debug-threads=off",
    "-action", "reboot=reset,shutdown=pause,panic=pause,watchdog=reset",
    "-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny", "-runas", "1900000001:1900000001",
]  # fmt: skip
LINES = [
    "-chardev", "socket,id=monitor0,fd=7,server=on,wait=off", "-mon", "chardev=monitor0,mode=control",
    "-chardev", "socket,id=serial0,fd=8,server=on,wait=off,logfile=/var/log/web,logappend=on",
    "-serial", "chardev:serial0",
]  # fmt: skip
BALLOON = '{"driver":"virtio-balloon-pci","id":"balloon0","deflate-on-oom":true,"free-page-reporting":true}'
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def arguments(machine: MachineSpec, **changes: Any) -> list[str]:
    return qemu_arguments(machine, msgspec.structs.replace(LAUNCH, **changes))


def devices(argv: list[str], option: str = "-device") -> list[dict[str, Any]]:
    return [json.loads(value) for word, value in pairwise(argv) if word == option and value[0] == "{"]


def after(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_a_bare_machine_on_kvm() -> None:
    assert arguments(MachineSpec(config=BARE)) == [
        *HEAD,
        *("-machine", "q35,hpet=off,vmport=off", "-accel", "kvm", "-cpu", "host,migratable=on"),
        *("-smp", "1,sockets=1,cores=1,threads=1", "-m", "256M", "-rtc", "base=utc"),
        *("-uuid", UUID, "-smbios", f"type=1,manufacturer=Insula,product=Insula machine,uuid={UUID}"),
        *("-boot", "menu=off,strict=on"),
        *LINES,
        *("-display", "none", "-device", BALLOON, "-device", '{"driver":"pvpanic-pci","id":"panic0"}'),
    ]


def test_a_full_machine_on_tcg() -> None:
    config = MachineConfig(memory_bytes=1000 * MIB + 1, sockets=2, cores=2, serial_number="a,b", uuid=UUID.upper())
    machine = MachineSpec(
        config=config,
        disks=(
            Disk(name="root", path="/d/root,1.qcow2", format="qcow2", serial="R1"),
            Disk(name="cd", path="/d/cd.iso", format="raw", bus="sata", cdrom=True),
            Disk(name="data", path="/d/data", format="raw", bus="scsi", readonly=True),
            Disk(name="stick", path="/d/stick", format="raw", bus="usb"),
        ),
        taps=(Tap(name="tap-web", mac="02:00:00:00:00:01"), Tap(name="tap2", mac="02:00:00:00:00:02", model="e1000e")),
    )
    argv = arguments(machine, accelerator="tcg", uid=0)
    assert "-runas" not in argv
    assert after(argv, "-accel") == "tcg,thread=multi,tb-size=256"
    assert after(argv, "-cpu") == "max,la57=off"
    assert after(argv, "-smp") == "4,sockets=2,cores=2,threads=1"
    assert after(argv, "-m") == "1001M"
    assert after(argv, "-smbios").endswith(f"uuid={UUID},serial=a,,b")
    assert after(argv, "-vnc") == "unix:/run/i/vm/0123/vnc"
    assert [each["node-name"] for each in devices(argv, "-blockdev")] == [
        "disk0-file", "disk0", "disk1-file", "disk1", "disk2-file", "disk2", "disk3-file", "disk3",
    ]  # fmt: skip
    assert devices(argv, "-blockdev")[:4] == [
        {
            "driver": "file", "node-name": "disk0-file", "filename": "/d/root,1.qcow2", "read-only": False,
            "locking": "auto", "discard": "unmap", "aio": "threads", "cache": {"direct": False, "no-flush": False},
        },
        {"driver": "qcow2", "node-name": "disk0", "file": "disk0-file", "read-only": False, "discard": "unmap"},
        {
            "driver": "file", "node-name": "disk1-file", "filename": "/d/cd.iso", "read-only": True,
            "locking": "auto", "discard": "unmap", "aio": "threads", "cache": {"direct": False, "no-flush": False},
        },
        {"driver": "raw", "node-name": "disk1", "file": "disk1-file", "read-only": True, "discard": "unmap"},
    ]  # fmt: skip
    assert devices(argv) == [
        {"driver": "VGA", "id": "video0", "vgamem_mb": 16},
        {"driver": "virtio-rng-pci", "rng": "random0", "id": "rng0"},
        json.loads(BALLOON),
        {"driver": "pvpanic-pci", "id": "panic0"},
        {"driver": "virtio-scsi-pci", "id": "scsi0"},
        {"driver": "qemu-xhci", "id": "usb0"},
        {"driver": "virtio-blk-pci", "drive": "disk0", "id": "disk0-device", "bootindex": 1, "serial": "R1"},
        {"driver": "ide-cd", "bus": "ide.0", "drive": "disk1", "id": "disk1-device", "bootindex": 2},
        {"driver": "scsi-hd", "bus": "scsi0.0", "drive": "disk2", "id": "disk2-device", "bootindex": 3},
        {"driver": "usb-storage", "bus": "usb0.0", "drive": "disk3", "id": "disk3-device", "bootindex": 4},
        {"driver": "virtio-net-pci", "netdev": "net0", "id": "net0-device", "mac": "02:00:00:00:00:01", "romfile": ""},
        {"driver": "e1000e", "netdev": "net1", "id": "net1-device", "mac": "02:00:00:00:00:02", "romfile": ""},
    ]
    assert after(argv, "-netdev") == "tap,id=net0,ifname=tap-web,script=no,downscript=no,vhost=off"


def test_a_microvm_has_no_pci() -> None:
    machine = MachineSpec(
        config=MachineConfig(machine_type="microvm", memory_bytes=128 * MIB),
        kernel="/k",
        initrd="/i",
        kernel_args="console=ttyS0",
        disks=(Disk(name="root", path="/d", format="raw"),),
        taps=(Tap(name="t", mac="02:00:00:00:00:01"),),
    )
    argv = arguments(machine)
    assert after(argv, "-machine") == "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,auto-kernel-cmdline=on"
    assert argv[argv.index("-kernel") :][:6] == ["-kernel", "/k", "-initrd", "/i", "-append", "console=ttyS0"]
    assert [each["driver"] for each in devices(argv)] == [
        "virtio-rng-device", "virtio-balloon-device", "virtio-blk-device", "virtio-net-device",
    ]  # fmt: skip
    assert "-vnc" not in argv
    assert "-smbios" not in argv
    with pytest.raises(Unsupported, match="needs KVM"):
        arguments(machine, accelerator="tcg")


def test_uefi_boots_from_two_flash_chips() -> None:
    config = msgspec.structs.replace(BARE, firmware="efi")
    argv = arguments(MachineSpec(config=config), firmware=Firmware(code="/OVMF_CODE", variables="/data/vars"))
    assert after(argv, "-machine").endswith(",pflash0=flash0,pflash1=flash1")
    assert devices(argv, "-blockdev") == [
        {"driver": "file", "node-name": "flash0", "filename": "/OVMF_CODE", "read-only": True},
        {"driver": "file", "node-name": "flash1", "filename": "/data/vars", "read-only": False},
    ]


def test_newer_qemu_is_told_its_user_in_the_newer_way() -> None:
    argv = arguments(MachineSpec(config=BARE), version=(10, 0))
    assert after(argv, "-run-with") == "user=1900000001:1900000001"
    assert "-runas" not in argv


def test_the_boot_order_is_the_one_asked_or_that_of_the_list() -> None:
    disks = [Disk(name=str(order), path="/d", format="raw", boot_order=order) for order in (0, 2, 1)]
    assert boot_order(disks) == [0, 2, 1]
    assert boot_order(disks[:1]) == [1]
    assert boot_order([]) == []


def test_cpu_models() -> None:
    tcg = msgspec.structs.replace(LAUNCH, accelerator="tcg")
    for name in ("", "host", "host-model", "host-passthrough"):
        config = msgspec.structs.replace(BARE, cpu_model=name)
        assert cpu_model(config, LAUNCH) == "host,migratable=on"
        assert cpu_model(config, tcg) == "max,la57=off"
    assert cpu_model(msgspec.structs.replace(BARE, cpu_model="Skylake-Client-v1"), tcg) == "Skylake-Client-v1"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"machine_type": "q35,accel=kvm"}, "machine.machine_type"),
        ({"machine_type": "isapc"}, "machine.machine_type"),
        ({"memory_bytes": 1024}, "machine.memory_bytes"),
        ({"cores": 0}, "machine.cores"),
        ({"sockets": 16, "cores": 16}, "machine.cores"),
        ({"cpu_model": "host,-svm"}, "machine.cpu_model"),
        ({"machine_type": "microvm", "firmware": "efi"}, "machine.firmware"),
        ({"machine_type": "microvm"}, "machine.kernel_image"),
        ({"uuid": "x"}, "machine.uuid"),
    ],
)
def test_a_machine_that_cannot_be_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        arguments(MachineSpec(config=msgspec.structs.replace(BARE, **change)))
    assert caught.value.field == field


@pytest.mark.parametrize(
    "machine",
    [
        MachineSpec(config=BARE, taps=(Tap(name="a,script=/bin/sh", mac="02:00:00:00:00:01"),)),
        MachineSpec(config=BARE, taps=(Tap(name="t", mac="02"),)),
        MachineSpec(config=BARE, taps=(Tap(name="t", mac="02:00:00:00:00:01", model="tulip"),)),
        MachineSpec(config=BARE, disks=(Disk(name="d", path="/d", format="raw", bus="floppy"),)),
        MachineSpec(config=BARE, disks=(Disk(name="d", path="/d", format="raw", cdrom=True),)),
        MachineSpec(config=BARE, disks=(Disk(name="d", path="/d", format="raw", serial="é"),)),
        MachineSpec(
            config=BARE, disks=tuple(Disk(name=f"d{n}", path="/d", format="raw", bus="sata") for n in range(7))
        ),
        MachineSpec(config=BARE, kernel_args="quiet"),
    ],
)
def test_devices_that_cannot_be_are_refused(machine: MachineSpec) -> None:
    with pytest.raises(Invalid):
        arguments(machine)


def test_foreign_machines_are_for_another_driver() -> None:
    with pytest.raises(Unsupported):
        arguments(MachineSpec(config=msgspec.structs.replace(BARE, arch="aarch64")))


@given(st.text(min_size=1, max_size=40).filter(lambda text: "\0" not in text))
def test_no_name_can_add_an_option(name: str) -> None:
    argv = arguments(MachineSpec(config=BARE), name=name)
    value = after(argv, "-name").removeprefix("guest=").removesuffix(",debug-threads=off")
    assert value.replace(",,", "").count(",") == 0
    assert value.replace(",,", ",") == name


def test_a_nul_is_refused() -> None:
    with pytest.raises(Invalid):
        escape("a\0b")


def test_uuid_and_user_come_from_the_id() -> None:
    assert machine_uuid(BARE, ID) == UUID
    assert 0x7000_0000 <= uid_of(ID) < 0x7F00_0000
    assert uid_of(ID) != uid_of("f" * 64)
    assert callable(launch_of)
