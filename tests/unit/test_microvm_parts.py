"""A container image in a machine: the pure parts. Arguments, sizes, refusals, places of mounts, orders, frames, lists."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.api.docker.ownps import list_own
from insula.drivers.driver import ProcessRow
from insula.drivers.microvm import files, plan
from insula.drivers.microvm.argv import Card, Machine, qemu_arguments
from insula.drivers.microvm.cards import Interface, tap_of
from insula.drivers.microvm.checks import check
from insula.drivers.microvm.processes import read_row, read_rows
from insula.drivers.microvm.sandboxed import frames
from insula.drivers.microvm.sandboxed.frames import BadFrame, Reader, pack, pack_number
from insula.drivers.microvm.sizes import MIB, count_listed, cpus, memory_mib, of_sandbox
from insula.drivers.oci import spec as oci
from insula.drivers.oci.facts import HostFacts
from insula.errors import Invalid, Unsupported
from insula.host import redirect, virtiofsd
from insula.model.instance import (
    Device,
    Guest,
    InstanceConfig,
    InstanceSpec,
    Mount,
    MountConfig,
    Process,
    Resources,
    Security,
    Ulimit,
)

MACHINE = Machine(
    binary="/usr/bin/qemu-system-x86_64",
    version=(7, 2),
    accelerator="kvm",
    memory_mib=576,
    cpus=2,
    uid=1900000001,
    port_fd=10,
)
CARD = Card(tap="vm-eth0", mac="02:42:0a:01:00:02")
HEAD = [
    "/usr/bin/qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
    "-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny", "-runas", "1900000001:1900000001",
]  # fmt: skip
KVM = [
    "-machine",
    "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=off,auto-kernel-cmdline=on,memory-backend=memory",
    *("-accel", "kvm", "-cpu", "host", "-global", "virtio-mmio.force-legacy=false"),
]
TCG = [
    *("-machine", "q35,hpet=off,vmport=off,smbus=off,sata=off,usb=off,memory-backend=memory"),
    *("-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max,la57=off"),
]
MEMORY = [
    *("-m", "576M", "-object", "memory-backend-memfd,id=memory,size=576M,share=on"),
    *("-smp", "2,sockets=1,cores=2,threads=1", "-kernel", "/boot/kernel", "-initrd", "/boot/initrd", "-append"),
]
LINES = ["-chardev", "socket,id=share,path=/run/insula/share", "-chardev", "socket,id=port,fd=10"]


def devices(argv: list[str]) -> list[dict[str, Any]]:
    return [json.loads(value) for word, value in pairwise(argv) if word in ("-device", "-netdev")]


# --- the machine


def test_with_kvm_it_is_a_microvm() -> None:
    argv = qemu_arguments(MACHINE, [CARD])
    at = argv.index("-append")
    assert argv[: at + 1] == HEAD + KVM + MEMORY
    assert argv[at + 2 : at + 6] == LINES
    assert devices(argv) == [
        {"driver": "vhost-user-fs-device", "chardev": "share", "tag": "share"},
        {"driver": "virtio-serial-device", "id": "serial", "max_ports": 2},
        {"driver": "virtserialport", "bus": "serial.0", "chardev": "port", "nr": 1},
        {"type": "tap", "id": "net0", "ifname": "vm-eth0", "script": "no", "downscript": "no"},
        {"driver": "virtio-net-device", "netdev": "net0", "mac": "02:42:0a:01:00:02"},
    ]


def test_emulated_it_is_a_q35_with_the_same_devices_over_pci() -> None:
    argv = qemu_arguments(msgspec.structs.replace(MACHINE, accelerator="tcg"), [CARD])
    assert argv[: argv.index("-append") + 1] == HEAD + TCG + MEMORY
    drivers = [each.get("driver") for each in devices(argv)]
    assert drivers == ["vhost-user-fs-pci", "virtio-serial-pci", "virtserialport", None, "virtio-net-pci"]
    assert devices(argv)[-1]["romfile"] == ""


def test_newer_qemu_leaves_root_by_another_option() -> None:
    argv = qemu_arguments(msgspec.structs.replace(MACHINE, version=(9, 1)), [])
    assert argv[argv.index("-run-with") + 1] == "user=1900000001:1900000001"
    assert "-runas" not in argv


@pytest.mark.parametrize(
    ("asked", "mib", "count"),
    [
        (Resources(), 576, 1),
        (Resources(memory_bytes=64 * MIB), 128, 1),
        (Resources(memory_bytes=6 * MIB + 1), 71, 1),
        (Resources(cpu_quota_us=150_000, cpu_period_us=100_000), 576, 2),
        (Resources(cpu_quota_us=50_000), 576, 1),
        (Resources(cpu_quota_us=-1), 576, 1),
        (Resources(cpuset_cpus="0-2,5"), 576, 4),
        (Resources(cpu_quota_us=9_900_000), 576, 8),
    ],
)
def test_a_machine_is_as_large_as_its_limits_and_its_kernel(asked: Resources, mib: int, count: int) -> None:
    assert (memory_mib(asked), cpus(asked, 8)) == (mib, count)


def test_the_sandbox_has_room_for_qemu() -> None:
    asked = Resources(memory_bytes=64 * MIB, memory_swap_bytes=128 * MIB, pids_limit=5, cpu_shares=77)
    around = of_sandbox(asked)
    assert around == Resources(memory_bytes=384 * MIB, memory_swap_bytes=448 * MIB, cpu_shares=77)
    assert of_sandbox(Resources(memory_swap_bytes=-1)) == Resources(memory_swap_bytes=-1)


@given(st.text(alphabet="0123456789,- x", max_size=20))
def test_any_list_of_cpus_counts_at_least_one(text: str) -> None:
    assert count_listed(text) >= 1


# --- refusals


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("security.privileged", {"security": Security(privileged=True)}),
        ("security.seccomp", {"security": Security(seccomp="{}")}),
        ("security.apparmor", {"security": Security(apparmor="docker-default")}),
        ("devices", {"devices": (Device(source="/dev/fuse", target="/dev/fuse"),)}),
        ("network_mode", {"network_mode": "host"}),
        ("network_mode", {"network_mode": "instance:web"}),
        ("pid_mode", {"pid_mode": "host"}),
        ("ipc_mode", {"ipc_mode": "container:web"}),
        ("uts_mode", {"uts_mode": "host"}),
        ("resources.oom_kill_disable", {"resources": Resources(oom_kill_disable=True)}),
        ("mounts", {"mounts": (MountConfig(kind="bind", target="/a", source="/a", propagation="rshared"),)}),
        ("mounts", {"mounts": (MountConfig(kind="bind", target="/proc/sys", source="/a"),)}),
    ],
)
def test_what_a_kernel_of_its_own_cannot_have_is_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as refused:
        check(InstanceConfig(name="x", **changes))
    assert refused.value.field == field
    assert refused.value.message.startswith("A container with runtime vm cannot have ")


def test_ordinary_wishes_are_not_refused() -> None:
    mounts = (MountConfig(kind="volume", target="/data"), MountConfig(kind="bind", target="/dev/log", source="/x"))
    security = Security(cap_add=("ALL",), seccomp="unconfined", readonly_rootfs=True, no_new_privileges=True)
    check(InstanceConfig(name="x", mounts=mounts, security=security, ipc_mode="private", network_mode="sandbox:pod-1"))


# --- mounts


def bind(target: str, *options: str) -> Mount:
    return Mount(target=target, kind="bind", source="/host", options=options)


def test_mounts_go_into_the_share_or_to_the_agent() -> None:
    mounts = [
        bind("/var/run/x", "rbind", "ro"),
        bind("/dev/termination-log", "bind"),
        bind("/dev/shm", "rbind"),
        Mount(target="/tmp", kind="tmpfs", source="tmpfs", options=("nosuid", "nodev", "exec", "size=1m", "mode=700")),
    ]
    placed = plan.place(mounts, {"/var/run/x": "/run/x", "/tmp": "/tmp"})
    assert [(each.target, each.options) for each in placed.of_host] == [("/share/root/run/x", ("rbind", "ro"))]
    assert [each.target for each in placed.of_devices] == ["/share/dev/0"]
    assert placed.inside == (
        ("mount", "/dev/termination-log\tbind\tdev/0"),
        ("mount", "/dev/shm\ttmpfs\t14\tmode=1777,size=67108864"),
        ("mount", "/tmp\ttmpfs\t6\tsize=1m,mode=700"),
    )


def test_a_place_cannot_add_a_field_to_the_agents_orders() -> None:
    with pytest.raises(Invalid, match="control characters"):
        plan.place([Mount(target="/a\tb", kind="tmpfs", source="tmpfs")], {"/a\tb": "/a\tb"})


def test_places_follow_the_images_symlinks_and_stay_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "run").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var" / "run").symlink_to("/run")
    (root / "out").symlink_to("../../..")
    source = tmp_path / "file"
    source.touch()
    mounts = [
        Mount(target="/var/run/deep/er", kind="bind", source=str(tmp_path)),
        Mount(target="/var/run/conf", kind="bind", source=str(source)),
        Mount(target="/out/etc", kind="tmpfs", source="tmpfs"),
        Mount(target="/dev/log", kind="bind", source=str(source)),
    ]
    real = files.real_places(str(root), mounts)
    assert real == {"/var/run/deep/er": "/run/deep/er", "/var/run/conf": "/run/conf", "/out/etc": "/etc"}
    assert (root / "run/deep/er").is_dir() and (root / "run/conf").is_file() and (root / "etc").is_dir()
    assert {"proc", "sys", "dev"} <= {path.name for path in root.iterdir()}


# --- the sandbox and the orders

SPEC = InstanceSpec(
    id="ab" * 32,
    name="web",
    directory="/run/i/ab",
    log_path="/log",
    rootfs="/data/root",
    hostname="box",
    process=Process(args=("sh", "-c", "true"), env=("A=b",), uid=7, gid=8, groups=(9,), tty=True, open_stdin=True),
    netns="/run/netns/ab",
    sysctls={"net.core.somaxconn": "99"},
    ulimits=(Ulimit(name="core", soft=0, hard=-1),),
    resources=Resources(memory_bytes=64 * MIB, pids_limit=20),
    security=Security(readonly_rootfs=True, cap_add=("NET_ADMIN",), cap_drop=("MKNOD",)),
    guest=Guest(kernel="/k", initrd="/i"),
)
HOST = HostFacts()


def test_the_sandbox_is_a_container_without_privileges() -> None:
    made = plan.sandbox(SPEC, plan.Placed(), HOST, (Device(source="/dev/net/tun", target="/dev/net/tun"),))
    assert (made.netns, made.rootfs, made.log_path) == ("/run/netns/ab", "/run/i/ab/sandbox", "/log")
    assert made.process and not made.process.tty and made.process.open_stdin
    assert made.security.readonly_rootfs and made.security.cap_drop == ("ALL",)
    assert "SYS_ADMIN" not in made.security.cap_add and "NET_ADMIN" not in made.security.cap_add
    mounts = {mount.target: mount for mount in made.mounts}
    assert mounts["/share/root"].options == ("bind", "rprivate", "ro")
    assert [target for target, mount in mounts.items() if "ro" not in mount.options] == ["/run/insula"]
    config = oci.build(made, HOST, (), "/g")
    assert config["root"]["readonly"] and config["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    opened = [rule for rule in config["linux"]["seccomp"]["syscalls"] if rule["names"] == ["unshare"]]
    assert opened[0]["args"] == [{"index": 0, "value": 0x200, "op": "SCMP_CMP_EQ"}]


def test_the_agents_orders() -> None:
    records = plan.image_records(SPEC, plan.Placed(inside=(("mount", "/t\ttmpfs\t0\t"),)), HOST)
    told: dict[str, list[str]] = {}
    for key, value in records:
        told.setdefault(key, []).append(value)
    assert told["arg"] == ["sh", "-c", "true"] and told["env"] == ["A=b"]
    assert (told["uid"], told["gid"], told["group"]) == (["7"], ["8"], ["9"])
    assert told["rlimit"] == ["7:1048576:1048576", f"4:0:{2**64 - 1}"]
    assert (told["memory"], told["pids"], told["hostname"]) == ([str(64 * MIB)], ["20"], ["box"])
    assert told["tty"] == told["input"] == ["1"]
    assert "net.core.somaxconn=99" in told["sysctl"] and told["mount"] == ["/t\ttmpfs\t0\t"]
    mask = int(told["capabilities"][0], 16)
    assert mask >> 12 & 1 and not mask >> 27 & 1  # CAP_NET_ADMIN yes, CAP_MKNOD no


def test_a_nul_in_the_orders_is_refused() -> None:
    with pytest.raises(Invalid, match="NUL"):
        plan.process_records(Process(args=("a\0b",)), Security(), ())


def test_cards_take_names_and_addresses() -> None:
    interface = Interface(
        name="eth0",
        mac="02:42:0a:01:00:02",
        mtu=1400,
        addresses=("10.1.0.2/16", "fd00::2/64"),
        routes=(("10.1.0.1", 0), ("::", 5)),
    )
    assert interface.records() == [
        ("card", "eth0 02:42:0a:01:00:02 1400"),
        ("address", "eth0 10.1.0.2 16"),
        ("address", "eth0 fd00::2 64"),
        ("route", "eth0 10.1.0.1 0"),
        ("route", "eth0 :: 5"),
    ]
    assert interface.card == Card(tap="vm-eth0", mac="02:42:0a:01:00:02")
    assert len(tap_of("a" * 15)) == 15


def test_redirection_as_traffic_control_wants_it() -> None:
    taken, handed = redirect.take_ingress(3), redirect.redirect(3, 4)
    assert (taken.type, handed.type) == (36, 44)
    assert taken.body[:20] == struct.pack("=BxxxiIII", 0, 3, 0xFFFF0000, 0xFFFFFFF1, 0)
    assert b"mirred\0" in handed.body and handed.body.endswith(struct.pack("=IIiiiiI", 0, 0, 4, 0, 0, 1, 4))


def test_both_virtiofsds_get_their_own_options() -> None:
    old = virtiofsd.arguments("/usr/lib/qemu/virtiofsd", "/share", fd=11)
    new = virtiofsd.arguments("/usr/libexec/virtiofsd", "/share", fd=11)
    assert old[:3] == ["/usr/lib/qemu/virtiofsd", "--fd=11", "--rlimit-nofile=0"] and "sandbox=chroot" in old[-1]
    assert {"--shared-dir=/share", "--sandbox=chroot", "--announce-submounts"} <= set(new)


# --- frames


@given(
    st.lists(st.tuples(st.sampled_from([b"O", b"E", b"X"]), st.integers(0, 65535), st.binary(max_size=50)), max_size=8),
    st.integers(1, 30),
)
def test_frames_survive_any_cutting(sent: list[tuple[bytes, int, bytes]], step: int) -> None:
    wire = b"".join(pack(*each) for each in sent)
    reader = Reader(frames.LARGEST)
    got = [each for at in range(0, len(wire), step) for each in reader.feed(wire[at : at + step])]
    assert got == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_a_fault(data: bytes) -> None:
    reader = Reader(1024)
    try:
        for _, session, body in reader.feed(data):
            assert 0 <= session <= 0xFFFF and len(body) <= 1024
    except BadFrame:
        pass


def test_a_frame_larger_than_allowed_is_refused_before_it_is_held() -> None:
    with pytest.raises(BadFrame):
        list(Reader(10).feed(struct.pack("<cBHI", b"O", 0, 0, 11)))
    with pytest.raises(BadFrame):
        frames.number(b"abc")
    assert frames.number(pack_number(b"X", 1, 77)[8:]) == 77


# --- processes

STAT = "12 (a) b) S 1 12 12 34816 0 0 0 0 0 0 250 50 0 0 20 0 1 0 5000 4096000 25 0"


def test_a_process_is_read() -> None:
    row = read_row(f"pid=12\0uid=33\0up=150\0stat={STAT}\0cmd=sh -c 'x\n'".encode())
    assert row == ProcessRow(
        pid=12, parent=1, uid=33, command="sh -c 'x?'", name="a) b", state="S", terminal="pts/0",
        cpu_s=3.0, age_s=100.0, memory_bytes=25 * 4096, virtual_bytes=4096000,
    )  # fmt: skip
    assert read_rows([b"", b"pid=x", b"nonsense\0", b"\xff" * 50]) == []


@given(st.binary(max_size=300))
def test_any_answer_is_a_process_or_nothing(answer: bytes) -> None:
    assert isinstance(read_row(answer), ProcessRow | None)


def test_lists_look_like_those_of_ps() -> None:
    now = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
    row = ProcessRow(pid=1, uid=0, command="sh -c x", name="sh", state="S", cpu_s=62, age_s=620, memory_bytes=8192)
    full = list_own(["-ef"], [row], now)
    assert full["Titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert full["Processes"][0][:4] == ["root", "1", "0", "10"] and full["Processes"][0][6:] == ["00:01:02", "sh -c x"]
    assert list_own(["-o", "pid,cmd"], [row], now) == {"Titles": ["PID", "CMD"], "Processes": [["1", "sh -c x"]]}
    assert list_own(["-eo", "rss,comm"], [row], now)["Processes"] == [["8", "sh"]]
    assert list_own(["aux"], [row], now)["Titles"][0] == "USER"
    for wrong in (["-Z"], ["-o"], ["-o", "pid,nonsense"], ["pid"]):
        with pytest.raises(Invalid, match="-ef, aux or -o"):
            list_own(wrong, [row], now)
