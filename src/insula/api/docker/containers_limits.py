"""The envelope in Docker's words as `Resources`, and the other lists of HostConfig as ours. Pure."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from insula.api.docker.words import HostWords, ResourceWords, RestartWords
from insula.errors import Cause, Conflict, Invalid, Unsupported
from insula.host import capabilities
from insula.model.instance import Device, Resources, RestartPolicy, Security, Ulimit

PERIOD_US = 100_000
_LEAST_MEMORY = 6 * 1024 * 1024
_POLICIES = ("no", "always", "on-failure", "unless-stopped")
_LIMIT_NAMES = frozenset(
    {
        "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
        "rttime", "sigpending", "stack",
    }
)  # fmt: skip

# Limits that no driver here sets. A value is refused, so that nobody believes in a limit that is not there.
_REFUSED = (
    ("blkio_weight_device", "BlkioWeightDevice"),
    ("blkio_device_read_bps", "BlkioDeviceReadBps"),
    ("blkio_device_write_bps", "BlkioDeviceWriteBps"),
    ("blkio_device_read_iops", "BlkioDeviceReadIOps"),
    ("blkio_device_write_iops", "BlkioDeviceWriteIOps"),
    ("cpu_realtime_period", "CpuRealtimePeriod"),
    ("cpu_realtime_runtime", "CpuRealtimeRuntime"),
    ("device_cgroup_rules", "DeviceCgroupRules"),
    ("kernel_memory", "KernelMemory"),
    ("kernel_memory_tcp", "KernelMemoryTCP"),
)


def refuse(field: str, why: str) -> Unsupported:
    """A refusal that names the field."""
    return Unsupported(f"HostConfig.{field} is not supported: {why}", field=f"HostConfig.{field}")


def resources_of(words: ResourceWords) -> Resources:
    """Raises Invalid and Unsupported."""
    for name, field in _REFUSED:
        if getattr(words, name):
            raise refuse(field, "no driver of this node can set it")
    if words.device_requests:
        raise Invalid(
            f'could not select device driver "" with capabilities: {_asked(words.device_requests)}',
            field="HostConfig.DeviceRequests",
        )
    if words.memory_swappiness not in (None, -1):
        raise refuse("MemorySwappiness", "no driver of this node can set it")
    _check_memory(words)
    quota, period = _cpu(words)
    swap = words.memory_swap or (2 * words.memory if words.memory else 0)  # as dockerd: as much swap again
    return Resources(
        cpu_shares=words.cpu_shares or None,
        cpu_quota_us=quota,
        cpu_period_us=period,
        cpuset_cpus=words.cpuset_cpus or None,
        cpuset_mems=words.cpuset_mems or None,
        memory_bytes=words.memory or None,
        memory_reservation_bytes=words.memory_reservation or None,
        memory_swap_bytes=swap or None,
        pids_limit=words.pids_limit or None,
        oom_kill_disable=words.oom_kill_disable,
        blkio_weight=_weight(words.blkio_weight),
    )


def _asked(requests: Sequence[object]) -> str:
    """The capabilities of the first request, as Go prints a list of lists: [[gpu compute]]."""
    first = requests[0]
    sets = first.get("Capabilities") if isinstance(first, dict) else None
    return f"[{' '.join('[' + ' '.join(map(str, each)) + ']' for each in sets or [] if isinstance(each, list))}]"


def _check_memory(words: ResourceWords) -> None:
    if words.memory < 0 or 0 < words.memory < _LEAST_MEMORY:
        raise Invalid("Minimum memory limit allowed is 6MB", field="HostConfig.Memory")
    if words.memory_swap > 0 and not words.memory:
        raise Invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
    if 0 < words.memory_swap < words.memory:
        raise Invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
    if words.memory_reservation and 0 < words.memory < words.memory_reservation:
        raise Invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
    if 0 < words.memory_reservation < _LEAST_MEMORY:
        raise Invalid("Minimum memory reservation allowed is 6MB", field="HostConfig.MemoryReservation")


def _cpu(words: ResourceWords) -> tuple[int | None, int | None]:
    """Quota and period in microseconds."""
    if words.nano_cpus:
        if words.cpu_period or words.cpu_quota:
            raise Invalid(
                "Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set", field="HostConfig.NanoCpus"
            )
        count = len(os.sched_getaffinity(0))
        if not 0 < words.nano_cpus <= count * 1_000_000_000:
            raise Invalid(
                f"range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available",
                field="HostConfig.NanoCpus",
            )
        return max(1000, words.nano_cpus * PERIOD_US // 1_000_000_000), PERIOD_US
    if words.cpu_period and not 1000 <= words.cpu_period <= 1_000_000:
        raise Invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if words.cpu_quota > 0 and words.cpu_quota < 1000:
        raise Invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)", field="HostConfig.CpuQuota")
    return words.cpu_quota or None, words.cpu_period or None


def _weight(weight: int) -> int | None:
    if weight and not 10 <= weight <= 1000:
        raise Invalid("Range of blkio weight is from 10 to 1000", field="HostConfig.BlkioWeight")
    return weight or None


def restart_of(words: RestartWords, *, auto_remove: bool = False) -> RestartPolicy:
    """Raises Invalid and Conflict with the Docker Engine's sentences."""
    name = words.name or "no"
    if name not in _POLICIES:
        raise Invalid(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            field="HostConfig.RestartPolicy.Name",
        )
    retries = words.maximum_retry_count
    if retries < 0:
        raise Invalid("invalid restart policy: maximum retry count cannot be negative")
    if retries and name != "on-failure":
        raise Invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'")
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
    no_new, seccomp, apparmor, masked = False, None, None, True
    for option in host.security_opt:
        key, _, value = option.replace(":", "=", 1).partition("=") if "=" not in option else option.partition("=")
        match key:
            case "no-new-privileges" if value in ("", "true", "false"):
                no_new = value != "false"
            case "seccomp":
                seccomp = _seccomp(value)
            case "apparmor":
                apparmor = value
            case "systempaths" if value == "unconfined":
                masked = False
            case "label":
                pass  # SELinux labels: nothing to switch off on hosts without SELinux, as dockerd does there
            case _:
                raise Invalid(f"invalid --security-opt 2: {option!r}", field="HostConfig.SecurityOpt")
    return Security(
        privileged=host.privileged,
        cap_add=_capabilities(host.cap_add, "CapAdd"),
        cap_drop=_capabilities(host.cap_drop, "CapDrop"),
        no_new_privileges=no_new,
        seccomp=seccomp,
        apparmor=apparmor,
        readonly_rootfs=host.readonly_rootfs,
        masked_paths=_paths(host.masked_paths, masked),
        readonly_paths=_paths(host.readonly_paths, masked),
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


def _paths(paths: Sequence[str] | None, confined: bool) -> tuple[str, ...] | None:
    if not confined:
        return ()
    return None if paths is None else tuple(paths)


def _capabilities(names: Sequence[str], field: str) -> tuple[str, ...]:
    found = []
    for name in names:
        canonical = capabilities.canonical(name)
        if canonical != "ALL" and canonical not in capabilities.NAMES:
            raise Invalid(f'invalid {field}: unknown capability: "{canonical}"', field=f"HostConfig.{field}")
        found.append(canonical)
    return tuple(found)


def conflict(field: str, message: str) -> Conflict:
    """Options that exclude each other."""
    return Conflict(
        f"conflicting options: {message}", field=field, causes=(Cause(field, "FieldValueInvalid", message),)
    )
