"""What runs, said twice: `InstanceConfig` is what a client asked for, `InstanceSpec` is what a driver is told to run.

The engine keeps the config in its ledger and resolves it (image, volumes, networks, defaults) into a spec. A spec holds
plain values only: paths, numbers, argument lists. Everything here is frozen; change makes a copy (`msgspec.structs.replace`).
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

Protocol = Literal["tcp", "udp", "sctp"]


class RestartPolicy(Struct, frozen=True, kw_only=True):
    """When an ended instance is started again. `max_retries` counts for on-failure only; 0 is without limit."""

    name: Literal["no", "always", "on-failure", "unless-stopped"] = "no"
    max_retries: int = 0


class BlockLimit(Struct, frozen=True, kw_only=True):
    """A limit on one block device of the host, named by its path: a weight, bytes or operations per second."""

    path: str
    value: int


class Resources(Struct, frozen=True, kw_only=True):
    """The envelope. Memory in bytes, CPU time in microseconds per period; None leaves the kernel's default."""

    cpu_shares: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    nano_cpus: int | None = None  # what quota and period were asked as, in Docker's billionths of a processor
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    memory_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    memory_swap_bytes: int | None = None  # memory plus swap, -1 for unlimited, as the Docker API counts it
    pids_limit: int | None = None
    oom_kill_disable: bool = False
    blkio_weight: int | None = None
    memory_swappiness: int | None = None  # 0 to 100
    cpu_rt_period_us: int | None = None
    cpu_rt_runtime_us: int | None = None
    blkio_weight_devices: tuple[BlockLimit, ...] = ()
    read_bps: tuple[BlockLimit, ...] = ()
    write_bps: tuple[BlockLimit, ...] = ()
    read_iops: tuple[BlockLimit, ...] = ()
    write_iops: tuple[BlockLimit, ...] = ()


class Ulimit(Struct, frozen=True, kw_only=True):
    """One rlimit, named as in getrlimit(2) without RLIMIT_, lower case."""

    name: str
    soft: int
    hard: int


class Device(Struct, frozen=True, kw_only=True):
    """A host device node given to the instance; `permissions` of r, w, m."""

    source: str
    target: str
    permissions: str = "rwm"


class Security(Struct, frozen=True, kw_only=True):
    """How far the instance is trusted. The defaults are Docker's: 14 capabilities, default seccomp profile."""

    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: str | None = None  # None: default profile; "unconfined"; or the profile's JSON text
    apparmor: str | None = None
    device_rules: tuple[str, ...] = ()  # `c 42:* rmw`, as the devices control group of version 1 writes them
    readonly_rootfs: bool = False
    masked_paths: tuple[str, ...] | None = None  # None: the default list
    readonly_paths: tuple[str, ...] | None = None


class MountConfig(Struct, frozen=True, kw_only=True):
    """Something asked to appear at `target`. For volume: `source` is the volume's name, empty for an anonymous one. What is
    read-only is so with all that is mounted below it, where the kernel can; `readonly_below` can insist or say no."""

    kind: Literal["bind", "volume", "tmpfs"]
    target: str
    source: str = ""
    readonly: bool = False
    propagation: str = "rprivate"
    no_copy: bool = False
    subpath: str = ""
    size_bytes: int | None = None
    mode: int | None = None
    options: tuple[str, ...] = ()
    readonly_below: Literal["", "never", "must"] = ""
    create_source: bool = False  # make a missing bind source as a directory, as `docker run -v` does


class PortMapping(Struct, frozen=True, kw_only=True):
    """A port published on the host. `host_port` 0 asks for any free one; with `last_host_port` for a free one from
    `host_port` up to that."""

    container_port: int
    protocol: Protocol = "tcp"
    host_ip: str = ""
    host_port: int = 0
    last_host_port: int = 0


class NetworkAttachment(Struct, frozen=True, kw_only=True):
    """A wish to join a network, by its name or id; addresses and MAC empty for any. The default route goes to the network with
    the highest `priority`; `options` are the network driver's words for an end point."""

    network: str
    aliases: tuple[str, ...] = ()
    address: str = ""
    mac: str = ""
    address6: str = ""
    priority: int = 0
    options: dict[str, str] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()  # other instances with the names they get here: for a later `connect`


class Link(Struct, frozen=True, kw_only=True):
    """Another instance, by id or name, that this one knows as `alias` on a network."""

    target: str
    alias: str
    network: str = "default"


class DiskConfig(Struct, frozen=True, kw_only=True):
    """A disk asked for a machine. `kind`: image (a containerDisk by reference: `source`), file (path), empty (size),
    cloudinit (NoCloud seed made of `files`)."""

    name: str
    kind: Literal["image", "file", "empty", "cloudinit"]
    source: str = ""
    size_bytes: int = 0
    bus: Literal["virtio", "sata", "scsi", "usb"] = "virtio"
    cdrom: bool = False
    readonly: bool = False
    serial: str = ""
    boot_order: int = 0
    files: dict[str, str] = field(default_factory=dict)


class HealthCheck(Struct, frozen=True, kw_only=True):
    """How to find out whether an instance does its work. `test`: `CMD` and an argument list, `CMD-SHELL` and one text for a
    shell, `NONE`, or nothing for the image's. Zeros mean the image's value, or the default."""

    test: tuple[str, ...] = ()
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


