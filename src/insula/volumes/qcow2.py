"""A new writable disk on top of another one: the bytes of an empty qcow2 file of version 3 with a backing file.

By QEMU's docs/interop/qcow2.txt. Four kinds of clusters of 64 KiB, as qemu-img makes them: the header with the backing file's
name and format, the table of reference counts, one block of 16-bit counts, and the first-level table, empty: everything is
read from below. Made here rather than by qemu-img, whose start takes longer than all else that a machine's disk needs.
"""

from __future__ import annotations

import os
import struct

from insula.errors import Invalid
from insula.volumes.diskfile import SECTOR, Format

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_L2_COVERS = _CLUSTER // 8 * _CLUSTER  # what one entry of the first-level table stands for: 512 MiB
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_REFCOUNT_ORDER = 4
_BACKING_FORMAT = 0xE2792ACA
_LONGEST_NAME = 1023
_LARGEST = 1 << 50  # a petabyte: its tables still fit what one block of counts covers


def overlay(backing: str, backing_format: Format, size_bytes: int) -> bytes:
    """The whole file. `backing` is an absolute path, `size_bytes` what a guest sees, rounded up to sectors. Raises Invalid."""
    size, name = -(-size_bytes // SECTOR) * SECTOR, os.fsencode(backing)
    if not name.startswith(b"/") or len(name) > _LONGEST_NAME:
        raise Invalid(
            f"a disk cannot be based on {backing!r}: the path must be absolute and at most {_LONGEST_NAME} bytes"
        )
    if not 0 < size <= _LARGEST:
        raise Invalid(f"a disk cannot have {size_bytes} bytes", field="size")
    entries = -(-size // _L2_COVERS)
    clusters = 3 + -(-entries * 8 // _CLUSTER)
    extensions = _extension(_BACKING_FORMAT, backing_format.encode()) + _extension(0, b"")
    header = _HEADER.pack(
        *(b"QFI\xfb", 3, _HEADER.size + len(extensions), len(name), _CLUSTER_BITS, size),
        *(0, entries, 3 * _CLUSTER, _CLUSTER, 1),  # no encryption; where the tables are
        *(0, 0),  # no snapshots
        *(0, 0, 0),  # no features
        *(_REFCOUNT_ORDER, _HEADER.size),
    )
    counts = struct.pack(">H", 1) * clusters
    parts = (header + extensions + name, struct.pack(">Q", 2 * _CLUSTER), counts)
    return b"".join(part.ljust(_CLUSTER, b"\0") for part in parts) + bytes((clusters - 3) * _CLUSTER)


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")
