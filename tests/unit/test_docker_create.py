"""From the body of `POST /containers/create` to an InstanceConfig, and refusals on the way."""

from __future__ import annotations

from typing import Any

import pytest

from insula.api.docker.containers_create import Surroundings, instance_config, neighbours
from insula.api.docker.shape import shape
from insula.api.docker.words import ContainerWords
from insula.engine.contract import Instance, ResolvedMount, State
from insula.errors import InsulaError, Invalid, NotFound, Unsupported
from insula.model.instance import (
    InstanceConfig,
    MountConfig,
    NetworkAttachment,
    PortMapping,
    Resources,
    RestartPolicy,
    Ulimit,
)


def made(around: Surroundings | None = None, **fields: Any) -> InstanceConfig:
    raw = {"Image": "img", **fields}
    return instance_config("n", "", shape(raw, ContainerWords), raw, around or Surroundings())


def host(around: Surroundings | None = None, **fields: Any) -> InstanceConfig:
    return made(around, HostConfig=fields)


def neighbour(id: str, *mounts: ResolvedMount) -> Instance:
    return Instance(id=id, config=InstanceConfig(name="x"), state=State(), created="", mounts=mounts)


def test_the_least() -> None:
    config = made()
    assert (config.name, config.image, config.driver, config.network_mode) == ("n", "img", "oci", "default")
    assert (config.entrypoint, config.command, config.shm_size_bytes) == (None, None, 64 << 20)
    assert config.extra == {"docker": {"Config": {"Image": "img"}, "HostConfig": {}, "NetworkingConfig": {}}}


def test_what_was_sent_is_kept_without_nulls() -> None:
    config = made(Labels={"a": None}, Env=None, HostConfig={"Memory": 1 << 30, "Dns": None}, Unknown=1)
    assert config.labels == {"a": ""}
    kept = config.extra["docker"]
    assert kept["Config"] == {"Image": "img", "Labels": {"a": None}, "Unknown": 1}
    assert kept["HostConfig"] == {"Memory": 1 << 30, "Dns": None}


@pytest.mark.parametrize(
    ("fields", "entrypoint", "command"),
    [
        ({"Cmd": ["a", "b"]}, None, ("a", "b")),
        ({"Cmd": "a b"}, None, ("a b",)),
        ({"Cmd": []}, None, None),
        ({"Entrypoint": ["e"], "Cmd": ["c"]}, ("e",), ("c",)),
        ({"Entrypoint": "e"}, ("e",), None),
        ({"Entrypoint": [""]}, ("",), None),
        ({"Entrypoint": None, "Cmd": None}, None, None),
    ],
)
def test_commands(fields: dict[str, Any], entrypoint: object, command: object) -> None:
    config = made(**fields)
    assert (config.entrypoint, config.command) == (entrypoint, command)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/a:/b", MountConfig(kind="bind", source="/a", target="/b", create_source=True)),
        ("/a/../c/:/b/", MountConfig(kind="bind", source="/c", target="/b", create_source=True)),
        (
            "/a:/b:ro,rshared,z",
            MountConfig(
                kind="bind", source="/a", target="/b", readonly=True, propagation="rshared", create_source=True
            ),
        ),
        ("vol:/b:nocopy", MountConfig(kind="volume", source="vol", target="/b", no_copy=True)),
        ("/only", MountConfig(kind="volume", target="/only")),
    ],
)
def test_binds(text: str, mount: MountConfig) -> None:
    assert host(Binds=[text]).mounts == (mount,)


def test_mounts_of_every_kind() -> None:
    config = host(
        Mounts=[
            {"Type": "bind", "Source": "/s", "Target": "/b", "ReadOnly": True, "BindOptions": {"Propagation": "slave"}},
            {"Type": "volume", "Source": "vol", "Target": "/v", "VolumeOptions": {"Subpath": "sub", "NoCopy": True}},
            {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 5, "Mode": 0o700}},
        ],
        Tmpfs={"/u": "size=1m,mode=1777"},
    )
    assert config.mounts == (
        MountConfig(kind="bind", source="/s", target="/b", readonly=True, propagation="slave"),
        MountConfig(kind="volume", source="vol", target="/v", no_copy=True, subpath="sub"),
        MountConfig(kind="tmpfs", target="/t", size_bytes=5, mode=0o700),
        MountConfig(kind="tmpfs", target="/u", options=("size=1m", "mode=1777")),
    )


