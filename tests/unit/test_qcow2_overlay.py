"""The empty qcow2 disk on top of another, against what qemu-img says of it and makes itself."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from insula.errors import Invalid
from insula.volumes.diskfile import Format
from insula.volumes.qcow2 import overlay

MIB, TIB = 1 << 20, 1 << 40
SIZES = [512, MIB, 512 * MIB, 512 * MIB + 512, 10 << 30, 5 * TIB, 1 << 50]


def test_the_bytes_are_these() -> None:
    made = overlay("/images/root.img", "raw", 10 << 30)
    assert len(made) == 4 * 65536
    assert (
        made[:152].hex()
        == (
            "514649fb00000003000000000000008000000010000000100000000280000000"  # magic, version 3, name, 64 KiB clusters, size
            "0000000000000014000000000003000000000000000100000000000100000000"  # 20 entries at cluster 3, counts at cluster 1
            "0000000000000000000000000000000000000000000000000000000000000000"  # no snapshots, no features
            "0000000400000068"  # counts of 16 bits, a header of 104 bytes
            "e2792aca000000037261770000000000"  # backing format raw
            "0000000000000000"
            "2f696d616765732f726f6f742e696d67"
            "0000000000000000"
        )
    )
    assert (
        hashlib.sha256(made[152:]).hexdigest()
        == hashlib.sha256(
            bytes(65536 - 152) + b"\0\0\0\0\0\2\0\0" + bytes(65528) + b"\0\1" * 4 + bytes(65528) + bytes(65536)
        ).hexdigest()
    )


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backing_format", ["raw", "qcow2"])
def test_qemu_agrees(tmp_path: Path, size: int, backing_format: Format) -> None:
    backing, ours, theirs = tmp_path / "base: with, signs.img", tmp_path / "ours.qcow2", tmp_path / "theirs.qcow2"
    run("create", "-q", "-f", backing_format, str(backing), str(MIB))
    ours.write_bytes(overlay(str(backing), backing_format, size))
    run("create", "-q", "-f", "qcow2", "-F", backing_format, "-b", str(backing), str(theirs), str(size))
    assert facts(ours) == facts(theirs)
    run("check", "-q", "-f", "qcow2", str(ours))
    assert ours.stat().st_size == -(-theirs.stat().st_size // 65536) * 65536  # qemu-img leaves out zeros at the end


def run(*words: str) -> bytes:
    return subprocess.run(["qemu-img", *words], check=True, capture_output=True).stdout


def facts(disk: Path) -> dict[str, Any]:
    said = json.loads(run("info", "--output=json", str(disk)))
    wanted = ("virtual-size", "cluster-size", "format", "backing-filename", "backing-filename-format")
    return {name: said[name] for name in wanted}


def test_what_is_written_above_is_read_back_and_the_rest_from_below(tmp_path: Path) -> None:
    base, disk = tmp_path / "base", tmp_path / "disk"
    base.write_bytes(b"below" + bytes(MIB - 5))
    disk.write_bytes(overlay(str(base), "raw", 2 * MIB))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 65536 512", str(disk)], check=True, capture_output=True)
    run("check", "-q", "-f", "qcow2", str(disk))
    run("convert", "-f", "qcow2", "-O", "raw", str(disk), str(tmp_path / "flat"))
    assert (tmp_path / "flat").read_bytes() == b"below" + bytes(65531) + bytes([7]) * 512 + bytes(2 * MIB - 66048)


@pytest.mark.parametrize(
    ("backing", "size"), [("base.img", 512), ("nbd:x", 512), ("/" + "x" * 1023, 512), ("/x", 0), ("/x", (1 << 50) + 1)]
)
def test_refuses_what_qemu_would_misread(backing: str, size: int) -> None:
    with pytest.raises(Invalid):
        overlay(backing, "raw", size)
