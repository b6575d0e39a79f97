"""The verdicts of `insula doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.cli import daemon, ports
from insula.cli.commands.doctor import lines
from insula.cli.doctor import features, host, levels, neighbours, programs
from insula.cli.doctor.finding import Finding, State, Subject, is_fatal, summary
from insula.cli.paths import paths_of
from insula.cli.settings import Settings
from insula.drivers.driver import Probe
from insula.drivers.vm.driver import VmDriver
from insula.host import capabilities
from insula.host.cgroups import Layout


def subject(tmp_path: Path, **changes: object) -> Subject:
    base: dict[str, object] = {"paths": paths_of(str(tmp_path)), "settings": Settings()}
    return Subject(**(base | changes))  # type: ignore[arg-type]


def test_rights() -> None:
    assert host.rights(0).state is State.OK
    assert host.rights(1000).state is State.MISSING


def test_capabilities_that_cannot_be_had() -> None:
    assert [found.state for found in host.bounding(capabilities.NAMES)] == [State.OK]
    (lost,) = host.bounding([name for name in capabilities.NAMES if name != "CAP_SYS_RESOURCE"])
    assert lost.state is State.LOST
    assert "--ulimit" in lost.lost
    missing, lost = host.bounding(
        [name for name in capabilities.NAMES if name not in ("CAP_SYS_ADMIN", "CAP_SYS_BOOT")]
    )
    assert (missing.state, lost.state) == (State.MISSING, State.LOST)
    assert set(capabilities.NAMES) >= host.NEEDED_CAPABILITIES


def test_control_groups() -> None:
    all_of_them = frozenset(("cpu", "cpuset", "memory", "pids", "io", "freezer", "devices"))
    pure = Layout(version=2, hybrid=False, roots={"": "/sys/fs/cgroup"})
    assert [found.state for found in host.judge_layout(pure, all_of_them)] == [State.OK]
    without = host.judge_layout(pure, all_of_them - {"memory", "io"})
    assert [(found.name, found.state) for found in without[1:]] == [
        ("cgroup memory", State.MISSING),
        ("cgroup io", State.LOST),
    ]
    hybrid = Layout(version=1, hybrid=True, roots={"": "/u", "memory": "/m", "blkio": "/b"})
    assert host.judge_layout(hybrid, all_of_them)[0].state is State.LOST
    assert host.available_controllers(hybrid) == {"memory", "io"}


@pytest.mark.parametrize(
    ("free_kib", "state"), [(4 << 20, State.OK), (512 << 10, State.LOST), (100 << 10, State.MISSING)]
)
def test_memory(free_kib: int, state: State) -> None:
    assert host.memory(f"MemTotal: 8388608 kB\nMemAvailable: {free_kib} kB\nHugePages_Total: 0\n").state is state


@pytest.mark.parametrize(
    ("mib", "inodes", "state"),
    [
        (9000, 10**6, State.OK),
        (9000, None, State.OK),
        (1000, 10**6, State.LOST),
        (9000, 2000, State.LOST),
        (9000, 5, State.MISSING),
        (10, None, State.MISSING),
    ],
)
def test_disk(mib: int, inodes: int | None, state: State) -> None:
    assert host.judge_disk("/data", mib, inodes).state is state


def test_an_occupied_port_names_who_has_it(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = host.port(subject(tmp_path, settings=Settings(api_port=port)))
        assert found.state is State.MISSING
        assert f"(pid {daemon.os.getpid()}) listens on 127.0.0.1:{port}" in found.found
        assert not ports.is_free("127.0.0.1", port)
    assert host.port(subject(tmp_path, settings=Settings(api_port=port))).state is State.OK


def test_a_settings_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert host.settings(subject(tmp_path, fault="bad")).state is State.MISSING
    assert host.settings(subject(tmp_path)).found == "all defaults"


def test_features() -> None:
    needed = next(feature for feature in features.FEATURES if feature.needed)
    nice = next(feature for feature in features.FEATURES if not feature.needed)
    assert features.judge(needed, "").state is State.OK
    assert features.judge(needed, "No such device").state is State.MISSING
    assert features.judge(nice, "No such device").state is State.LOST
    assert features.judge(needed, None).state is State.UNKNOWN
    assert all(feature.lost and feature.advice for feature in features.FEATURES)


@pytest.mark.root
def test_trials_leave_nothing(tmp_path: Path) -> None:
    complaints = features.try_all(tmp_path)
    assert set(complaints) == {feature.name for feature in features.FEATURES}
    assert complaints["overlayfs"] == complaints["veth"] == complaints["bridge"] == ""
    assert list(tmp_path.iterdir()) == []


def test_programs() -> None:
    helper = programs.HELPERS[0]
    assert programs.judge(helper, "/usr/bin/runc").state is State.OK
    absent = programs.judge(helper, "")
    assert (absent.state, absent.advice) == (State.MISSING, "install the package runc")
    assert programs.program("no-such-program", "sh")().endswith("/sh")


def test_levels(tmp_path: Path) -> None:
    driver = VmDriver(tmp_path)
    emulated = Probe(available=True, version="9", notes=("slow.",), facts={"accelerator": "tcg", "reason": "x"})
    assert [(found.state, found.found) for found in levels.judge(driver, emulated)] == [
        (State.OK, "works: 9, accelerator tcg"),
        (State.LOST, "slow."),
    ]
    fast = Probe(available=True, version="9", notes=("quick.",), facts={"accelerator": "kvm"})
    assert {found.state for found in levels.judge(driver, fast)} == {State.OK}
    (gone,) = levels.judge(driver, Probe(available=False, notes=("not installed",)))
    assert (gone.state, gone.found) == (State.LOST, "not installed")
    assert levels.judge_notes(())[0].state is State.OK


def test_neighbours() -> None:
    assert neighbours.judge({"bash": 1})[0].found == "none runs"
    (found,) = neighbours.judge({"dockerd": 7, "bash": 1})
    assert (found.name, found.state) == ("dockerd", State.OK)
    assert all(len(name) <= 15 for name in neighbours.KNOWN)


def test_the_words() -> None:
    ok = Finding(area="a", name="one", state=State.OK, found="fine", advice="never shown")
    bad = Finding(area="area", name="second", state=State.MISSING, found="gone", lost="all", advice="mend it")
    assert lines([ok, bad]) == [
        "ok       a     one     fine",
        "missing  area  second  gone",
        "                       → lost: all; to do: mend it",
    ]
    assert is_fatal([ok, bad])
    assert summary([ok, bad]) == "Insula does not work here yet: 1 ok, 1 missing."
    assert summary([ok]) == "Insula works here: 1 ok."