def test_volumes_from_and_anonymous_ones_give_way() -> None:
    bind = ResolvedMount(config=MountConfig(kind="bind", source="/s", target="/b"), source="/s")
    volume = ResolvedMount(config=MountConfig(kind="volume", target="/v", readonly=True), source="/x", volume="abc")
    around = Surroundings(instances={"one": neighbour("1" * 64, bind, volume)})
    config = made(around, Volumes={"/v": {}, "/w": {}}, HostConfig={"VolumesFrom": ["one:ro"], "Binds": ["/z:/b"]})
    assert {mount.target: (mount.kind, mount.source, mount.readonly) for mount in config.mounts} == {
        "/v": ("volume", "abc", True),
        "/w": ("volume", "", False),
        "/b": ("bind", "/z", False),
    }


def test_limits() -> None:
    config = host(Memory=1 << 30, NanoCpus=1_500_000_000, CpuShares=5, PidsLimit=7, CpusetCpus="0", BlkioWeight=20)
    assert config.resources == Resources(
        memory_bytes=1 << 30,
        memory_swap_bytes=2 << 30,
        cpu_quota_us=150_000,
        cpu_period_us=100_000,
        nano_cpus=1_500_000_000,
        cpu_shares=5,
        pids_limit=7,
        cpuset_cpus="0",
        blkio_weight=20,
    )
    assert host(Memory=1 << 30, MemorySwap=-1).resources.memory_swap_bytes == -1
    assert host(Ulimits=[{"Name": "nofile", "Soft": 1, "Hard": 2}]).ulimits == (Ulimit(name="nofile", soft=1, hard=2),)


def test_networks_and_ports() -> None:
    config = made(
        MacAddress="02-42-AC-11-00-02",
        ExposedPorts={"81/udp": {}, "80/tcp": {}},
        HostConfig={
            "NetworkMode": "net",
            "PublishAllPorts": True,
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostPort": ""}]},
        },
        NetworkingConfig={
            "EndpointsConfig": {"net": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}, "Aliases": ["a"]}, "other": None}
        },
    )
    assert config.network_mode == "net"
    assert config.networks == (
        NetworkAttachment(network="net", aliases=("a",), address="10.0.0.9", mac="02:42:ac:11:00:02"),
        NetworkAttachment(network="other"),
    )
    assert config.ports == (
        PortMapping(container_port=80, host_ip="127.0.0.1", host_port=8080),
        PortMapping(container_port=80),
        PortMapping(container_port=81, protocol="udp"),
    )
    assert host(NetworkMode="none", PortBindings={"80/tcp": [{}]}).ports == ()


def test_modes_that_name_other_containers() -> None:
    around = Surroundings(instances={"one": neighbour("1" * 64)})
    body = {"HostConfig": {"NetworkMode": "container:one", "PidMode": "container:one", "VolumesFrom": ["two:ro"]}}
    assert neighbours(shape({"Image": "i", **body}, ContainerWords)) == {"one", "two"}
    config = host(around, NetworkMode="container:one", PidMode="container:one", IpcMode="host")
    id = "instance:" + "1" * 64
    assert (config.network_mode, config.pid_mode, config.ipc_mode, config.networks) == (id, id, "host", ())


def test_security_and_restart() -> None:
    config = host(
        CapAdd=["net_admin"],
        CapDrop=["ALL"],
        SecurityOpt=[
            "no-new-privileges",
            "seccomp=unconfined",
            "apparmor=x",
            "label=disable",
        ],
        MaskedPaths=[],
        ReadonlyPaths=[],
        DeviceCgroupRules=["c 42:* rmw"],
        RestartPolicy={"Name": "on-failure", "MaximumRetryCount": 3},
    )
    assert (config.security.cap_add, config.security.cap_drop) == (("CAP_NET_ADMIN",), ("ALL",))
    assert (config.security.no_new_privileges, config.security.seccomp, config.security.apparmor) == (
        True,
        "unconfined",
        "x",
    )
    assert (config.security.masked_paths, config.security.readonly_paths) == ((), ())
    assert config.restart == RestartPolicy(name="on-failure", max_retries=3)


