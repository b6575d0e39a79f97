"""The driver's other pure parts: limits, run states, the probe's guest, the demo machine's archive."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from insula.drivers.driver import Phase
from insula.drivers.vm import probe
from insula.drivers.vm.envelope import cpu_weight, settings
from insula.drivers.vm.machine import end_of, phase_of
from insula.drivers.vm.stats import combine
from insula.host.cgroupstats import Counters
from insula.images.machine import cpio
from insula.images.machine.initramfs import build_initramfs
from insula.images.machine.kernel import Module
from insula.model.instance import Resources

LIMITS = Resources(
    cpu_shares=512,
    cpu_quota_us=50_000,
    memory_bytes=1 << 30,
    memory_swap_bytes=3 << 29,
    pids_limit=0,
    cpuset_cpus="0-1",
)


def test_limits_in_version_1() -> None:
    assert settings(LIMITS, 1) == [
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("memory", "memory.limit_in_bytes", str(1 << 30)),
        ("memory", "memory.memsw.limit_in_bytes", str(3 << 29)),
        ("pids", "pids.max", "max"),
    ]


def test_limits_in_version_2() -> None:
    assert settings(LIMITS, 2) == [
        ("", "cpu.weight", "20"),
        ("", "cpu.max", "50000 100000"),
        ("", "cpuset.cpus", "0-1"),
        ("", "memory.max", str(1 << 30)),
        ("", "memory.swap.max", str(1 << 29)),
        ("", "pids.max", "max"),
    ]
    assert settings(Resources(cpu_quota_us=-1, memory_swap_bytes=-1), 2) == [
        ("", "cpu.max", "max 100000"),
        ("", "memory.swap.max", "max"),
    ]


@pytest.mark.parametrize(("shares", "weight"), [(None, None), (0, None), (2, 1), (1024, 39), (262144, 10000), (1, 1)])
def test_shares_as_weight(shares: int | None, weight: int | None) -> None:
    assert cpu_weight(shares) == weight


def test_run_states() -> None:
    assert [phase_of(state) for state in ("prelaunch", "running", "paused", "io-error", "shutdown")] == [
        Phase.CREATED, Phase.RUNNING, Phase.PAUSED, Phase.PAUSED, Phase.EXITED,
    ]  # fmt: skip
    assert end_of("running") is None
    assert end_of("shutdown") == (0, "")
    panicked = end_of("guest-panicked")
    assert panicked is not None
    assert panicked[0] == 1


def test_stats_are_the_guests_disk_traffic() -> None:
    blocks = [{"stats": {"rd_bytes": 5, "wr_bytes": 7}}, {"stats": {"rd_bytes": 1, "wr_bytes": 0}}]
    found = combine(Counters(cpu_total_ns=3, memory_bytes=9, read_bytes=1000), blocks, 64)
    assert (found.read_bytes, found.write_bytes, found.memory_limit_bytes, found.cpu_total_ns) == (6, 7, 64, 3)


def test_the_probe_guest_fits_its_rom() -> None:
    image = probe.rom()
    assert len(image) == probe.ROM_BYTES
    assert image[: len(probe.GUEST)] == probe.GUEST
    assert image[0xFFF0:0xFFF5] == b"\xea\x00\x00\x00\xf0"


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("objcopy")), reason="needs binutils")
def test_the_probe_guest_is_what_its_source_says(tmp_path: Path) -> None:
    source = str(files("insula.drivers.vm") / "probe_guest.S")
    for command in (
        ["as", "--64", "-o", "g.o", source],
        ["ld", "-m", "elf_x86_64", "-Ttext=0xf0000", "-e", "start", "-o", "g.elf", "g.o"],
        ["objcopy", "-O", "binary", "-j", ".text", "g.elf", "g.bin"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "g.bin").read_bytes() == probe.GUEST


def test_the_probe_command() -> None:
    assert probe.guest_arguments("/q", "kvm", "/rom") == [
        "/q", "-no-user-config", "-nodefaults", "-display", "none", "-serial", "null", "-no-reboot",
        "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "16", "-bios", "/rom",
        "-device", "isa-debug-exit,iobase=0x501,iosize=1",
    ]  # fmt: skip


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    found, position = {}, 0
    while True:
        assert archive[position : position + 6] == b"070701"
        fields = [int(archive[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        name = archive[position + 110 : position + 110 + fields[11] - 1].decode()
        start = position + 110 + fields[11]
        start += -start % 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[start : start + fields[6]])
        position = start + fields[6]
        position += -position % 4


def test_cpio_round_trip() -> None:
    entries = [cpio.folder("a"), cpio.file("a/b", b"12345", 0o755), cpio.link("l", "/a/b"), cpio.device("c", 5, 1)]
    archive = cpio.archive(entries)
    assert len(archive) % 512 == 0
    assert members(archive) == {
        "a": (0o40755, b""), "a/b": (0o100755, b"12345"), "l": (0o120777, b"/a/b"), "c": (0o20600, b""),
    }  # fmt: skip


def test_the_initramfs_indexes_its_modules_and_is_always_the_same() -> None:
    modules = [
        Module(name="virtio", code=b"1", depends=(), aliases=()),
        Module(name="virtio_pci", code=b"2", depends=("virtio",), aliases=("pci:v00001AF4d*",)),
        Module(name="virtio_net", code=b"3", depends=("virtio_pci", "missing"), aliases=("virtio:d00000001v*",)),
    ]
    first = build_initramfs("6.1", modules, b"BB", ["sh", "init"])
    assert first == build_initramfs("6.1", modules, b"BB", ["init", "sh"])
    assert struct.unpack("<I", first[4:8]) == (0,)
    found = members(gzip.decompress(first))
    assert found["lib/modules/6.1/modules.dep"][1].decode() == (
        "virtio.ko:\nvirtio_pci.ko: virtio.ko\nvirtio_net.ko: virtio_pci.ko virtio.ko\n"
    )
    assert b"alias pci:v00001AF4d* virtio_pci\n" in found["lib/modules/6.1/modules.alias"][1]
    assert found["sbin/init"] == (0o120777, b"/bin/busybox")
    assert found["etc/acpi/PWRF/00000080"][0] == 0o100755
