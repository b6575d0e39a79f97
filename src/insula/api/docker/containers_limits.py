"""The envelope in Docker's words as `Resources`, and the other lists of HostConfig as ours. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from insula.api.docker.words import HostWords, ResourceWords, RestartWords, ThrottleWords
from insula.errors import Cause, Invalid, Unsupported
from insula.host import capabilities
from insula.model.instance import BlockLimit, Device, Resources, RestartPolicy, Security, Ulimit

PERIOD_US = 100_000
_DEVICE_RULE = re.compile(r"[acb] ([0-9]{1,10}|\*):([0-9]{1,10}|\*) [rwm]{1,3}", re.ASCII)
_TRUTH = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}  # as Go reads them
_POLICIES = ("no", "always", "on-failure", "unless-stopped")
_LIMIT_NAMES = frozenset(
    {
        "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
        "rttime", "sigpending", "stack",
    }
)  # fmt: skip


def refuse(field: str, why: str) -> Unsupported:
    """A refusal that names the field."""
    return Unsupported(f"HostConfig.{field} is not supported: {why}", field=f"HostConfig.{field}")


def resources_of(words: ResourceWords) -> Resources:
    """The envelope; `containers_adapt` has seen that it can be set. Raises Invalid."""
    if words.device_requests:
        raise _no_device_driver(words.device_requests[0])
    quota, period = words.cpu_quota, words.cpu_period
    if words.nano_cpus:
        quota, period = max(1000, words.nano_cpus * PERIOD_US // 1_000_000_000), PERIOD_US
    swap = words.memory_swap or (2 * words.memory if words.memory else 0)  # as dockerd: as much swap again
    return Resources(
        cpu_shares=words.cpu_shares or None,
        cpu_quota_us=quota or None,
        cpu_period_us=period or None,
        nano_cpus=words.nano_cpus or None,
        cpu_rt_period_us=words.cpu_realtime_period or None,
        cpu_rt_runtime_us=words.cpu_realtime_runtime or None,
        cpuset_cpus=words.cpuset_cpus or None,
        cpuset_mems=words.cpuset_mems or None,
        memory_bytes=words.memory or None,
        memory_reservation_bytes=words.memory_reservation or None,
        memory_swap_bytes=swap or None,
        memory_swappiness=words.memory_swappiness,
        pids_limit=words.pids_limit or None,
        oom_kill_disable=words.oom_kill_disable,
        blkio_weight=words.blkio_weight or None,
        blkio_weight_devices=tuple(BlockLimit(path=each.path, value=each.weight) for each in words.blkio_weight_device),
        read_bps=_throttles(words.blkio_device_read_bps),
        write_bps=_throttles(words.blkio_device_write_bps),
        read_iops=_throttles(words.blkio_device_read_iops),
        write_iops=_throttles(words.blkio_device_write_iops),
    )


def _throttles(words: Sequence[ThrottleWords]) -> tuple[BlockLimit, ...]:
    return tuple(BlockLimit(path=each.path, value=each.rate) for each in words)


def _no_device_driver(request: object) -> Invalid:
    """`--gpus`: no driver of such devices is here. Capabilities as Go prints a list of lists: [[gpu compute]]."""
    words = request if isinstance(request, dict) else {}
    sets = [each for each in words.get("Capabilities") or [] if isinstance(each, list)]
    asked = " ".join("[" + " ".join(map(str, each)) + "]" for each in sets)
    return Invalid(
        f'could not select device driver "{words.get("Driver") or ""}" with capabilities: [{asked}]',
        field="HostConfig.DeviceRequests",
    )


def restart_of(words: RestartWords, *, auto_remove: bool = False) -> RestartPolicy:
    """Raises Invalid and Conflict with the Docker Engine's sentences."""
    name = words.name or "no"
    if not words.name:  # whatever count stands beside it
        return RestartPolicy()
    if name not in _POLICIES:
        raise Invalid(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            field="HostConfig.RestartPolicy.Name",
        )
    retries = words.maximum_retry_count
    if retries and name != "on-failure":
        also = " and cannot be negative" if retries < 0 else ""
        raise Invalid(f"invalid restart policy: maximum retry count can only be used with 'on-failure'{also}")
    if retries < 0:
        raise Invalid("invalid restart policy: maximum retry count cannot be negative")
    if auto_remove and name != "no":
        raise Invalid("can't create 'AutoRemove' container with restart policy", field="HostConfig.AutoRemove")
    return RestartPolicy(name=name, max_retries=retries)  # type: ignore[arg-type]  # checked above