@pytest.mark.parametrize(
    ("fields", "fault", "sentence"),
    [
        ({"DeviceRequests": [{"Capabilities": [["gpu"]]}]}, Invalid, 'device driver "" with capabilities: [[gpu]]'),
        ({"Devices": [{"PathOnHost": "rel"}]}, Invalid, "invalid device"),
        ({"Ulimits": [{"Name": "nosuch"}]}, Invalid, "invalid ulimit type: nosuch"),
        ({"Ulimits": [{"Name": "nofile", "Soft": 3, "Hard": 2}]}, Invalid, "less than or equal to hard limit"),
        ({"SecurityOpt": ["what=ever"]}, Invalid, "invalid --security-opt"),
        ({"SecurityOpt": ["seccomp={"]}, Invalid, "Decoding seccomp profile failed"),
        ({"RestartPolicy": {"Name": "never"}}, Invalid, "unknown policy 'never'"),
        ({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 1}}, Invalid, "only be used with 'on-failure'"),
        ({"RestartPolicy": {"Name": "always"}, "AutoRemove": True}, Invalid, "can't create 'AutoRemove'"),
        ({"Binds": ["/a:/b", "/c:/b"]}, Invalid, "Duplicate mount point: /b"),
        ({"Binds": ["/a:b"]}, Invalid, "mount path must be absolute"),
        ({"Binds": ["/a:/.."]}, Invalid, "destination can't be '/'"),
        ({"Binds": ["v:/c"]}, Invalid, "volume name is too short"),
        ({"Binds": ["a/b:/c"]}, Invalid, "includes invalid characters for a local volume name"),
        ({"Binds": ["a:/b:c:d"]}, Invalid, "invalid volume specification: 'a:/b:c:d'"),
        ({"Binds": ["/a:/b:what"]}, Invalid, "invalid mode: what"),
        ({"Mounts": [{"Type": "npipe", "Target": "/x"}]}, Invalid, 'for type "npipe": mount type unknown'),
        ({"Mounts": [{"Type": "cluster", "Target": "/x"}]}, Invalid, 'for type "cluster": mount type unknown'),
        ({"Mounts": [{"Type": "image", "Target": "/x"}]}, Unsupported, "image"),
        (
            {"Mounts": [{"Type": "bind", "Source": "/s", "Target": "/x", "VolumeOptions": {}}]},
            Invalid,
            "field VolumeOptions must",
        ),
        ({"Mounts": [{"Type": "volume", "Target": "/x", "BindOptions": {}}]}, Invalid, "field BindOptions must not"),
        ({"Mounts": [{"Type": "volume", "Target": "/x", "ReadOnly": True}]}, Invalid, "when using anonymous volumes"),
        (
            {"Mounts": [{"Type": "volume", "Source": "vv", "Target": "/x", "VolumeOptions": {"Subpath": "../x"}}]},
            Invalid,
            "subpath must be a relative path",
        ),
        (
            {
                "Mounts": [
                    {"Type": "bind", "Source": "/s", "Target": "/x", "BindOptions": {"ReadOnlyForceRecursive": True}}
                ]
            },
            Invalid,
            "needs ReadOnly",
        ),
        ({"Binds": ["vv:/b:shared"]}, Invalid, 'for type "volume": field BindOptions must not be specified'),
        ({"Binds": ["/a:/b:nocopy"]}, Invalid, 'for type "bind": field VolumeOptions must not be specified'),
        ({"Binds": ["/a:/b:ro,rw"]}, Invalid, "invalid mode: ro,rw"),
        ({"Binds": ["/a:/b:z,Z"]}, Invalid, "invalid mode: z,Z"),
        ({"Binds": ["/a:/b:rslave,shared"]}, Invalid, "invalid mode: rslave,shared"),
        ({"Binds": ["a:b"]}, Invalid, "for type \"volume\": invalid mount path: 'b' mount path must be absolute"),
        ({"Tmpfs": {"x": ""}}, Invalid, "invalid mount path: 'x' mount path must be absolute"),
        ({"Tmpfs": {"/x": "bad"}}, Invalid, 'invalid tmpfs option ["bad"]'),
        ({"Tmpfs": {"/x": "size"}}, Invalid, 'invalid tmpfs option ["size"]'),
        (
            {"Mounts": [{"Type": "volume", "Target": "/x", "VolumeOptions": {"DriverConfig": {"Name": "foo"}}}]},
            NotFound,
            'error looking up volume plugin foo: plugin "foo" not found',
        ),
        ({"Mounts": [{"Type": "what", "Target": "/x"}]}, Invalid, "mount type unknown"),
        ({"Mounts": [{"Type": "bind", "Target": "/x"}]}, Invalid, "Source must not be empty"),
        ({"Mounts": [{"Type": "tmpfs", "Target": "/x", "Source": "y"}]}, Invalid, "Source must not be specified"),
        ({"PortBindings": {"80/icmp": [{}]}}, Invalid, "invalid protocol"),
        ({"PortBindings": {"80": [{"HostPort": "9000-8000"}]}}, Invalid, 'specification: "9000-8000"'),
        ({"PortBindings": {"80": [{"HostPort": "0-8000"}]}}, Invalid, 'specification: "0-8000"'),
        ({"PortBindings": {"80": [{"HostIp": "x"}]}}, Invalid, "invalid IP address: x"),
        ({"Links": ["a:b"], "NetworkMode": "host"}, Invalid, "host type networking can't be used with links"),
        ({"UsernsMode": "keep-id"}, Invalid, "invalid user namespace mode: keep-id"),
        ({"UTSMode": "what"}, Invalid, "invalid UTS mode: what"),
        ({"CgroupnsMode": "what"}, Invalid, "invalid cgroup namespace mode: what"),
        ({"Isolation": "hyperv"}, Invalid, "invalid isolation (hyperv): linux only supports 'default'"),
        ({"DeviceCgroupRules": ["x"]}, Invalid, "invalid device cgroup rule format: 'x'"),
        ({"SecurityOpt": ["what"]}, Invalid, 'invalid --security-opt 1: "what"'),
        ({"SecurityOpt": ["no-new-privileges=what"]}, Invalid, "invalid --security-opt 2"),
        ({"VolumeDriver": "x", "Binds": ["v:/v"]}, Invalid, 'error looking up volume plugin x: plugin "x" not found'),
        ({"VolumesFrom": ["a:zz"]}, Invalid, "invalid mode: zz"),
        ({"Tmpfs": {"t": ""}}, Invalid, "invalid mount path: 't' mount path must be absolute"),
        ({"LogConfig": {"Type": "what"}}, Invalid, 'error looking up logging plugin what: plugin "what" not found'),
        ({"LogConfig": {"Type": "gelf"}}, Unsupported, "the log driver 'gelf' is not supported here"),
        ({"LogConfig": {"Config": {"mode": "x"}}}, Invalid, "logger: logging mode not supported: x"),
        ({"LogConfig": {"Config": {"max-buffer-size": "1m"}}}, Invalid, "only supported with 'mode=non-blocking'"),
        ({"LogConfig": {"Config": {"compress": "x"}}}, Invalid, 'ParseBool: parsing "x"'),
        (
            {"LogConfig": {"Type": "local", "Config": {"tag": "x"}}},
            Invalid,
            "unknown log opt 'tag' for log driver local",
        ),
        ({"StorageOpt": {"what": "1G"}}, Invalid, "Unknown option what"),
        ({"IpcMode": "what"}, Invalid, "invalid IPC mode: what"),
        ({"Dns": ["dns.example"]}, Invalid, "bad nameserver address"),
        ({"ExtraHosts": ["x"]}, Invalid, 'bad format for add-host: "x"'),
        ({"OomScoreAdj": 2000}, Invalid, "[-1000, 1000]"),
        ({"ShmSize": -1}, Invalid, "SHM size"),
        ({"LogConfig": {"Type": "json-file", "Config": {"x": "y"}}}, Invalid, "unknown log opt 'x'"),
        ({"StorageOpt": {"size": "1G"}}, Unsupported, "only for overlay over xfs with 'pquota'"),
    ],
)
def test_refusals(fields: dict[str, Any], fault: type[InsulaError], sentence: str) -> None:
    with pytest.raises(fault) as raised:
        host(**fields)
    assert sentence in raised.value.message


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"MacAddress": "zz"}, "invalid MAC address"),
        ({"Env": ["=x"]}, "invalid environment variable: =x"),
        ({"Hostname": "h", "HostConfig": {"UTSMode": "host"}}, "conflicting options: hostname and the UTS mode"),
        ({"ExposedPorts": {"0": {}}}, "invalid port specification"),
        (
            {"NetworkingConfig": {"EndpointsConfig": {"bridge": {"IPAMConfig": {"IPv4Address": "10.0.0.1"}}}}},
            "user defined networks only",
        ),
        ({"NetworkingConfig": {"EndpointsConfig": {"n": {"IPAMConfig": {"IPv6Address": "1.1.1.1"}}}}}, "invalid IPv6 address"),
        ({"NetworkingConfig": {"EndpointsConfig": {"n": {"IPAMConfig": {"LinkLocalIPs": ["fe80::1"]}}}}}, "link-local"),
    ],
)  # fmt: skip
def test_other_refusals(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InsulaError, match=sentence):
        made(**fields)


def test_names_match_without_regard_to_case() -> None:
    words = shape({"image": "x", "HOSTCONFIG": {"memory": 7}, "labels": {"Image": "kept"}}, ContainerWords)
    assert (words.image, words.host_config.memory, words.labels) == ("x", 7, {"Image": "kept"})


def test_wrong_types_are_named() -> None:
    with pytest.raises(
        Invalid, match=r"invalid JSON: HostConfig\.PortBindings\[\.\.\.\]\[0\]\.HostPort: expected str, got int"
    ):
        shape({"HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": 80}]}}}, ContainerWords)
