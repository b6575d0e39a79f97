"""Mounts by system call: binds, propagation, overlays by every way the kernel offers, many layers, what they cost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.errors import HostFault
from insula.host import mounts

pytestmark = pytest.mark.root


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    mounts.unmount_below(tmp_path)


def make(place: Path, *names: str) -> list[str]:
    for name in names:
        (place / name).mkdir(parents=True)
    return [str(place / name) for name in names]


def test_a_read_only_bind_holds_for_submounts(place: Path) -> None:
    source, target = make(place, "source", "target")
    (inner,) = make(place, "source/inner")
    mounts.tmpfs(inner, size_bytes=1 << 20, mode=0o700)
    mounts.bind(source, target, readonly=True, propagation="rprivate")
    assert mounts.is_mounted(target) and mounts.is_mounted(target + "/inner")
    for folder in (target, target + "/inner"):
        with pytest.raises(OSError, match="Read-only file system"):
            Path(folder, "x").write_text("")
    Path(inner, "x").write_text("")
    mounts.unmount_below(target)
    assert not mounts.is_mounted(target)
    mounts.unmount(target)
    mounts.unmount(place / "missing")


def test_propagation(place: Path) -> None:
    source, target = make(place, "source", "target")
    mounts.bind(source, source)
    mounts.set_propagation(source, "rshared")
    mounts.bind(source, target, propagation="rslave")
    (inner,) = make(place, "source/inner")
    mounts.tmpfs(inner)
    assert mounts.is_mounted(target + "/inner")
    point = next(point for point in mounts.mount_points(target) if point.target == target)
    assert any(word.startswith("master:") for word in point.optional)


def test_a_fault_says_what_to_paste(place: Path) -> None:
    with pytest.raises(HostFault, match="No such file or directory") as fault:
        mounts.bind(str(place / "missing"), str(place))
    assert (fault.value.command or "").startswith("mount -t none")
    (place / "busy").mkdir()
    mounts.tmpfs(str(place / "busy"))
    with (place / "busy/file").open("w"), pytest.raises(HostFault, match="busy"):
        mounts.unmount(place / "busy")


def test_names_with_every_separator(place: Path) -> None:
    lower, upper, work, target = make(place, "a:b,c\\d e", "up,per:x", "work", "tar get")
    Path(lower, "x").write_text("1")
    mounts.overlay(target, [lower], upper=upper, work=work)
    assert mounts.is_mounted(target)
    Path(target, "x").write_text("2")
    assert (Path(lower, "x").read_text(), Path(upper, "x").read_text()) == ("1", "2")


@pytest.mark.parametrize("way", ["by_parts", "by_descriptors"])
def test_more_layers_than_a_page_of_options(place: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lowers = make(place, *(f"layer-with-a-long-name-{number}" for number in range(120)))
    for number, lower in enumerate(lowers):
        Path(lower, f"f{number}").write_text("")
        Path(lower, "top").write_text(str(number))
    upper, work, target = make(place, "upper", "work", "target")
    if way == "by_descriptors":  # as on a kernel before 6.8
        monkeypatch.setattr(mounts, "_overlay_by_parts", lambda *_: False)
    mounts.overlay(target, lowers, upper=upper, work=work)
    assert len(os.listdir(target)) == 121 and Path(target, "top").read_text() == "0"
    Path(target, "new").write_text("")
    assert os.listdir(upper) == ["new"]


def test_the_writable_layer_stays_a_plain_difference(place: Path) -> None:
    """No redirects, no metadata-only copies: what is renamed or chmodded is whole in the upper folder."""
    lower, upper, work, target = make(place, "lower", "upper", "work", "target")
    Path(lower, "file").write_text("content")
    mounts.overlay(target, [lower], upper=upper, work=work)
    Path(target, "file").chmod(0o600)
    assert Path(upper, "file").read_text() == "content"
    assert "trusted.overlay.metacopy" not in os.listxattr(Path(upper, "file"))


def test_a_mount_costs_little(place: Path) -> None:
    lower, upper, work, target = make(place, "lower", "upper", "work", "target")
    began = time.perf_counter()
    for _ in range(20):
        mounts.overlay(target, [lower], upper=upper, work=work)
        mounts.unmount(target, lazy=True)
    assert (time.perf_counter() - began) / 20 < 0.05


def test_reads_what_findmnt_reads(place: Path) -> None:
    listed = subprocess.run(["findmnt", "-rno", "TARGET"], capture_output=True, text=True, check=True).stdout
    ours = {point.target for point in mounts.mount_points()}
    assert len(set(listed.split("\n")) - {""} - {name.replace(" ", "\\x20") for name in ours}) <= 2  # others mount too
