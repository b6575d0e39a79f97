"""From an InstanceSpec to what runs it in a machine: a container that holds QEMU and its helpers, and the agent's orders.

The sandbox is an ordinary container of the `oci` driver; conmon, control groups, log, exit code and recovery are that driver's.
Its root holds what QEMU needs of the host, read-only, and at `/share` the image's root file system with all its mounts in it:
one tree, which virtiofsd gives to the machine. Whatever breaks out of QEMU finds no more than that.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from insula.drivers.microvm.argv import FOLDER, INITRD, KERNEL
from insula.drivers.microvm.sizes import of_sandbox
from insula.drivers.oci import spec as oci
from insula.drivers.oci.facts import HostFacts
from insula.errors import Invalid
from insula.host import capabilities, seccomp
from insula.model.instance import Device, Guest, InstanceSpec, Mount, Process, Security, Ulimit

Record = tuple[str, str]

SHARE = "/share"
ROOT = f"{SHARE}/root"
PROGRAMS = "/opt/insula"  # where the sandbox finds the relay
_DEVICES = f"{SHARE}/dev"
_START = f"import sys; sys.path.insert(0, {PROGRAMS!r}); from sandboxed.relay import main; main()"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32")  # of the host: programs and their libraries
_CAPABILITIES = (  # virtiofsd acts for whoever acts in the machine; QEMU leaves root behind
    *(
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ),
)
_CLONE_FS = 0x200
_ROOM = Ulimit(name="nofile", soft=1_048_576, hard=1_048_576)  # a container's usual limit; a bare kernel's is 1024
_TMPFS_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
_TMPFS_PLAIN = {"rw", "suid", "dev", "exec", "rprivate", "private"}
_SHM = ("nosuid", "nodev", "noexec", "mode=1777", "size=67108864")


class Placed(Struct, frozen=True, kw_only=True):
    """The mounts of an instance, each at its real place: symlinks of the image are followed already."""

    of_host: tuple[Mount, ...] = ()  # bound into the share, at a target below the root
    of_devices: tuple[Mount, ...] = ()  # likewise, for what is to appear below /dev
    inside: tuple[Record, ...] = ()  # made by the agent


def place(mounts: Iterable[Mount], real: Mapping[str, str]) -> Placed:
    """Sort the mounts; `real` has the real place of each target that is not below /dev. Pure. Raises Invalid."""
    of_host: list[Mount] = []
    of_devices: list[Mount] = []
    inside: list[Record] = []
    for mount in mounts:
        below_devices = mount.target == "/dev/shm" or mount.target.startswith("/dev/")  # noqa: S108
        if mount.target == "/dev/shm" and mount.kind == "bind":  # noqa: S108 - the host's is of another kernel
            mount = Mount(target=mount.target, kind="tmpfs", source="shm", options=_SHM)
        if mount.kind == "tmpfs":
            target = mount.target if below_devices else real[mount.target]
            inside.append(("mount", _tmpfs(target, mount.options)))
        elif below_devices:
            inside.append(("mount", f"{mount.target}\tbind\tdev/{len(of_devices)}"))
            of_devices.append(msgspec.structs.replace(mount, target=f"{_DEVICES}/{len(of_devices)}"))
        else:
            of_host.append(msgspec.structs.replace(mount, target=ROOT + real[mount.target]))
    return Placed(of_host=tuple(of_host), of_devices=tuple(of_devices), inside=tuple(inside))


def _tmpfs(target: str, options: Sequence[str]) -> str:
    flags = sum(_TMPFS_FLAGS.get(option, 0) for option in options)
    data = ",".join(option for option in options if option not in _TMPFS_FLAGS and option not in _TMPFS_PLAIN)
    if any(character in target + data for character in "\t\n\0"):
        raise Invalid(f"A mount's place must not contain control characters: {target!r}", field="mounts")
    return f"{target}\ttmpfs\t{flags}\t{data}"


# --- the sandbox ------------------------------------------------------------------------------------------------


def sandbox(spec: InstanceSpec, placed: Placed, host: HostFacts, devices: tuple[Device, ...]) -> InstanceSpec:
    """The container around QEMU. Raises Invalid for a spec without process, root file system or guest."""
    if spec.process is None or not spec.rootfs or spec.guest is None:
        raise Invalid("A machine for an image needs a process, a root file system and a guest kernel.", field="process")
    first = spec.process
    return InstanceSpec(
        id=spec.id,
        name=spec.name,
        directory=spec.directory,
        log_path=spec.log_path,
        log_journal=spec.log_journal,
        log_tag=spec.log_tag,
        rootfs=f"{spec.directory}/sandbox",
        process=Process(
            args=(str(Path(sys.executable).resolve()), "-I", "-S", "-c", _START),
            env=("PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"),
            open_stdin=first.open_stdin,
            stdin_once=first.stdin_once and not first.tty,
        ),
        mounts=(*system_mounts(spec.guest, spec.directory), _root_mount(spec), *placed.of_host, *placed.of_devices),
        netns=spec.netns,
        cgroup_parent=spec.cgroup_parent,
        devices=devices,
        oom_score_adj=spec.oom_score_adj,
        resources=of_sandbox(spec.resources),
        security=Security(
            cap_drop=("ALL",),
            cap_add=_CAPABILITIES,
            readonly_rootfs=True,
            seccomp=_profile(host),
            no_new_privileges=True,
        ),
        annotations=spec.annotations,
    )


def system_mounts(guest: Guest, directory: str) -> tuple[Mount, ...]:
    """What QEMU, virtiofsd and the relay need of the host."""
    here = Path(__file__).parent / "sandboxed"
    pairs = [(path, path) for path in _SYSTEM if Path(path).is_dir() and not Path(path).is_symlink()]
    if not any(Path(sys.base_prefix).is_relative_to(path) for path, _ in pairs):
        pairs.append((sys.base_prefix, sys.base_prefix))  # a Python of the user's own
    pairs += [(str(here), f"{PROGRAMS}/sandboxed"), (guest.kernel, KERNEL), (guest.initrd, INITRD)]
    mounts = [
        Mount(target=target, kind="bind", source=source, options=("rbind", "ro", "nosuid", "nodev", "rprivate"))
        for source, target in pairs
    ]
    return (*mounts, Mount(target=FOLDER, kind="bind", source=f"{directory}/run", options=("bind", "rprivate")))


def system_links() -> dict[str, str]:
    """Symlinks of the host's root that its programs need: /lib64 and the like, where they lie in /usr."""
    return {path: str(Path(path).readlink()) for path in _SYSTEM if Path(path).is_symlink()}


