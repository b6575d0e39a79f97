"""From what was asked to what a driver runs: `InstanceConfig` and what was looked up become an `InstanceSpec`. Pure.

Entry point, command and environment are merged as the Docker Engine merges them (its documentation of ENTRYPOINT, CMD and
`docker run`); golden tests hold this file to that.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from insula.engine.contract import ResolvedMount
from insula.engine.logattributes import JOURNALD
from insula.engine.users import Accounts, User, look_up
from insula.errors import Invalid
from insula.images.contract import ImageConfig
from insula.model.instance import (
    Guest,
    InstanceConfig,
    InstanceSpec,
    MachineSpec,
    Mount,
    MountConfig,
    Process,
    Resources,
)

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST_FILES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
DEFAULT_STOP_SIGNAL = "SIGTERM"


class Surroundings(Struct, frozen=True, kw_only=True):
    """What was looked up for one instance before its spec is made. Namespaces as in `InstanceSpec`."""

    id: str
    directory: str
    log_path: str
    log_tag: str = ""
    image: ImageConfig = ImageConfig()
    rootfs: str = ""
    accounts: Accounts = Accounts()
    mounts: tuple[ResolvedMount, ...] = ()
    host_files: dict[str, str] = {}  # target inside → path on the host
    hostname: str = ""
    netns: str | None = None
    pidns: str | None = None
    ipcns: str | None = None
    utsns: str | None = None
    shm: str = ""  # a folder on the host to be /dev/shm; empty makes a fresh one
    cgroup: str = "insula"
    size: tuple[int, int] = (0, 0)
    link_env: tuple[str, ...] = ()  # what links tell of others
    machine: MachineSpec | None = None
    guest: Guest | None = None


def resolve(config: InstanceConfig, around: Surroundings) -> InstanceSpec:
    """The spec. Raises Invalid (no command, unknown user)."""
    machine = around.machine
    named_elsewhere = around.utsns is not None and around.guest is None  # a kernel of its own has its own names
    return InstanceSpec(
        id=around.id,
        name=config.name,
        directory=around.directory,
        log_path=around.log_path,
        log_journal=config.log_driver == JOURNALD,
        log_tag=around.log_tag,
        rootfs=around.rootfs,
        hostname="" if named_elsewhere else around.hostname,
        domainname="" if named_elsewhere else config.domainname,
        process=None if machine else first_process(config, around),
        mounts=() if machine else mounts_of(config, around),
        netns=around.netns,
        pidns=around.pidns,
        ipcns=around.ipcns,
        utsns=around.utsns,
        cgroup_parent=config.cgroup_parent or around.cgroup,
        cgroup_mode=config.cgroup_mode,
        no_shm=config.ipc_mode == "none",
        sysctls=config.sysctls,
        ulimits=config.ulimits,
        devices=config.devices,
        init=config.init,
        oom_score_adj=config.oom_score_adj,
        resources=config.resources,
        security=config.security,
        annotations=config.annotations,
        machine=machine,
        guest=around.guest,
    )


# --- the first process ------------------------------------------------------------------------------------------


def first_process(config: InstanceConfig, around: Surroundings) -> Process:
    """The process that the instance is made for."""
    user = look_up(config.user or around.image.user, around.accounts, config.groups)
    return Process(
        args=arguments(config, around.image),
        env=environment(
            (*around.link_env, *config.env), around.image.env, hostname=around.hostname, tty=config.tty, home=user.home
        ),
        cwd=working_dir(config.working_dir or around.image.working_dir),
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        tty=config.tty,
        open_stdin=config.open_stdin,
        stdin_once=config.stdin_once,
        privileged=config.security.privileged,
        width=around.size[0],
        height=around.size[1],
    )


def arguments(config: InstanceConfig, image: ImageConfig) -> tuple[str, ...]:
    """Entry point plus command. An entry point of the user's drops the image's command; one of "" drops both of the image's."""
    entrypoint, command = config.entrypoint, config.command
    if not entrypoint and not command:
        command = image.command
    if entrypoint is None:
        entrypoint = image.entrypoint
    if entrypoint == ("",):
        entrypoint = ()
    args = (*entrypoint, *(command or ()))
    if not args:
        raise Invalid("no command specified", field="command")
    return args


def environment(asked: Sequence[str], image: Sequence[str], *, hostname: str, tty: bool, home: str) -> tuple[str, ...]:
    """Defaults, then the user's variables, then the image's where the user said nothing. `NAME` without `=` removes it."""
    merged: dict[str, str] = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if tty:
        merged["TERM"] = "xterm"
    mine = {entry.partition("=")[0] for entry in asked}
    for entry in (*asked, *(entry for entry in image if entry.partition("=")[0] not in mine)):
        name, equals, value = entry.partition("=")
        if equals:
            merged[name] = value
        else:
            merged.pop(name, None)
    merged.setdefault("HOME", home)
    return tuple(f"{name}={value}" for name, value in merged.items())


def working_dir(path: str) -> str:
    """Raises Invalid with the Docker Engine's sentence for a relative one."""
    if not path:
        return "/"
    if not path.startswith("/"):
        raise Invalid(
            f"the working directory '{path}' is invalid, it needs to be an absolute path", field="working_dir"
        )
    return clean_path(path)


