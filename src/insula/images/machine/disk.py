"""The demo machine as a disk that a BIOS boots: an ISO 9660 volume with isolinux that is a hard disk too ("isohybrid").

One file serves as virtio, SATA or SCSI disk and as CD-ROM. Its root file system is the initramfs, so nothing is ever
written to it. The same files in give the same bytes out.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pycdlib

LABEL = "INSULA"
_SECTOR = 2048
_MBR_ID = 0x1A51A  # any constant: it only has to be the same every time
_CONFIG = """\
SERIAL 0 115200
DEFAULT linux
PROMPT 0
TIMEOUT 0
LABEL linux
 KERNEL /VMLINUZ
 INITRD /INITRD
 APPEND {arguments}
"""


def write_disk(path: Path, *, kernel: Path, initrd: Path, isolinux: Path, ldlinux: Path, arguments: str) -> None:
    """Write the disk image. `isolinux` and `ldlinux` are the boot loader's isolinux.bin and ldlinux.c32. Blocks."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=1, vol_ident=LABEL)
    iso.add_directory("/ISOLINUX")
    iso.add_file(str(isolinux), "/ISOLINUX/ISOLINUX.BIN;1")
    iso.add_file(str(ldlinux), "/ISOLINUX/LDLINUX.C32;1")
    config = _CONFIG.format(arguments=arguments).encode()
    iso.add_fp(io.BytesIO(config), len(config), "/ISOLINUX/ISOLINUX.CFG;1")
    iso.add_file(str(kernel), "/VMLINUZ.;1")
    iso.add_file(str(initrd), "/INITRD.;1")
    iso.add_eltorito(
        "/ISOLINUX/ISOLINUX.BIN;1", bootcatfile="/ISOLINUX/BOOT.CAT;1", boot_info_table=True, boot_load_size=4
    )
    iso.add_isohybrid(mbr_id=_MBR_ID)
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    path.write_bytes(without_times(bytearray(out.getvalue())))


def without_times(image: bytearray) -> bytearray:
    """Set every date of the volume descriptor and of the directories to "none" (ECMA-119: 8.4.26 and 9.1.5)."""
    descriptor = 16 * _SECTOR
    for offset in range(813, 813 + 4 * 17, 17):
        image[descriptor + offset : descriptor + offset + 17] = b"0" * 16 + b"\0"
    root = descriptor + 156
    image[root + 18 : root + 25] = bytes(7)
    _clear_directory(image, *_extent(image, root))
    return image


def _extent(image: bytearray, record: int) -> tuple[int, int]:
    (sector,) = struct.unpack_from("<I", image, record + 2)
    (size,) = struct.unpack_from("<I", image, record + 10)
    return sector * _SECTOR, size


def _clear_directory(image: bytearray, start: int, size: int) -> None:
    position = start
    while position < start + size:
        length = image[position]
        if length == 0:  # records do not cross sectors
            position += _SECTOR - position % _SECTOR
            continue
        image[position + 18 : position + 25] = bytes(7)
        is_folder, name = image[position + 25] & 2, image[position + 33]
        if is_folder and name > 1:  # neither itself nor its parent
            _clear_directory(image, *_extent(image, position))
        position += length
