"""Unpacking archives from strangers: everything stays below the root, damage is named, memory and disk are bounded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from insula.errors import Invalid, TooLarge
from insula.host import tarstream, xattrs
from insula.host.rmtree import remove_tree
from insula.host.tarstream import Plain
from insula.host.untar import unpack
from insula.images.bounded import Bounded

pytestmark = pytest.mark.root


def tar(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for entry in entries:
            header, data = entry if isinstance(entry, tuple) else (entry, b"")
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.mode = kind, link, mode
    return header


def folder(name: str) -> tarfile.TarInfo:
    return entry(name, tarfile.DIRTYPE, mode=0o755)


def symlink(name: str, target: str) -> tarfile.TarInfo:
    return entry(name, tarfile.SYMTYPE, target)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (tmp_path / "root").mkdir()
    yield tmp_path / "root"
    remove_tree(tmp_path / "root")  # deeper than Python's own removal can go


def run(data: bytes, root: Path, *, overlay: bool = True) -> None:
    unpack(io.BytesIO(data), str(root), overlay=overlay)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x", "..", "a/../..", "./../../etc/x"])
def test_dot_dot_is_refused(inside: Path, name: str) -> None:
    with pytest.raises(Invalid, match="outside of the archive's root"):
        run(tar((entry(name), b"x")), inside)
    assert sorted(os.listdir(inside.parent)) == ["outside", "root"]


def test_absolute_names_are_taken_from_the_root(inside: Path) -> None:
    run(tar((entry("/etc/x"), b"1")), inside)
    assert (inside / "etc/x").read_text() == "1"


@pytest.mark.parametrize("target", ["../outside", "{outside}", "../../../../../../{outside}"])
def test_symlinks_do_not_lead_out(inside: Path, target: str) -> None:
    outside = str(inside.parent / "outside")
    link = target.replace("{outside}", outside)
    with pytest.raises(Invalid, match="cannot unpack"):  # what the link means inside the root is not there
        run(tar(symlink("door", link), (entry("door/secret"), b"owned")), inside)
    assert (inside.parent / "outside/secret").read_text() == "secret"
    assert os.readlink(inside / "door") == link  # the link itself is ordinary content


def test_absolute_symlinks_mean_the_root(inside: Path) -> None:
    run(tar(folder("usr"), folder("usr/lib"), symlink("lib", "/usr/lib"), (entry("lib/x"), b"1")), inside)
    assert (inside / "usr/lib/x").read_text() == "1"


def test_a_file_replaces_a_symlink_and_does_not_write_through_it(inside: Path) -> None:
    outside = inside.parent / "outside/secret"
    run(tar(symlink("x", str(outside)), (entry("x"), b"new")), inside)
    assert outside.read_text() == "secret"
    assert not (inside / "x").is_symlink() and (inside / "x").read_text() == "new"


def test_a_folder_entry_does_not_follow_a_symlink(inside: Path) -> None:
    outside = inside.parent / "outside"
    mode = outside.stat().st_mode
    run(tar(symlink("x", str(outside)), entry("x", tarfile.DIRTYPE, mode=0o777)), inside)
    assert outside.stat().st_mode == mode
    assert not (inside / "x").is_symlink()


def test_link_swaps_in_the_middle_of_an_archive(inside: Path) -> None:
    """A folder that was used is replaced by a link: the descriptor kept for it must not be used any more."""
    outside = inside.parent / "outside"
    data = tar(folder("d"), (entry("d/a"), b"1"), symlink("d", str(outside)), (entry("d/secret"), b"owned"))
    with pytest.raises(Invalid):
        run(data, inside)
    assert (outside / "secret").read_text() == "secret"


@pytest.mark.parametrize("target", ["../outside/secret", "{outside}/secret", "door/secret", "missing", ""])
def test_hard_links_do_not_lead_out(inside: Path, target: str) -> None:
    outside = inside.parent / "outside"
    data = tar(symlink("door", str(outside)), entry("x", tarfile.LNKTYPE, target.replace("{outside}", str(outside))))
    with pytest.raises(Invalid):
        run(data, inside)
    assert (outside / "secret").stat().st_nlink == 1


def test_devices_setuid_fifo_owners_and_times_are_kept(inside: Path) -> None:
    device = entry("null", tarfile.CHRTYPE, mode=0o666)
    device.devmajor, device.devminor = 1, 3
    program = entry("su", mode=0o4755)
    program.uid, program.gid, program.mtime = 7, 8, 1234567890
    late = folder("old")
    late.mtime = 1000
    data = tar(late, device, (program, b"x"), entry("pipe", tarfile.FIFOTYPE), (entry("old/new"), b""))
    run(data, inside)
    assert (inside / "null").stat().st_rdev == os.makedev(1, 3)
    status = (inside / "su").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime) == (0o4755, 7, 8, 1234567890)
    assert stat.S_ISFIFO((inside / "pipe").stat().st_mode)
    assert (inside / "old").stat().st_mtime == 1000


def test_whiteouts_become_overlayfs_marks(inside: Path) -> None:
    run(tar(folder("a"), entry("a/.wh.gone"), entry("b/.wh..wh..opq"), entry(".wh..wh.plnk")), inside)
    assert xattrs.is_whiteout((inside / "a/gone").lstat())
    assert xattrs.is_opaque(str(inside / "b"))
    assert sorted(os.listdir(inside)) == ["a", "b"]


@pytest.mark.parametrize("name", [".wh.", "a/.wh..", "a/.wh...", ".wh.a/b"])
def test_whiteouts_of_nothing_are_refused(inside: Path, name: str) -> None:
    with pytest.raises(Invalid):
        run(tar(entry(name)), inside)


def test_whiteouts_are_files_where_no_overlay_is_made(inside: Path) -> None:
    run(tar((entry(".wh.x"), b"1")), inside, overlay=False)
    assert (inside / ".wh.x").read_text() == "1"


def test_attributes_are_kept_but_overlayfs_own(inside: Path) -> None:
    capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    file = entry("ping", mode=0o755)
    file.pax_headers = {
        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.user.note": "ü",
        "SCHILY.xattr.trusted.overlay.redirect": "/../../etc",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
    }
    run(tar((file, b"x")), inside)
    assert os.getxattr(inside / "ping", "security.capability") == capability
    assert os.getxattr(inside / "ping", "user.note") == "ü".encode()
    assert not [name for name in os.listxattr(inside / "ping") if name.startswith("trusted.overlay")]


def test_sparse_files(inside: Path, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.seek(10 << 20)
        file.write(b"end")
    for option in ("--format=gnu", "--format=pax", "--sparse-version=0.0", "--sparse-version=0.1"):
        archive = tmp_path / "x.tar"
        assert (
            os.system(
                f"tar -C {tmp_path} {'--format=pax ' if 'version' in option else ''}{option} -Scf {archive} sparse"
            )
            == 0
        )
        run(archive.read_bytes(), inside)
        assert (inside / "sparse").read_bytes() == source.read_bytes()
        assert (inside / "sparse").stat().st_blocks < 100


@pytest.mark.parametrize("cut", [1, 511, 512, 600, 1024, 1300])
def test_a_truncated_archive_is_named(inside: Path, cut: int) -> None:
    data = tar((entry("a"), b"x" * 100), (entry("b"), b"y" * 2000))
    if cut in (512, 1024):  # a cut between members cannot be told from an end without its zeros
        data = data[:cut]
        if cut == 1024:
            run(data, inside)
            return
    with pytest.raises(Invalid, match=r"cut short|damaged|not a tar"):
        run(data[:cut], inside)


@pytest.mark.parametrize("cut", [512 + 100, 700, 1023])
def test_an_archive_may_end_without_its_padding(inside: Path, cut: int) -> None:
    """As docker's own client writes it."""
    run(tar((entry("a"), b"x" * 100))[:cut], inside)
    assert (inside / "a").read_bytes() == b"x" * 100


