"""What a machine for an image cannot give, having a kernel of its own: refused with a sentence before anything is made."""

from __future__ import annotations

from insula.errors import Unsupported
from insula.model.instance import InstanceConfig, MountConfig

_OWN = ("", "private", "none")
_KERNEL_FOLDERS = ("/proc", "/sys")


def check(config: InstanceConfig) -> None:
    """Raises Unsupported naming the field, the value and what would be accepted."""
    security = config.security
    if security.privileged:
        raise _refusal(
            "security.privileged", "privileged", "it has a kernel of its own and none of the host's devices; "
            "use --cap-add to give its processes more of that kernel",
        )  # fmt: skip
    if config.devices:
        raise _refusal("devices", f"the device {config.devices[0].source}", "the host's devices stay with the host")
    _check_namespaces(config)
    if security.seccomp not in (None, "unconfined"):
        raise _refusal(
            "security.seccomp", "a seccomp profile", "its processes have a kernel of their own to themselves"
        )
    if security.apparmor not in (None, "", "unconfined"):
        raise _refusal(
            "security.apparmor", f"the AppArmor profile {security.apparmor}", "the host's do not reach inside"
        )
    if config.resources.oom_kill_disable:
        raise _refusal("resources.oom_kill_disable", "an OOM killer turned off", "its memory is all it has")
    for mount in config.mounts:
        _check_mount(mount)


def _check_namespaces(config: InstanceConfig) -> None:
    if config.network_mode == "host":
        raise _refusal("network_mode", "the network host", "it is on a network; name one, and publish ports with -p")
    if config.network_mode.startswith("instance:"):
        raise _refusal(
            "network_mode", "another container's network", "its kernel has the network alone; name a network"
        )
    modes = {"pid_mode": config.pid_mode, "ipc_mode": config.ipc_mode, "uts_mode": config.uts_mode}
    for field, mode in modes.items():
        if mode not in _OWN:
            raise _refusal(field, f"{field.replace('_', ' ')} {mode!r}", "a kernel's namespaces cannot be shared")


def _check_mount(mount: MountConfig) -> None:
    if mount.kind != "tmpfs" and mount.propagation.lstrip("r") in ("shared", "slave"):
        raise _refusal(
            "mounts", f"the propagation {mount.propagation} of {mount.target}", "mounts do not cross kernels; use rprivate"
        )  # fmt: skip
    if any(mount.target == folder or mount.target.startswith(f"{folder}/") for folder in _KERNEL_FOLDERS):
        raise _refusal("mounts", f"a mount at {mount.target}", "its own kernel is there")


def _refusal(field: str, what: str, why: str) -> Unsupported:
    return Unsupported(f"A container with runtime vm cannot have {what}: {why}.", field=field)
