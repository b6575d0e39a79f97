"""The bodies that clients send, field by field as the Docker Engine API reference names them.

Types only: what a field means is decided in `containers_create` and its neighbours. Fields of Windows and of swarm are left
out where any value is ignored by dockerd on Linux too.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

Int = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]  # Go's int64: its decoder refuses larger numbers too


class Words(Struct, frozen=True, kw_only=True, rename="pascal"):
    """Names on the wire are in Pascal case."""


class LogConfig(Words, frozen=True, kw_only=True):
    """`--log-driver`, `--log-opt`."""

    type: str = ""
    config: dict[str, str] = field(default_factory=dict)


class RestartWords(Words, frozen=True, kw_only=True):
    """`--restart`."""

    name: str = ""
    maximum_retry_count: Int = 0


class PortBinding(Words, frozen=True, kw_only=True):
    """One side of `-p`."""

    host_ip: str = ""
    host_port: str = ""


class DeviceWords(Words, frozen=True, kw_only=True):
    """`--device`."""

    path_on_host: str
    path_in_container: str = ""
    cgroup_permissions: str = ""


class UlimitWords(Words, frozen=True, kw_only=True):
    """`--ulimit`."""

    name: str
    soft: Int = 0
    hard: Int = 0


class BindOptions(Words, frozen=True, kw_only=True):
    """Of a bind in `Mounts`."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class DriverConfig(Words, frozen=True, kw_only=True):
    """A volume's driver."""

    name: str = ""
    options: dict[str, str] = field(default_factory=dict)


class VolumeOptions(Words, frozen=True, kw_only=True):
    """Of a volume in `Mounts`."""

    no_copy: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    driver_config: DriverConfig = DriverConfig()
    subpath: str = ""


class TmpfsOptions(Words, frozen=True, kw_only=True):
    """Of a tmpfs in `Mounts`."""

    size_bytes: Int = 0
    mode: Int = 0
    options: list[list[str]] = field(default_factory=list)


class MountWords(Words, frozen=True, kw_only=True):
    """`--mount`."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None


class WeightWords(Words, frozen=True, kw_only=True):
    """`--blkio-weight-device`."""

    path: str = ""
    weight: Int = 0


class ThrottleWords(Words, frozen=True, kw_only=True):
    """`--device-read-bps` and its like."""

    path: str = ""
    rate: Int = 0


class ResourceWords(Words, frozen=True, kw_only=True):
    """The envelope: part of HostConfig and the body of `update`."""

    cpu_shares: Int = 0
    memory: Int = 0
    nano_cpus: Int = 0
    cgroup_parent: str = ""
    blkio_weight: Int = 0
    blkio_weight_device: list[WeightWords] = field(default_factory=list)
    blkio_device_read_bps: list[ThrottleWords] = field(default_factory=list)
    blkio_device_write_bps: list[ThrottleWords] = field(default_factory=list)
    blkio_device_read_iops: list[ThrottleWords] = field(default_factory=list, name="BlkioDeviceReadIOps")
    blkio_device_write_iops: list[ThrottleWords] = field(default_factory=list, name="BlkioDeviceWriteIOps")
    cpu_period: Int = 0
    cpu_quota: Int = 0
    cpu_realtime_period: Int = 0
    cpu_realtime_runtime: Int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceWords] = field(default_factory=list)
    device_cgroup_rules: list[str] = field(default_factory=list)
    device_requests: list[Any] = field(default_factory=list)
    kernel_memory: Int = 0
    kernel_memory_tcp: Int = field(default=0, name="KernelMemoryTCP")
    memory_reservation: Int = 0
    memory_swap: Int = 0
    memory_swappiness: Int | None = None
    oom_kill_disable: bool = False
    pids_limit: Int | None = None
    ulimits: list[UlimitWords] = field(default_factory=list)


class UpdateWords(ResourceWords, frozen=True, kw_only=True):
    """The body of `update`."""

    restart_policy: RestartWords = RestartWords()


class HostWords(ResourceWords, frozen=True, kw_only=True):
    """HostConfig."""

    binds: list[str] = field(default_factory=list)
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, list[PortBinding]] = field(default_factory=dict)
    restart_policy: RestartWords = RestartWords()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)
    cap_add: list[str] = field(default_factory=list)
    cap_drop: list[str] = field(default_factory=list)
    cgroupns_mode: str = ""
    cgroup: str = ""
    dns: list[str] = field(default_factory=list)
    dns_options: list[str] = field(default_factory=list)
    dns_search: list[str] = field(default_factory=list)
    extra_hosts: list[str] = field(default_factory=list)
    group_add: list[str] = field(default_factory=list)
    ipc_mode: str = ""
    links: list[str] = field(default_factory=list)
    oom_score_adj: Int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] = field(default_factory=list)
    storage_opt: dict[str, str] = field(default_factory=dict)
    tmpfs: dict[str, str] = field(default_factory=dict)
    uts_mode: str = field(default="", name="UTSMode")
    userns_mode: str = ""
    shm_size: Int = 0
    sysctls: dict[str, str] = field(default_factory=dict)
    runtime: str = ""
    isolation: str = ""
    mounts: list[MountWords] = field(default_factory=list)
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None
    init: bool | None = None
    console_size: list[Int] = field(default_factory=list)


class HealthWords(Words, frozen=True, kw_only=True):
    """`--health-cmd` and its times in nanoseconds."""

    test: list[str] = field(default_factory=list)
    interval: Int = 0
    timeout: Int = 0
    start_period: Int = 0
    start_interval: Int = 0
    retries: Int = 0


class IpamConfig(Words, frozen=True, kw_only=True):
    """Addresses that an end point asks for."""

    ipv4_address: str = field(default="", name="IPv4Address")
    ipv6_address: str = field(default="", name="IPv6Address")
    link_local_ips: list[str] = field(default_factory=list, name="LinkLocalIPs")


class EndpointWords(Words, frozen=True, kw_only=True):
    """How to join one network."""

    ipam_config: IpamConfig = field(default=IpamConfig(), name="IPAMConfig")
    links: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    mac_address: str = ""
    driver_opts: dict[str, str] = field(default_factory=dict)
    gw_priority: Int = 0


class NetworkingWords(Words, frozen=True, kw_only=True):
    """The networks to join at start."""

    endpoints_config: dict[str, EndpointWords] = field(default_factory=dict)


class ContainerWords(Words, frozen=True, kw_only=True):
    """The body of `POST /containers/create`: Config with HostConfig and NetworkingConfig beside its fields."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, Any] = field(default_factory=dict)
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] = field(default_factory=list)
    cmd: list[str] | str | None = None
    healthcheck: HealthWords | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, Any] = field(default_factory=dict)
    working_dir: str = ""
    entrypoint: list[str] | str | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    stop_timeout: Int | None = None
    shell: list[str] = field(default_factory=list)
    host_config: HostWords = HostWords()
    networking_config: NetworkingWords = NetworkingWords()


class ExecCreateWords(Words, frozen=True, kw_only=True):
    """The body of `POST /containers/{id}/exec`."""

    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    tty: bool = False
    env: list[str] = field(default_factory=list)
    cmd: list[str] | str = field(default_factory=list)
    privileged: bool = False
    user: str = ""
    working_dir: str = ""
    console_size: list[Int] = field(default_factory=list)


class ExecStartWords(Words, frozen=True, kw_only=True):
    """The body of `POST /exec/{id}/start`."""

    detach: bool = False
    tty: bool = False
    console_size: list[Int] = field(default_factory=list)
