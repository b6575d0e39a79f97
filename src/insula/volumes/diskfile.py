"""What a disk file is, by its own first bytes, and whether it is whole. QEMU is never left to guess.

qcow2 by QEMU's docs/interop/qcow2.txt, MBR and GPT by the UEFI specification chapter 5, ISO 9660 by ECMA-119. A format that
names other files (a backing file, an external data file) is refused: whoever made the image would choose what we open.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, Literal

from msgspec import Struct

from insula.errors import Invalid, Unsupported

Format = Literal["raw", "qcow2"]
SECTOR = 512
_QCOW2_MAGIC = b"QFI\xfb"
_V3_HEADER = 104
_DIRTY, _CORRUPT, _EXTERNAL, _COMPRESSION, _EXTENDED_L2 = 1, 2, 4, 8, 16
_MAX_VIRTUAL = 1 << 50  # a petabyte
_OTHER = (
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"QED\0", "QED"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"WithoutFreeSpace", "Parallels"),
)


class DiskFacts(Struct, frozen=True, kw_only=True):
    """A probed disk. `size_bytes` is what a guest sees."""

    format: Format
    size_bytes: int


def probe(path: str) -> DiskFacts:
    """Read a disk file's headers. Blocks. Raises Invalid (truncated, damaged, names other files), Unsupported (VMDK...)."""
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        head = file.read(512)
        if head.startswith(_QCOW2_MAGIC):
            return _probe_qcow2(file, head, length)
        for offset, magic, name in _OTHER:
            if head[offset:].startswith(magic):
                raise Unsupported(f"the disk is in {name} format", hint="convert it with: qemu-img convert -O qcow2")
        _check_raw(file, head, length)
        return DiskFacts(format="raw", size_bytes=length)


def _probe_qcow2(file: BinaryIO, head: bytes, length: int) -> DiskFacts:
    if len(head) < 72:
        raise Invalid("the qcow2 disk is truncated: its header is incomplete")
    version, backing, _, cluster_bits, size, crypt, l1_entries, l1_offset, table_offset, table_clusters = struct.unpack(
        ">IQIIQIIQQI", head[4:60]
    )
    if version not in (2, 3):
        raise Unsupported(f"the qcow2 disk has version {version}; 2 and 3 are known")
    if version == 3 and len(head) < _V3_HEADER:
        raise Invalid("the qcow2 disk is truncated: its header is incomplete")
    features = struct.unpack(">Q", head[72:80])[0] if version == 3 else 0
    if backing:
        raise Invalid("the qcow2 disk has a backing file of its own; flatten it with: qemu-img convert -O qcow2")
    if features & _EXTERNAL:
        raise Invalid("the qcow2 disk keeps its data in another file; flatten it with: qemu-img convert -O qcow2")
    if features & _CORRUPT:
        raise Invalid("the qcow2 disk is marked as corrupt")
    if features & ~(_DIRTY | _CORRUPT | _EXTERNAL | _COMPRESSION | _EXTENDED_L2):
        raise Unsupported(f"the qcow2 disk uses unknown features (0x{features:x})")
    if crypt:
        raise Unsupported("the qcow2 disk is encrypted")
    if not 9 <= cluster_bits <= 21:
        raise Invalid(f"the qcow2 disk is damaged: its clusters have 2^{cluster_bits} bytes")
    if not 0 < size <= _MAX_VIRTUAL:
        raise Invalid(f"the qcow2 disk has an impossible size of {size} bytes")
    l2_bits = cluster_bits - (4 if features & _EXTENDED_L2 else 3)
    if l1_entries < -(-size // (1 << (cluster_bits + l2_bits))) or l1_entries * 8 > 32 * 1024 * 1024:
        raise Invalid("the qcow2 disk is damaged: its first table does not fit its size")
    _check_within("first table", l1_offset, l1_entries * 8, length)
    _check_within("reference counts", table_offset, table_clusters << cluster_bits, length)
    _check_tables(file, l1_offset, l1_entries, 1 << cluster_bits, length)
    return DiskFacts(format="qcow2", size_bytes=size)


def _check_within(what: str, offset: int, size: int, length: int) -> None:
    if offset == 0 or offset + size > length:
        raise Invalid(f"the qcow2 disk is truncated: its {what} would end at byte {offset + size} of {length}")


def _check_tables(file: BinaryIO, l1_offset: int, l1_entries: int, cluster: int, length: int) -> None:
    """Every second-level table must be in the file; what those point to is for the deep check."""
    file.seek(l1_offset)
    for (entry,) in struct.iter_unpack(">Q", file.read(l1_entries * 8)):
        offset = entry & 0x00FF_FFFF_FFFF_FE00
        if offset and offset + cluster > length:
            raise Invalid(f"the qcow2 disk is truncated: a table would end at byte {offset + cluster} of {length}")


def _check_raw(file: BinaryIO, head: bytes, length: int) -> None:
    if length == 0:
        raise Invalid("the disk is empty: a file of 0 bytes")
    if length % SECTOR:
        raise Invalid(f"the raw disk is truncated: {length} bytes are not a multiple of {SECTOR}")
    end = max(_iso_end(file), _gpt_end(file), _mbr_end(head))
    if end > length:
        raise Invalid(f"the raw disk is truncated: it has {length} bytes, and what is on it needs {end}")


def _iso_end(file: BinaryIO) -> int:
    """The primary volume descriptor says how many blocks there are."""
    file.seek(0x8000)
    descriptor = file.read(2048)
    if len(descriptor) < 2048 or descriptor[:6] != b"\x01CD001":
        return 0
    blocks, size = struct.unpack_from("<I", descriptor, 80)[0], struct.unpack_from("<H", descriptor, 128)[0]
    return int(blocks * size)


def _gpt_end(file: BinaryIO) -> int:
    """The header names the sector of its copy: the disk's last one."""
    file.seek(SECTOR)
    header = file.read(SECTOR)
    if not header.startswith(b"EFI PART") or len(header) < 40:
        return 0
    return int((struct.unpack_from("<Q", header, 32)[0] + 1) * SECTOR)


def _mbr_end(head: bytes) -> int:
    """The four primary partitions. A protective entry of type EE may claim any size; the GPT is believed instead."""
    if len(head) < SECTOR or head[510:512] != b"\x55\xaa":
        return 0
    ends = [0]
    for offset in range(446, 510, 16):
        state, kind = head[offset], head[offset + 4]
        first, count = struct.unpack_from("<II", head, offset + 8)
        if state not in (0, 0x80):
            return 0  # a boot sector of a file system, not a partition table
        if kind not in (0, 0xEE):
            ends.append((first + count) * SECTOR)
    return max(ends)