def exec_process(process: Process, *, first: Process, home: str, user: User | None, env: Sequence[str] = ()) -> Process:
    """A process started beside the first: that one's environment with `env` on top, and its folder and user where none
    is asked."""
    merged = dict(entry.partition("=")[::2] for entry in first.env)
    if user is not None and f"HOME={home}" in first.env:
        merged["HOME"] = user.home
    if process.tty:
        merged.setdefault("TERM", "xterm")
    for entry in (*process.env, *env):
        name, equals, value = entry.partition("=")
        if equals:
            merged[name] = value
        else:
            merged.pop(name, None)
    return msgspec.structs.replace(
        process,
        env=tuple(f"{name}={value}" for name, value in merged.items()),
        cwd=working_dir(process.cwd) if process.cwd else first.cwd,
        uid=first.uid if user is None else user.uid,
        gid=first.gid if user is None else user.gid,
        groups=first.groups if user is None else user.groups,
    )


# --- mounts -----------------------------------------------------------------------------------------------------


def mounts_of(config: InstanceConfig, around: Surroundings) -> tuple[Mount, ...]:
    """The shared memory, the host files and what was asked, a folder before what lies in it."""
    asked = [_one_mount(mount) for mount in around.mounts]
    taken = {mount.target for mount in asked}
    readonly = ("ro",) if config.security.readonly_rootfs else ()
    made = [
        Mount(target=target, kind="bind", source=path, options=("bind", "rprivate", *readonly))
        for target, path in around.host_files.items()
    ]
    if config.ipc_mode != "none":
        made.append(_shm(config, around))
    every = [mount for mount in made if mount.target not in taken] + asked
    return tuple(sorted(every, key=lambda mount: (mount.target.count("/"), mount.target)))


def _shm(config: InstanceConfig, around: Surroundings) -> Mount:
    if around.shm:
        return Mount(target="/dev/shm", kind="bind", source=around.shm, options=("rbind", "rprivate"))  # noqa: S108
    options = ("nosuid", "noexec", "nodev", "mode=1777", f"size={config.shm_size_bytes}")
    return Mount(target="/dev/shm", kind="tmpfs", source="shm", options=options)  # noqa: S108


def _one_mount(mount: ResolvedMount) -> Mount:
    config = mount.config
    mode = (_readonly(config),) if config.readonly else ()
    if config.kind == "tmpfs":
        return Mount(target=config.target, kind="tmpfs", source="tmpfs", options=_tmpfs_options(mount) + mode)
    plain = tuple(option for option in config.options if option in ("nosuid", "nodev", "noexec"))
    bind = "bind" if "bind" in config.options else "rbind"
    return Mount(
        target=config.target, kind="bind", source=mount.source, options=(bind, config.propagation, *mode, *plain)
    )


def _readonly(config: MountConfig) -> str:
    """`rro` makes what is mounted below read-only too (Linux 5.12); one that is not recursive has nothing below."""
    below = config.kind != "tmpfs" and "bind" not in config.options and config.readonly_below != "never"
    return "rro" if below else "ro"


def _tmpfs_options(mount: ResolvedMount) -> tuple[str, ...]:
    config = mount.config
    options = list(config.options)
    chosen = {option.partition("=")[0] for option in options}
    pairs = (("exec", "noexec"), ("suid", "nosuid"), ("dev", "nodev"))
    options += [no for yes, no in pairs if yes not in chosen and no not in chosen]
    if config.size_bytes and "size" not in chosen:
        options.append(f"size={config.size_bytes}")
    if config.mode is not None and "mode" not in chosen:
        options.append(f"mode={config.mode:o}")
    return tuple(options)


def clean_path(path: str) -> str:
    """An absolute path without `.`, `..` and doubled slashes; normpath(3) alone would keep two at the begin."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")


def check_target(target: str) -> str:
    """A mount's place inside, normalized. Raises Invalid."""
    if not target.startswith("/") or "\0" in target:
        raise Invalid(f"invalid mount path: '{target}' mount path must be absolute", field="mounts")
    clean = clean_path(target)
    if clean == "/":
        raise Invalid("invalid specification: destination can't be '/'", field="mounts")
    return clean


# --- what else is decided here ----------------------------------------------------------------------------------


def hostname_of(config: InstanceConfig, id: str, *, host: str) -> str:
    """What the instance calls itself."""
    if config.uts_mode == "host" or (config.network_mode == "host" and not config.hostname):
        return host
    return config.hostname or id[:12]


def stop_signal_of(config: InstanceConfig, image: ImageConfig) -> str:
    """What asks it to end."""
    return config.stop_signal or image.stop_signal or DEFAULT_STOP_SIGNAL


def merge_resources(old: Resources, new: Resources) -> Resources:
    """`docker update` changes what it names and keeps the rest."""
    changes = {
        name: value for name in Resources.__struct_fields__ if (value := getattr(new, name)) not in (None, False, ())
    }
    return msgspec.structs.replace(old, **changes)
