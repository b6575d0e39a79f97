"""What is checked of a request before anything is made for it. Pure; the sentences are the Docker Engine's."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from insula.drivers.driver import Capability, Driver
from insula.engine.bounds import check_bounds, check_path, check_texts
from insula.engine.healthrules import refuse_check
from insula.engine.logattributes import JOURNALD, check_options
from insula.engine.loglimits import limit_of
from insula.engine.resolve import arguments, check_target, stop_signal_of, working_dir
from insula.engine.signals import parse_signal
from insula.errors import Conflict, Invalid, Unsupported
from insula.images.contract import ImageConfig
from insula.model.instance import InstanceConfig, MountConfig

SHARED_MODES = ("host", "none")
DETACHED = "detached"  # a namespace of its own that was taken off its last network
SANDBOX = "sandbox:"
INSTANCE = "instance:"


def check_config(config: InstanceConfig, image: ImageConfig) -> None:
    """Raises Invalid or Conflict for what can never run."""
    check_bounds(config)
    check_texts(image)
    for volume in image.volumes:
        check_path("/" + volume, "volumes of the image")
    if config.machine is None:
        arguments(config, image)
        working_dir(config.working_dir or image.working_dir)
    parse_signal(stop_signal_of(config, image))
    _check_restart(config)
    refuse_check(config.health)
    limit_of(config)
    check_options(config.log_options)
    check_mounts(config.mounts)
    if config.network_mode == "host" and config.networks:
        raise Conflict("conflicting options: host networking cannot be combined with another network")
    if config.network_mode.startswith(INSTANCE) and (config.hostname or config.ports):
        what = "hostname" if config.hostname else "port publishing"
        raise Conflict(f"conflicting options: {what} and the container type network mode")


def _check_restart(config: InstanceConfig) -> None:
    policy = config.restart
    if policy.max_retries < 0:
        raise Invalid("maximum retry count cannot be negative", field="restart")
    if policy.max_retries and policy.name != "on-failure":
        raise Invalid("maximum retry count can only be used with 'on-failure'", field="restart")
    if config.auto_remove and policy.name != "no":
        raise Conflict("can't create 'AutoRemove' container with restart policy")


def check_mounts(mounts: Sequence[MountConfig]) -> None:
    """Absolute places, each only once, sources that make sense."""
    seen: set[str] = set()
    for mount in mounts:
        target = check_target(mount.target)
        if target in seen:
            raise Invalid(f"Duplicate mount point: {target}", field="mounts")
        seen.add(target)
        if mount.kind == "bind" and not (mount.source.startswith("/") and "\0" not in mount.source):
            raise Invalid(
                f"invalid mount config for type \"bind\": invalid mount path: '{mount.source}' mount path must be absolute",
                field="mounts",
            )
        if ".." in posixpath.normpath(mount.subpath).split("/") or mount.subpath.startswith("/"):
            raise Invalid(f"the subpath {mount.subpath!r} of a volume must stay inside of it", field="mounts")


def check_log(config: InstanceConfig, driver: Driver) -> None:
    """Raises Unsupported where lines cannot go where they should."""
    if config.log_driver == JOURNALD and driver.log_format != "conmon":
        raise Unsupported(
            f"the log driver 'journald' is not possible with the {driver.name} driver: use json-file, local or none"
        )


def need(driver: Driver, capability: Capability) -> None:
    """Raises Unsupported when the level cannot do that."""
    if capability not in driver.capabilities:
        raise Unsupported(f"the {driver.name} driver cannot {capability}: {driver.summary}")


def networks_of(config: InstanceConfig) -> list[str]:
    """The names of the segments that it joins, the primary one first; none for a shared or absent network."""
    mode = config.network_mode
    if mode in SHARED_MODES or mode.startswith((SANDBOX, INSTANCE)):
        return []
    first = [] if mode == DETACHED else ["default" if mode in ("", "bridge") else mode]
    return list(dict.fromkeys([*first, *(each.network for each in config.networks)]))
