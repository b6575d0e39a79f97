"""Finding the accelerator: by running a guest, once, remembered, and never taking an open /dev/kvm for a working one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from insula.drivers.vm import VmDriver, probe
from insula.drivers.vm.probe import Accelerators, Found
from insula.errors import Unavailable
from insula.host import kvm, qemu

pytestmark = [pytest.mark.root, pytest.mark.vm]


async def test_emulation_runs_the_guest_to_its_end(tmp_path: Path) -> None:
    assert await probe.run_guest(qemu.find(), "tcg", tmp_path, cpu="max", deadline_s=30) == ""
    assert list(tmp_path.iterdir()) == []


async def test_a_guest_that_is_not_done_in_time_is_told(tmp_path: Path) -> None:
    trouble = await probe.run_guest(qemu.find(), "tcg", tmp_path, cpu="max", deadline_s=0.01)
    assert trouble == "a tiny guest did not come to its end within 0.01 s"


async def test_what_qemu_says_is_told(tmp_path: Path) -> None:
    trouble = await probe.run_guest(qemu.find(), "tcg", tmp_path, cpu="no-such-model")
    assert "no-such-model" in trouble


async def test_the_answer_is_found_once_and_remembered(tmp_path: Path) -> None:
    first = Accelerators(tmp_path / "run")
    answers = await asyncio.gather(first.find(), first.find())
    assert answers[0] is answers[1]
    assert answers[0].accelerator in ("kvm", "tcg")
    remembered = await Accelerators(tmp_path / "run").find()
    assert remembered == answers[0]  # `took_s` too: it was read, not found again


@pytest.mark.parametrize("content", [b"", b"{", b'{"key": 1}'])
async def test_a_broken_memory_is_found_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "accelerator.json").write_bytes(content)
    found = await Accelerators(tmp_path).find()
    assert msgspec.json.decode((tmp_path / "accelerator.json").read_bytes(), type=Found) == found


async def test_another_boot_or_qemu_is_another_question(tmp_path: Path) -> None:
    found = await Accelerators(tmp_path).find()
    lie = msgspec.structs.replace(found, key="another boot", reason="a lie")
    (tmp_path / "accelerator.json").write_bytes(msgspec.json.encode(lie))
    assert (await Accelerators(tmp_path).find()).reason != "a lie"


async def test_no_kvm_means_emulation_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "check_device", lambda: kvm_missing())
    found = await VmDriver(tmp_path).probe()
    assert found.available
    assert found.facts["accelerator"] == "tcg"
    assert "does not exist" in found.notes[0]


def kvm_missing() -> None:
    raise Unavailable("/dev/kvm does not exist", hint="load the module")


async def test_no_qemu_means_no_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(arch: str = "x86_64") -> str:
        raise Unavailable("qemu-system-x86_64 is not installed", hint="install the package qemu-system-x86")

    monkeypatch.setattr(qemu, "find", missing)
    found = await VmDriver(tmp_path).probe()
    assert not found.available
    assert "install the package" in found.notes[0]


def test_devices_that_are_no_kvm(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not exist"):
        kvm.check_device(str(tmp_path / "kvm"))
    with pytest.raises(Unavailable, match="does not answer"):
        kvm.check_device("/dev/null")


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="107 are possible"):
        qemu.listen(str(tmp_path / ("x" * 108)))