def ulimits_of(words: ResourceWords) -> tuple[Ulimit, ...]:
    """Raises Invalid."""
    for limit in words.ulimits:
        if limit.name.lower() not in _LIMIT_NAMES:
            raise Invalid(f"invalid ulimit type: {limit.name}", field="HostConfig.Ulimits")
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            raise Invalid(
                f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}",
                field="HostConfig.Ulimits",
            )
    return tuple(Ulimit(name=each.name.lower(), soft=each.soft, hard=each.hard) for each in words.ulimits)


def devices_of(words: ResourceWords) -> tuple[Device, ...]:
    """Raises Invalid."""
    devices = []
    for each in words.devices:
        permissions = each.cgroup_permissions or "rwm"
        if not each.path_on_host.startswith("/") or set(permissions) - set("rwm"):
            raise Invalid(f"invalid device: {each.path_on_host}:{each.path_in_container}:{permissions}")
        devices.append(
            Device(
                source=each.path_on_host, target=each.path_in_container or each.path_on_host, permissions=permissions
            )
        )
    return tuple(devices)


# --- security ---------------------------------------------------------------------------------------------------


def security_of(host: HostWords) -> Security:
    """Raises Invalid and Unsupported."""
    no_new, seccomp, apparmor = False, None, None
    for option in host.security_opt:
        key, equals, value = option.replace(":", "=", 1).partition("=") if "=" not in option else option.partition("=")
        match key:
            case "no-new-privileges" if not equals or value.lower() in _TRUTH:
                no_new = not equals or _TRUTH[value.lower()]
            case "seccomp" if equals:
                seccomp = _seccomp(value)
            case "apparmor" if equals:
                apparmor = value
            case "label" if equals:
                pass  # SELinux labels: nothing to switch off on hosts without SELinux, as dockerd does there
            case _:
                raise Invalid(
                    f'invalid --security-opt {2 if equals else 1}: "{option}"', field="HostConfig.SecurityOpt"
                )
    for rule in host.device_cgroup_rules:
        if not _DEVICE_RULE.fullmatch(rule):
            raise Invalid(f"invalid device cgroup rule format: '{rule}'", field="HostConfig.DeviceCgroupRules")
    return Security(
        privileged=host.privileged,
        cap_add=_capabilities(host.cap_add, "CapAdd"),
        cap_drop=_capabilities(host.cap_drop, "CapDrop"),
        no_new_privileges=no_new,
        seccomp=seccomp,
        apparmor=apparmor,
        readonly_rootfs=host.readonly_rootfs,
        masked_paths=None if host.masked_paths is None else tuple(host.masked_paths),
        readonly_paths=None if host.readonly_paths is None else tuple(host.readonly_paths),
        device_rules=tuple(host.device_cgroup_rules),
    )


def _seccomp(value: str) -> str | None:
    if value in ("", "builtin"):
        return None
    if value == "unconfined":
        return value
    try:
        json.loads(value)
    except (ValueError, RecursionError) as fault:
        raise Invalid(f"Decoding seccomp profile failed: {fault}", field="HostConfig.SecurityOpt") from fault
    return value


def _capabilities(names: Sequence[str], field: str) -> tuple[str, ...]:
    found = []
    for name in names:
        canonical = capabilities.canonical(name)
        if canonical != "ALL" and canonical not in capabilities.NAMES:
            raise Invalid(f'invalid {field}: unknown capability: "{canonical}"', field=f"HostConfig.{field}")
        found.append(canonical)
    return tuple(found)


def conflict(field: str, message: str) -> Invalid:
    """Options that exclude each other."""
    return Invalid(f"conflicting options: {message}", field=field, causes=(Cause(field, "FieldValueInvalid", message),))