def test_a_damaged_header_is_not_taken_for_the_end(inside: Path) -> None:
    data = bytearray(tar((entry("a"), b"x" * 100), (entry("b"), b"y")))
    data[1024 + 3] ^= 0xFF
    with pytest.raises(Invalid, match="damaged"):
        run(bytes(data), inside)


def test_not_a_tar(inside: Path) -> None:
    with pytest.raises(Invalid, match="not a tar archive"):
        run(b"<html>" * 1000, inside)
    run(b"", inside)  # an empty stream is an empty layer, as for Docker


def test_a_header_cannot_ask_for_memory(inside: Path) -> None:
    """A PAX record or a long name of a gigabyte: refused before it is read."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises((TooLarge, Invalid), match="headers of a member"):
        run(header.tobuf(tarfile.USTAR_FORMAT), inside)
    header.type = tarfile.GNUTYPE_LONGNAME
    with pytest.raises((TooLarge, Invalid), match="headers of a member"):
        run(header.tobuf(tarfile.USTAR_FORMAT), inside)


def test_a_negative_size_is_refused(inside: Path) -> None:
    header = bytearray(entry("x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12  # base-256 for -1
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    with pytest.raises(Invalid):
        run(bytes(header) + bytes(1024), inside)


@pytest.mark.parametrize("name", ["a" * 300, "d/" * 1500 + "x", "x" * 5000])
def test_long_names_are_refused_or_made(inside: Path, name: str) -> None:
    try:
        run(tar((entry(name), b"x")), inside)
    except Invalid as fault:
        assert "cannot unpack" in str(fault)


def test_removes_what_a_workload_nested_beyond_every_limit(inside: Path) -> None:
    """Deeper than a path can be long, as a workload makes it by mkdir and chdir."""
    here = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(6000):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        deeper = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    (inside / "link").symlink_to(inside.parent / "outside")
    remove_tree(inside)
    assert not inside.exists()
    assert (inside.parent / "outside/secret").exists()
    remove_tree(inside)


def test_wild_numbers(inside: Path) -> None:
    header = entry("x")
    header.pax_headers = {"mtime": "1e30", "uid": str(1 << 70)}
    with pytest.raises(Invalid):
        run(tar((header, b"")), inside)
    header = entry("y")
    header.pax_headers = {"mtime": "1e30"}
    run(tar((header, b"")), inside)
    header = entry("z")
    header.pax_headers = {"mtime": "nan"}
    with pytest.raises(Invalid):
        run(tar((header, b"")), inside)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


class Dribble:
    """A source that gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step = io.BytesIO(data), step

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, self._step))


