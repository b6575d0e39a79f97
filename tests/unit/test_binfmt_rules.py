"""Whose program a file is, and whether binfmt_misc runs it in a container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from insula.cli.doctor.finding import State
from insula.cli.doctor.programs import judge_rules
from insula.host import binfmt
from insula.host.binfmt import MACHINES, Rule

ARM64 = next(machine for machine in MACHINES if machine.name == "arm64")
S390 = next(machine for machine in MACHINES if machine.name == "s390x")
# As the kernel shows the rule that Debian's package makes.
RULE = """enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""


def test_reads_what_the_kernel_shows() -> None:
    rule = binfmt.parse_rule("qemu-aarch64", RULE)
    assert rule.interpreter == "/usr/libexec/qemu-binfmt/aarch64-binfmt-P" and rule.flags == "POF"
    assert rule.takes(ARM64) and not rule.takes(S390)
    assert binfmt.missing(ARM64, [rule]) == ""
    assert "install the package qemu-user-static" in binfmt.missing(S390, [rule])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (RULE.replace("enabled", "disabled"), "nothing on this machine"),
        (RULE.replace("POF", "OC"), "lacks the flag F"),
        (RULE.replace("offset 0", "offset 4"), "nothing on this machine"),
        ("enabled\ninterpreter /usr/bin/jexec\nflags: F\nextension .jar\n", "nothing on this machine"),
        ("", "nothing on this machine"),
        ("enabled\nmagic zz\n", "nothing on this machine"),
    ],
)
def test_rules_that_do_not_help(text: str, sentence: str) -> None:
    assert sentence in binfmt.missing(ARM64, [binfmt.parse_rule("x", text)])


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_a_rule_of_ours_takes_its_own_machine_alone(machine: binfmt.Machine) -> None:
    line = binfmt.registration(machine, "/q").decode()
    _, name, kind, offset, magic, mask, interpreter, flags = line.split(":")
    assert (name, kind, offset, interpreter, flags) == (f"qemu-{machine.qemu}", "M", "", "/q", "OCPF")
    rule = Rule(
        name=name,
        enabled=True,
        interpreter=interpreter,
        flags=flags,
        magic=bytes.fromhex(magic.replace("\\x", "")),
        mask=bytes.fromhex(mask.replace("\\x", "")),
    )
    assert [each.name for each in MACHINES if rule.takes(each)] == [machine.name]
    assert binfmt.machine_of(machine.magic) == machine
    pie = bytearray(machine.magic)
    pie[17 if machine.big else 16] = 3
    assert binfmt.machine_of(bytes(pie)) == machine
    assert len(line) < 1920  # the kernel takes no longer ones


def test_distributions_write_the_same_magic() -> None:
    line = binfmt.registration(ARM64, "/q", keeps_argv0=False).decode()
    magic = r"\x7f\x45\x4c\x46\x02\x01\x01" + r"\x00" * 9 + r"\x02\x00\xb7\x00"
    mask = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"
    assert line == f":qemu-aarch64:M::{magic}:{mask}:/q:OCF"


@pytest.mark.parametrize("header", [b"", b"\x7fELF", b"#!/bin/sh\n" + bytes(20), b"\x7fELF" + bytes(16)])
def test_what_is_no_program(header: bytes) -> None:
    assert binfmt.machine_of(header) is None


def test_finds_the_program_inside_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/arm").write_bytes(ARM64.magic)
    (root / "usr/bin/out").symlink_to("/usr/bin/arm")
    (root / "usr/bin/escape").symlink_to("../../../outside")
    (tmp_path / "outside").write_bytes(S390.magic)
    os.mkfifo(root / "usr/bin/fifo")
    search = "/nowhere:/bin"
    assert binfmt.program_of(str(root), "arm", search) == ARM64
    assert binfmt.program_of(str(root), "/bin/out", "") == ARM64
    for hostile in ("escape", "../../outside", "fifo", "missing", "/usr/bin"):
        assert binfmt.program_of(str(root), hostile, search) is None


def test_what_this_processor_runs() -> None:
    assert binfmt.native("x86_64") == ("amd64", "386")
    assert binfmt.native("s390x") == ("s390x",)
    assert binfmt.native("sparc64") == ("sparc64",)


def test_the_doctor_tells() -> None:
    rule = binfmt.parse_rule("qemu-aarch64", RULE)
    good = judge_rules([rule], ("amd64", "386"))
    assert (good.state, good.found) == (State.OK, "runs containers for arm64")
    bad = judge_rules([], ("amd64", "386"))
    assert bad.state is State.LOST and "qemu-user-static" in bad.advice
