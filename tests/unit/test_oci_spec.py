"""From InstanceSpec to config.json: whole goldens for the usual shapes, and one assertion for each rule.

`INSULA_UPDATE_GOLDEN=1 pytest tests/unit/test_oci_spec.py` writes the goldens anew; read the diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from insula.drivers.oci.facts import DeviceNode, HostFacts
from insula.drivers.oci.resources import linux_resources
from insula.drivers.oci.spec import DEFAULT_CAPABILITIES, build, granted, mounts, namespaces, process_object
from insula.errors import Invalid, Unsupported
from insula.host.capabilities import NAMES
from insula.model.instance import BlockLimit, Device, InstanceSpec, Mount, Process, Resources, Security, Ulimit

GOLDEN = Path(__file__).parent / "golden"
V1 = HostFacts(cgroup_version=1, init="/usr/bin/tini-static")
V2 = HostFacts(cgroup_version=2, init="/usr/bin/tini-static")
ID = "0123456789abcdef" * 4


def spec(**fields: Any) -> InstanceSpec:
    process = fields.pop("process", Process(args=("sh",), env=("PATH=/bin",)))
    base = InstanceSpec(
        id=ID, name="web", directory="/d", log_path="/d/log", rootfs="/root", hostname="web", process=process
    )
    return msgspec.structs.replace(base, **fields)


RICH = spec(
    process=Process(
        args=("nginx", "-g", "daemon off;"),
        env=("PATH=/bin", "TERM=xterm"),
        cwd="/srv",
        uid=101,
        gid=102,
        groups=(5,),
        tty=True,
        open_stdin=True,
        width=80,
        height=24,
    ),
    domainname="example.org",
    netns="/run/netns/a",
    mounts=(
        Mount(target="/data", kind="bind", source="/srv/data", options=("rbind", "ro", "rslave")),
        Mount(target="/dev/shm", kind="tmpfs", source="shm", options=("nosuid", "size=1048576")),
    ),
    sysctls={"net.ipv4.ip_forward": "1"},
    ulimits=(Ulimit(name="nofile", soft=1024, hard=-1),),
    devices=(Device(source="/dev/fuse", target="/dev/fuse"),),
    init=True,
    oom_score_adj=100,
    resources=Resources(
        memory_bytes=1 << 28, cpu_shares=512, cpu_quota_us=50_000, cpu_period_us=100_000, pids_limit=99
    ),
    security=Security(cap_add=("NET_ADMIN",), cap_drop=("MKNOD",), no_new_privileges=True, readonly_rootfs=True),
    annotations={"a": "b"},
)
FUSE = DeviceNode(path="/dev/fuse", kind="c", major=10, minor=229, mode=0o666, uid=0, gid=0)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("oci_plain_v2", build(spec(), V2, (), f"/insula/{ID}")),
        ("oci_plain_v1", build(spec(), V1, (), f"/insula/{ID}")),
        ("oci_rich", build(RICH, V2, (FUSE,), f"/insula/{ID}")),
        ("oci_privileged", build(spec(security=Security(privileged=True)), V2, (FUSE,), f"/insula/{ID}")),
    ],
)
def test_golden(name: str, made: dict[str, Any]) -> None:
    path = GOLDEN / f"{name}.json"
    text = json.dumps(made, indent=1) + "\n"
    if os.environ.get("INSULA_UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text()


# --- capabilities


def test_the_default_capabilities_are_dockers_14() -> None:
    assert len(DEFAULT_CAPABILITIES) == 14
    assert sum(1 << NAMES.index(name) for name in DEFAULT_CAPABILITIES) == 0xA80425FB


@pytest.mark.parametrize(
    ("security", "expected"),
    [
        (Security(cap_drop=("ALL",)), ()),
        (Security(cap_drop=("ALL",), cap_add=("chown", "CAP_SYS_TIME")), ("CAP_CHOWN", "CAP_SYS_TIME")),
        (Security(cap_add=("ALL",)), NAMES),
        (Security(cap_add=("ALL",), cap_drop=("SYS_ADMIN",)), tuple(n for n in NAMES if n != "CAP_SYS_ADMIN")),
        (Security(privileged=True, cap_drop=("ALL",)), NAMES),
    ],
)
def test_capabilities_asked_for(security: Security, expected: tuple[str, ...]) -> None:
    assert granted(security, V2) == expected


def test_what_the_host_lacks() -> None:
    poor = HostFacts(bounding=tuple(name for name in NAMES if name != "CAP_SYS_RESOURCE"))
    assert "CAP_SYS_RESOURCE" not in granted(Security(privileged=True), poor)
    assert "CAP_SYS_RESOURCE" not in granted(Security(cap_add=("ALL",)), poor)
    with pytest.raises(Unsupported, match="CAP_SYS_RESOURCE"):
        granted(Security(cap_add=("SYS_RESOURCE",)), poor)


def test_unknown_capabilities_are_invalid() -> None:
    for security in (Security(cap_add=("FLY",)), Security(cap_drop=("CAP_FLY",))):
        with pytest.raises(Invalid, match="CAP_FLY"):
            granted(security, V2)


# --- namespaces and mounts


def test_namespaces() -> None:
    made = namespaces(spec(netns="", pidns="/proc/7/ns/pid", utsns=None, ipcns=""), V2)
    assert made == [
        {"type": "mount"},
        {"type": "pid", "path": "/proc/7/ns/pid"},
        {"type": "uts"},
        {"type": "cgroup"},
    ]
    assert {"type": "cgroup"} not in namespaces(spec(), V1)


def test_the_hosts_name_is_left_alone_in_its_uts_namespace() -> None:
    made = build(spec(utsns="", domainname="x"), V2, (), "/a")
    assert "hostname" not in made
    assert "kernel.domainname" not in made["linux"]["sysctl"]


def test_no_network_settings_in_the_hosts_network() -> None:
    assert build(spec(netns=""), V2, (), "/a")["linux"]["sysctl"] == {}


def test_own_mounts_replace_defaults_and_are_ordered_by_depth() -> None:
    own = (
        Mount(target="/a/b/c", kind="bind", source="/x"),
        Mount(target="/a", kind="bind", source="/y", options=("bind",)),
        Mount(target="/dev/shm/", kind="tmpfs", source="mine"),
    )
    made = mounts(spec(mounts=own), V2)
    places = [mount["destination"] for mount in made]
    assert places.index("/a") < places.index("/a/b/c")
    assert [mount["source"] for mount in made if mount["destination"].rstrip("/") == "/dev/shm"] == ["mine"]
    assert [mount["options"] for mount in made if mount["destination"].startswith("/a")] == [["bind"], ["rbind"]]


def test_a_dev_of_ones_own_is_taken_whole() -> None:
    made = mounts(spec(mounts=(Mount(target="/dev", kind="bind", source="/dev", options=("rbind",)),)), V2)
    assert [mount["destination"] for mount in made if mount["destination"].startswith("/dev")] == ["/dev"]


def test_the_hosts_ipc_brings_its_shared_memory() -> None:
    made = {mount["destination"]: mount for mount in mounts(spec(ipcns=""), V2)}
    assert made["/dev/shm"]["source"] == "/dev/shm"


# --- process


def test_an_exec_process_has_what_it_is_given() -> None:
    made = process_object(Process(args=("id",), uid=3, gid=4), ("CAP_KILL",), True)
    assert made["capabilities"] == {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")}
    assert made["noNewPrivileges"] is True
    assert "consoleSize" not in made


def test_an_empty_command_is_invalid() -> None:
    for args in ((), ("",)):
        with pytest.raises(Invalid, match="no command specified"):
            process_object(Process(args=args), (), False)


def test_an_init_needs_a_program_on_the_host() -> None:
    with pytest.raises(Unsupported):
        build(spec(init=True), HostFacts(), (), "/a")


def test_apparmor_needs_a_kernel_with_it() -> None:
    assert "apparmorProfile" not in build(spec(security=Security(apparmor="mine")), HostFacts(), (), "/a")["process"]
    made = build(spec(security=Security(apparmor="mine")), HostFacts(apparmor=True), (), "/a")
    assert made["process"]["apparmorProfile"] == "mine"
    assert "apparmorProfile" not in build(spec(security=Security(apparmor="unconfined")), V2, (), "/a")["process"]


def test_device_rules_and_the_cgroup_namespace() -> None:
    security = Security(device_rules=("c 42:* rmw", "a *:* r"))
    rules = build(spec(security=security), V1, (), "/a")["linux"]["resources"]["devices"]
    assert rules[-2:] == [
        {"allow": True, "type": "c", "access": "rmw", "major": 42},
        {"allow": True, "type": "a", "access": "r"},
    ]
    with pytest.raises(Invalid, match="invalid device cgroup rule format: 'x'"):
        build(spec(security=Security(device_rules=("x",))), V1, (), "/a")
    for mode, host, own in (("private", V1, True), ("", V1, False), ("host", V2, False), ("", V2, True)):
        kinds = [each["type"] for each in namespaces(spec(cgroup_mode=mode), host)]
        assert ("cgroup" in kinds) is own


# --- resources


def test_block_limits_name_the_devices_by_number() -> None:
    null = (BlockLimit(path="/dev/null", value=7),)
    limits = Resources(blkio_weight=10, blkio_weight_devices=null, read_bps=null, write_iops=null, memory_swappiness=3)
    assert linux_resources(limits, V1) == {
        "memory": {"swappiness": 3},
        "blockIO": {
            "weight": 10,
            "weightDevice": [{"major": 1, "minor": 3, "weight": 7}],
            "throttleReadBpsDevice": [{"major": 1, "minor": 3, "rate": 7}],
            "throttleWriteIOPSDevice": [{"major": 1, "minor": 3, "rate": 7}],
        },
    }
    assert linux_resources(Resources(cpu_shares=1), V2) == {"cpu": {"shares": 2}}
    assert linux_resources(Resources(memory_swappiness=3), V2) == {}
    with pytest.raises(Invalid, match="stat /no/such: no such file or directory"):
        linux_resources(Resources(read_bps=(BlockLimit(path="/no/such", value=1),)), V1)


def test_swap_is_as_large_as_memory_unless_said() -> None:
    assert linux_resources(Resources(memory_bytes=100), V2)["memory"] == {"limit": 100, "swap": 200}
    assert linux_resources(Resources(memory_bytes=100, memory_swap_bytes=-1), V2)["memory"] == {
        "limit": 100,
        "swap": -1,
    }
    assert linux_resources(Resources(memory_bytes=100), HostFacts(swap_limit=False))["memory"] == {"limit": 100}
    with pytest.raises(Unsupported):
        linux_resources(Resources(memory_bytes=100, memory_swap_bytes=150), HostFacts(swap_limit=False))


def test_no_limits_write_nothing() -> None:
    assert linux_resources(Resources(), V2) == {}
    assert linux_resources(Resources(pids_limit=0), V2) == {"pids": {"limit": -1}}


def test_the_oom_killer_stays_on_with_version_2() -> None:
    assert linux_resources(Resources(oom_kill_disable=True), V1)["memory"] == {"disableOOMKiller": True}
    with pytest.raises(Unsupported):
        linux_resources(Resources(oom_kill_disable=True), V2)
