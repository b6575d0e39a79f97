"""Control groups of both versions: layouts from mountinfo, counters and removal on trees of plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.errors import Unavailable
from insula.host import cgroups
from insula.host.cgroups import Group, Layout, parse_layout
from insula.host.cgroupstats import counters, parse_blkio, parse_io_stat

PURE_V2 = "26 25 0:23 / /sys/fs/cgroup rw,nosuid,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
DEBIAN_V1 = """\
31 23 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
35 31 0:32 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
36 31 0:33 / /var/lib/x/sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"""
HYBRID = DEBIAN_V1 + "\n41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"


def test_pure_version_2() -> None:
    assert parse_layout(PURE_V2) == Layout(version=2, hybrid=False, roots={"": "/sys/fs/cgroup"})


def test_version_1_and_hybrid() -> None:
    v1 = parse_layout(DEBIAN_V1)
    assert (v1.version, v1.hybrid) == (1, False)
    assert v1.roots == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
        "pids": "/sys/fs/cgroup/pids",
        "name=systemd": "/sys/fs/cgroup/systemd",
    }
    hybrid = parse_layout(HYBRID)
    assert (hybrid.version, hybrid.hybrid) == (1, True)
    assert hybrid.roots[""] == "/sys/fs/cgroup/unified"


@pytest.mark.parametrize("text", ["", "garbage", "1 2 3", "23 1 0:2 / / rw - ext4 /dev/sda rw"])
def test_no_groups_are_unavailable(text: str) -> None:
    with pytest.raises(Unavailable):
        parse_layout(text)


def test_folders() -> None:
    group = Group(layout=parse_layout(HYBRID), path="insula/x")
    assert group.directory("memory") == Path("/sys/fs/cgroup/memory/insula/x")
    assert len(group.directories()) == 5
    assert group.members() == Path("/sys/fs/cgroup/pids/insula/x")
    with pytest.raises(Unavailable, match="hugetlb"):
        group.directory("hugetlb")
    assert Group(layout=parse_layout(PURE_V2), path="a").directory("memory") == Path("/sys/fs/cgroup/a")


def plant(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


V2_FILES = {
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 2\nthrottled_usec 7\n",
    "memory.current": "4096\n",
    "memory.max": "max\n",
    "memory.stat": "anon 1024\ninactive_file 512\n",
    "memory.events": "low 0\noom 3\noom_kill 2\n",
    "pids.current": "4\n",
    "pids.max": "100\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2 rios=1\n",
    "cgroup.procs": "12\n7\n",
    "cgroup.freeze": "1\n",
}


def v2(tmp_path: Path) -> Group:
    return Group(layout=Layout(version=2, hybrid=False, roots={"": str(tmp_path)}), path="insula/x")


def test_counters_of_version_2(tmp_path: Path) -> None:
    group = v2(tmp_path)
    plant(group.directory(""), V2_FILES)
    read = counters(group)
    assert (read.cpu_total_ns, read.cpu_user_ns, read.cpu_system_ns) == (1_500_000, 1_000_000, 500_000)
    assert (read.throttled_periods, read.throttled_ns) == (2, 7000)
    assert (read.memory_bytes, read.memory_limit_bytes, read.memory_detail["inactive_file"]) == (4096, 0, 512)
    assert (read.pids, read.pids_limit, read.read_bytes, read.write_bytes) == (4, 100, 11, 22)
    assert cgroups.oom_kills(group) == 2
    assert cgroups.frozen(group)


def test_pids_of_the_groups_below_count(tmp_path: Path) -> None:
    group = v2(tmp_path)
    plant(group.directory(""), V2_FILES)
    plant(group.directory("") / "below", {"cgroup.procs": "3\n"})
    assert cgroups.pids(group) == [3, 7, 12]


def test_counters_of_version_1(tmp_path: Path) -> None:
    names = ("cpu", "cpuacct", "memory", "pids", "blkio", "freezer")
    group = Group(layout=Layout(version=1, hybrid=False, roots={n: str(tmp_path / n) for n in names}), path="x")
    plant(group.directory("cpuacct"), {"cpuacct.usage": "77\n", "cpuacct.stat": "user 3\nsystem 4\n"})
    plant(group.directory("cpu"), {"cpu.stat": "nr_periods 1\nnr_throttled 5\nthrottled_time 6\n"})
    plant(
        group.directory("memory"),
        {
            "memory.usage_in_bytes": "10\n",
            "memory.limit_in_bytes": "9223372036854771712\n",
            "memory.stat": "cache 3\ntotal_inactive_file 2\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        },
    )
    plant(group.directory("pids"), {"pids.current": "2\n", "pids.max": "max\n"})
    plant(group.directory("blkio"), {"blkio.throttle.io_service_bytes": "8:0 Read 5\n8:0 Write 6\nTotal 11\n"})
    plant(group.directory("freezer"), {"freezer.state": "THAWED\n"})
    read = counters(group)
    assert (read.cpu_total_ns, read.cpu_user_ns, read.cpu_system_ns) == (77, 30_000_000, 40_000_000)
    assert (read.throttled_periods, read.throttled_ns) == (5, 6)
    assert (read.memory_bytes, read.memory_limit_bytes) == (10, 0)
    assert (read.pids, read.pids_limit, read.read_bytes, read.write_bytes) == (2, 0, 5, 6)
    assert cgroups.oom_kills(group) == 1
    assert not cgroups.frozen(group)


def test_a_group_that_is_gone_has_zeros(tmp_path: Path) -> None:
    group = v2(tmp_path)
    assert counters(group).memory_bytes == 0
    assert cgroups.pids(group) == []
    assert cgroups.oom_kills(group) == 0
    cgroups.remove(group)


def test_remove_takes_the_groups_below_too(tmp_path: Path) -> None:
    group = v2(tmp_path)
    (group.directory("") / "a" / "b").mkdir(parents=True)
    cgroups.remove(group)
    assert not group.directory("").exists()
    assert group.directory("").parent.exists()


@pytest.mark.parametrize("text", ["", "8:0", "8:0 rbytes=x", "garbage rbytes="])
def test_io_stat_that_makes_no_sense(text: str) -> None:
    assert parse_io_stat(text) == (0, 0)
    assert parse_blkio(text) == (0, 0)