class MachineConfig(Struct, frozen=True, kw_only=True):
    """A machine asked for: the hardware that the guest sees. Memory in bytes."""

    memory_bytes: int = 256 * 1024 * 1024
    sockets: int = 1
    cores: int = 1
    threads: int = 1
    cpu_model: str = ""
    machine_type: str = "q35"
    arch: str = "x86_64"
    firmware: Literal["bios", "efi"] = "bios"
    uuid: str = ""
    serial_number: str = ""
    disks: tuple[DiskConfig, ...] = ()
    kernel_image: str = ""  # direct kernel boot: image reference holding the files below; empty boots from disk
    kernel_path: str = ""
    initrd_path: str = ""
    kernel_args: str = ""
    nic_model: str = "virtio"
    graphics: bool = True
    rng: bool = True
    start_paused: bool = False
    hostname: str = ""


class InstanceConfig(Struct, frozen=True, kw_only=True):
    """What a client asked to run. Kept in the ledger; enough to make the instance again from nothing."""

    name: str
    driver: str = "oci"  # a level's driver name, see `drivers/`
    image: str = ""
    platform: str = ""
    entrypoint: tuple[str, ...] | None = None  # None: the image's
    command: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    mounts: tuple[MountConfig, ...] = ()
    network_mode: str = "default"  # default | none | host | detached | sandbox:ID | instance:ID | a network's name
    networks: tuple[NetworkAttachment, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    exposed_ports: tuple[str, ...] = ()  # `80/tcp`, besides the image's: what others are told of, nothing is opened
    links: tuple[Link, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    pid_mode: str = ""
    ipc_mode: str = ""
    uts_mode: str = ""
    cgroup_parent: str = ""
    cgroup_mode: Literal["", "private", "host"] = ""  # "": private where control groups are of version 2
    shm_size_bytes: int = 64 * 1024 * 1024
    sysctls: dict[str, str] = field(default_factory=dict)
    ulimits: tuple[Ulimit, ...] = ()
    devices: tuple[Device, ...] = ()
    init: bool = False
    oom_score_adj: int = 0
    resources: Resources = Resources()
    security: Security = Security()
    restart: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    stop_signal: str = ""
    stop_timeout_s: float | None = None
    health: HealthCheck | None = None  # over the image's, which counts for Docker's instances alone
    shell: tuple[str, ...] = ()  # for `CMD-SHELL`; the image's, or /bin/sh -c
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    log_driver: str = "json-file"
    log_options: dict[str, str] = field(default_factory=dict)
    machine: MachineConfig | None = None
    owner: str = "docker"  # which door made it: docker | kube | insula
    extra: dict[str, Any] = field(default_factory=dict)  # the door's own raw words, given back by its inspect


# --- what a driver is told -------------------------------------------------------------------------------------


class Mount(Struct, frozen=True, kw_only=True):
    """One mount(2), resolved: an OCI runtime mount entry."""

    target: str
    kind: str  # bind, tmpfs, proc, ...
    source: str
    options: tuple[str, ...] = ()


class Process(Struct, frozen=True, kw_only=True):
    """One process, resolved: used for an instance's first process and for exec."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    privileged: bool = False
    width: int = 0
    height: int = 0


class Tap(Struct, frozen=True, kw_only=True):
    """A network card for a machine: the tap device (in the host's namespace) and the MAC that the guest must use."""

    name: str
    mac: str
    model: str = "virtio"


class Disk(Struct, frozen=True, kw_only=True):
    """A disk file, resolved. `format` raw or qcow2, already probed by us, never guessed by QEMU."""

    name: str
    path: str
    format: Literal["raw", "qcow2"]
    bus: str = "virtio"
    cdrom: bool = False
    readonly: bool = False
    serial: str = ""
    boot_order: int = 0


class MachineSpec(Struct, frozen=True, kw_only=True):
    """Hardware, resolved to files on this host."""

    config: MachineConfig
    disks: tuple[Disk, ...] = ()
    taps: tuple[Tap, ...] = ()
    kernel: str = ""
    initrd: str = ""
    kernel_args: str = ""


class Guest(Struct, frozen=True, kw_only=True):
    """A kernel with its initramfs, as files of this host, that can run a root file system in a machine."""

    kernel: str
    initrd: str


class InstanceSpec(Struct, frozen=True, kw_only=True):
    """What a driver runs. `directory` is the driver's own folder for this instance (bundle, sockets, pid files):
    it exists, survives a restart of Insula and is removed by the engine after `delete`."""

    id: str  # 64 hex digits
    name: str
    directory: str
    log_path: str  # empty: no log is kept
    log_journal: bool = False  # the host's journal gets every line too
    log_tag: str = ""  # what such lines carry as their tag
    rootfs: str = ""
    hostname: str = ""
    domainname: str = ""
    process: Process | None = None
    mounts: tuple[Mount, ...] = ()
    netns: str | None = None  # path of a network namespace; "" shares the host's; None makes a private empty one
    pidns: str | None = None  # likewise
    ipcns: str | None = None
    utsns: str | None = None
    no_shm: bool = False  # no /dev/shm, whatever the IPC namespace is
    cgroup_parent: str = "insula"
    cgroup_mode: Literal["", "private", "host"] = ""
    sysctls: dict[str, str] = field(default_factory=dict)
    ulimits: tuple[Ulimit, ...] = ()
    devices: tuple[Device, ...] = ()
    init: bool = False
    oom_score_adj: int = 0
    resources: Resources = Resources()
    security: Security = Security()
    annotations: dict[str, str] = field(default_factory=dict)
    machine: MachineSpec | None = None
    guest: Guest | None = None  # for a driver that boots a kernel of its own for a root file system
