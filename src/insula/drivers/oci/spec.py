"""From an InstanceSpec to the OCI runtime's config.json: a pure function, the same for runc and crun.

Source: the OCI runtime specification 1.0.2; where that leaves a choice, what dockerd 28 writes (capabilities, mounts, masked
paths, device rules), for images are built to run there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from insula.drivers.oci.facts import DeviceNode, HostFacts
from insula.drivers.oci.resources import linux_resources
from insula.errors import Invalid, Unsupported
from insula.host import capabilities, seccomp
from insula.model.instance import InstanceSpec, Mount, Process, Security

VERSION = "1.0.2"
INIT_INSIDE = "/sbin/docker-init"

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
MASKED = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
NETWORK_SYSCTLS = {  # unprivileged programs may open any port and ping, as in Docker since 20.10
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}
DEVICE_RULE = re.compile(r"([acb]) ([0-9]{1,10}|\*):([0-9]{1,10}|\*) ([rwm]{1,3})", re.ASCII)
DENY_ALL = {"allow": False, "access": "rwm"}
ALLOW_ALL = {"allow": True, "access": "rwm"}
DEFAULT_DEVICES = tuple(
    {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
    for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))
)


def build(spec: InstanceSpec, host: HostFacts, devices: Sequence[DeviceNode], cgroup_path: str) -> dict[str, Any]:
    """The whole config.json. `cgroup_path` is absolute from the roots of the trees. Raises Invalid for a spec without process
    or root file system and Unsupported for what this host cannot give."""
    if spec.process is None or not spec.rootfs:
        raise Invalid("A container needs a process and a root file system.", field="process")
    config: dict[str, Any] = {
        "ociVersion": VERSION,
        "process": container_process(spec, host),
        "root": {"path": spec.rootfs, "readonly": spec.security.readonly_rootfs},
        "mounts": mounts(spec, host),
        "linux": _linux(spec, host, devices, cgroup_path),
    }
    if spec.hostname and spec.utsns != "":
        config["hostname"] = spec.hostname
    if spec.annotations:
        config["annotations"] = dict(spec.annotations)
    return config


def granted(security: Security, host: HostFacts) -> tuple[str, ...]:
    """The capabilities that come of it, in the kernel's order. `privileged` and `ALL` mean all that the host's own bounding set
    holds, since more cannot be given; one that is asked for by name and missing there raises Unsupported."""
    if security.privileged:
        return host.bounding
    add = {capabilities.canonical(name) for name in security.cap_add}
    drop = {capabilities.canonical(name) for name in security.cap_drop}
    for name in sorted((add | drop) - {"ALL"} - set(capabilities.NAMES)):
        raise Invalid(f'invalid CapAdd: unknown capability: "{name}"', field="security.cap_add")
    for name in sorted(add - {"ALL"} - set(host.bounding)):
        message = f"The capability {name} cannot be given: it is missing from the bounding set of Insula on this host."
        raise Unsupported(message, field="security.cap_add")
    base = (
        set(host.bounding)
        if "ALL" in add
        else set()
        if "ALL" in drop
        else set(DEFAULT_CAPABILITIES) & set(host.bounding)
    )
    result = (base | add) - (drop - add if "ALL" in drop else drop)
    return tuple(name for name in capabilities.NAMES if name in result)


def container_process(spec: InstanceSpec, host: HostFacts) -> dict[str, Any]:
    """The `process` object of the first process."""
    assert spec.process is not None
    process = spec.process
    if spec.init:
        if not host.init:
            raise Unsupported(
                "No static init program was found on this host.", field="init", hint="install tini or docker-init"
            )
        process = msgspec.structs.replace(process, args=(INIT_INSIDE, "--", *process.args))
    result = process_object(process, granted(spec.security, host), spec.security.no_new_privileges)
    result["oomScoreAdj"] = spec.oom_score_adj
    if spec.ulimits:
        result["rlimits"] = [
            {"type": f"RLIMIT_{limit.name.upper()}", "soft": _unsigned(limit.soft), "hard": _unsigned(limit.hard)}
            for limit in spec.ulimits
        ]
    profile = spec.security.apparmor
    if host.apparmor and profile and profile != "unconfined" and not spec.security.privileged:
        result["apparmorProfile"] = profile  # where AppArmor is off, dockerd too runs without
    return result


def process_object(process: Process, caps: Collection[str], no_new_privileges: bool) -> dict[str, Any]:
    """A `process` object, of a first process or of an exec. Nothing is inheritable or ambient, so that a program run as
    another user than root keeps no capability (CVE-2022-24769)."""
    if not process.args or not process.args[0]:
        raise Invalid("no command specified", field="process.args")
    user: dict[str, Any] = {"uid": process.uid, "gid": process.gid}
    if process.groups:
        user["additionalGids"] = list(process.groups)
    result: dict[str, Any] = {
        "terminal": process.tty,
        "user": user,
        "args": list(process.args),
        "env": list(process.env),
        "cwd": process.cwd or "/",
        "capabilities": {kind: list(caps) for kind in ("bounding", "effective", "permitted")},
        "noNewPrivileges": no_new_privileges,
    }
    if process.tty and process.width and process.height:
        result["consoleSize"] = {"width": process.width, "height": process.height}
    return result


def _unsigned(limit: int) -> int:
    """-1 is no limit, which the specification writes as the largest 64-bit number."""
    return limit & 0xFFFFFFFFFFFFFFFF


def default_mounts(spec: InstanceSpec, host: HostFacts) -> list[Mount]:
    """What every container has, unless the spec mounts something else at that place."""
    access = "rw" if spec.security.privileged else "ro"
    safe = ("nosuid", "noexec", "nodev")
    result = [
        Mount(target="/proc", kind="proc", source="proc", options=safe),
        Mount(
            target="/dev", kind="tmpfs", source="tmpfs", options=("nosuid", "strictatime", "mode=755", "size=65536k")
        ),
        Mount(
            target="/dev/pts",
            kind="devpts",
            source="devpts",
            options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        Mount(target="/sys", kind="sysfs", source="sysfs", options=(*safe, access)),
        Mount(target="/sys/fs/cgroup", kind="cgroup", source="cgroup", options=(access, *safe)),
        Mount(target="/dev/mqueue", kind="mqueue", source="mqueue", options=safe),
        Mount(target="/dev/shm", kind="tmpfs", source="shm", options=(*safe, "mode=1777", "size=67108864")),  # noqa: S108
    ]
    if spec.init:
        result.append(Mount(target=INIT_INSIDE, kind="bind", source=host.init, options=("bind", "ro")))
    return result


def mounts(spec: InstanceSpec, host: HostFacts) -> list[dict[str, Any]]:
    """All mounts, those nearer to the root first; the spec's own take the place of a default at the same target. With the host's
    IPC namespace comes its /dev/shm."""
    own = {mount.target.rstrip("/") or "/": mount for mount in spec.mounts}
    chosen = {mount.target: mount for mount in default_mounts(spec, host)}
    if spec.ipcns == "":
        chosen["/dev/shm"] = Mount(target="/dev/shm", kind="bind", source="/dev/shm", options=("rbind", "rprivate"))  # noqa: S108
    if spec.no_shm:
        chosen.pop("/dev/shm", None)  # noqa: S108
    if "/dev" in own:  # a /dev of the user's is taken as it is, with all that it holds
        chosen = {target: mount for target, mount in chosen.items() if not target.startswith("/dev/")}
    chosen |= own
    ordered = sorted(chosen.values(), key=lambda mount: mount.target.rstrip("/").count("/"))
    return [
        {"destination": mount.target, "type": mount.kind, "source": mount.source, "options": _options(mount)}
        for mount in ordered
    ]


def _options(mount: Mount) -> list[str]:
    """A bind mount must say `bind` or `rbind`."""
    if mount.kind == "bind" and not {"bind", "rbind"} & set(mount.options):
        return ["rbind", *mount.options]
    return list(mount.options)


def _linux(spec: InstanceSpec, host: HostFacts, devices: Sequence[DeviceNode], cgroup_path: str) -> dict[str, Any]:
    security = spec.security
    linux: dict[str, Any] = {
        "cgroupsPath": cgroup_path,
        "namespaces": namespaces(spec, host),
        "resources": linux_resources(spec.resources, host) | {"devices": device_rules(security, devices)},
        "devices": [_device(node) for node in devices],
        "sysctl": sysctls(spec),
        "maskedPaths": []
        if security.privileged
        else list(MASKED if security.masked_paths is None else security.masked_paths),
        "readonlyPaths": []
        if security.privileged
        else list(READONLY if security.readonly_paths is None else security.readonly_paths),
    }
    if profile := seccomp_profile(security, host):
        linux["seccomp"] = profile
    if propagation := _root_propagation(spec.mounts):
        linux["rootfsPropagation"] = propagation
    return linux


def namespaces(spec: InstanceSpec, host: HostFacts) -> list[dict[str, str]]:
    """Each namespace: its own (None), the host's (empty path: not listed) or one that exists. On cgroup version 1 the host's
    cgroup namespace is kept unless one is asked for, as Docker does."""
    result = [{"type": "mount"}]
    asked = (("network", spec.netns), ("pid", spec.pidns), ("ipc", spec.ipcns), ("uts", spec.utsns))
    for kind, path in asked:
        if path is None:
            result.append({"type": kind})
        elif path:
            result.append({"type": kind, "path": path})
    if (spec.cgroup_mode or ("private" if host.cgroup_version == 2 else "host")) == "private":
        result.append({"type": "cgroup"})
    return result


def device_rules(security: Security, devices: Iterable[DeviceNode]) -> list[dict[str, Any]]:
    """The device rules of the control group: nothing but the harmless ones and those given."""
    if security.privileged:
        return [dict(ALLOW_ALL)]
    given = [
        {"allow": True, "type": node.kind, "major": node.major, "minor": node.minor, "access": node.access}
        for node in devices
    ]
    asked = [device_rule(text) for text in security.device_rules]
    return [dict(DENY_ALL), *(dict(rule) for rule in DEFAULT_DEVICES), *given, *asked]


def device_rule(text: str) -> dict[str, Any]:
    """One rule of `c 42:* rmw`. Raises Invalid."""
    found = DEVICE_RULE.fullmatch(text)
    if found is None:
        raise Invalid(f"invalid device cgroup rule format: '{text}'", field="security.device_rules")
    kind, major, minor, access = found.groups()
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    numbers = {"major": major, "minor": minor}
    return rule | {name: int(number) for name, number in numbers.items() if number != "*"}


def _device(node: DeviceNode) -> dict[str, Any]:
    return {
        "path": node.path,
        "type": node.kind,
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    }


def sysctls(spec: InstanceSpec) -> dict[str, str]:
    """The spec's over the defaults. The domain name has no field of its own before specification 1.1."""
    result = {} if spec.netns == "" else dict(NETWORK_SYSCTLS)
    if spec.domainname and spec.utsns != "":
        result["kernel.domainname"] = spec.domainname
    return result | spec.sysctls


def seccomp_profile(security: Security, host: HostFacts) -> dict[str, Any] | None:
    """The default profile, the spec's own, or none for unconfined and privileged containers."""
    if security.seccomp == "unconfined" or (security.privileged and security.seccomp is None):
        return None
    caps = granted(security, host)
    if security.seccomp is None:
        return seccomp.default_profile(caps, host.machine)
    return seccomp.resolve_profile(security.seccomp, caps, host.machine)


def _root_propagation(own: Sequence[Mount]) -> str:
    """A shared or slave mount inside needs a root that lets mount events through."""
    options = {option for mount in own for option in mount.options}
    if options & {"shared", "rshared"}:
        return "shared"
    return "rslave" if options & {"slave", "rslave"} else ""