def read_all(source: tarstream.Source) -> bytes:
    return b"".join(iter(lambda: source.read(100_000), b""))


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("step", [3, 1 << 20])
def test_decompresses_by_content(kind: str, step: int) -> None:
    data = os.urandom(50_000) + bytes(300_000)
    packed = PACKERS[kind](data)
    plain = Plain(Dribble(packed, step))
    assert plain.compression == kind
    assert read_all(plain) == data
    if kind:
        assert read_all(Plain(Dribble(packed + packed, step))) == data + data
        with pytest.raises(Invalid, match="cut short"):
            read_all(Plain(Dribble(packed[:-20], step)))
        broken = bytearray(packed)
        broken[len(broken) // 2] ^= 0xFF
        with pytest.raises(Invalid, match=r"damaged|cut short"):
            assert read_all(Plain(Dribble(bytes(broken), step))) != data
            raise Invalid("damaged: told by the digest only")


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz", "bzip2"])
def test_a_decompression_bomb_is_stopped(tmp_path: Path, kind: str) -> None:
    packed = PACKERS[kind](bytes(16 << 20))
    assert len(packed) < 100_000
    bounded = Bounded(io.BytesIO(packed), tmp_path, bomb_floor_bytes=1 << 20)
    with pytest.raises(TooLarge, match="decompression bomb"):
        read_all(bounded)