def _root_mount(spec: InstanceSpec) -> Mount:
    access = ("ro",) if spec.security.readonly_rootfs else ()
    return Mount(target=ROOT, kind="bind", source=spec.rootfs, options=("bind", "rprivate", *access))


def _profile(host: HostFacts) -> str:
    """The default profile, and what virtiofsd's threads do to have a folder of their own each: unshare(CLONE_FS)."""
    names = tuple(f"CAP_{name}" for name in _CAPABILITIES)
    profile: dict[str, Any] = seccomp.default_profile(names, host.machine)
    own_folder = {"index": 0, "value": _CLONE_FS, "op": "SCMP_CMP_EQ"}
    profile["syscalls"].append({"names": ["unshare"], "action": "SCMP_ACT_ALLOW", "args": [own_folder]})
    return msgspec.json.encode(profile).decode()


# --- the agent's orders -----------------------------------------------------------------------------------------


def image_records(spec: InstanceSpec, placed: Placed, host: HostFacts) -> list[Record]:
    """How the agent sets up the machine and runs the image's process; the network is added at each start. Raises Invalid,
    Unsupported."""
    assert spec.process is not None
    process = spec.process
    if spec.init:
        process = msgspec.structs.replace(process, args=(oci.INIT_INSIDE, "--", *process.args))
    records = process_records(process, spec.security, spec.ulimits)
    records += [("hostname", spec.hostname)] if spec.hostname else []
    records += [("domainname", spec.domainname)] if spec.domainname else []
    records += [("memory", str(spec.resources.memory_bytes))] if spec.resources.memory_bytes else []
    if spec.resources.pids_limit and spec.resources.pids_limit > 0:
        records.append(("pids", str(spec.resources.pids_limit)))
    settings = oci.NETWORK_SYSCTLS | spec.sysctls
    return [*records, *(("sysctl", f"{name}={value}") for name, value in settings.items()), *placed.inside]


def process_records(process: Process, security: Security, ulimits: Sequence[Ulimit]) -> list[Record]:
    """A process, the image's or another."""
    if not process.args or not process.args[0]:
        raise Invalid("no command specified", field="process.args")
    kernel = HostFacts(bounding=capabilities.NAMES)  # its own, which can give everything
    given = capabilities.NAMES if process.privileged else oci.granted(security, kernel)
    mask = sum(1 << capabilities.NAMES.index(name) for name in given)
    records = [("arg", word) for word in process.args] + [("env", word) for word in process.env]
    records += [("cwd", process.cwd or "/"), ("uid", str(process.uid)), ("gid", str(process.gid))]
    records += [("group", str(group)) for group in process.groups] + [("capabilities", f"{mask:x}")]
    records += [("rlimit", _rlimit(limit)) for limit in (_ROOM, *ulimits)]
    records += [("input", "1")] if process.open_stdin else []
    records += [("no_new_privileges", "1")] if security.no_new_privileges else []
    if process.tty:
        records += [("tty", "1"), ("columns", str(process.width)), ("rows", str(process.height))]
    for key, value in records:
        if "\0" in value:
            raise Invalid(f"A process's {key} must not contain a NUL character.", field="process")
    return records


def _rlimit(limit: Ulimit) -> str:
    number = getattr(resource, f"RLIMIT_{limit.name.upper()}", None)
    if number is None:
        raise Invalid(f"invalid ulimit type: {limit.name}", field="ulimits")
    return f"{number}:{limit.soft & 0xFFFFFFFFFFFFFFFF}:{limit.hard & 0xFFFFFFFFFFFFFFFF}"
