"""From a Pod to what the engine runs: one sandbox, and an InstanceConfig per container. Pure.

Names follow what the kubelet's runtimes use (`k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT`), so that `docker ps` tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from insula.agent.podenv import expand
from insula.engine.contract import SandboxConfig
from insula.errors import Invalid, Unsupported
from insula.model.instance import (
    InstanceConfig,
    MountConfig,
    PortMapping,
    Resources,
    Security,
)
from insula.model.quantity import parse_quantity
from insula.model.resource import Resource

CPU_PERIOD_US = 100_000
MIN_SHARES = 2
BEST_EFFORT, BURSTABLE_MOST, BURSTABLE_LEAST = 1000, 999, 2  # oom_score_adj
DEFAULT_TERMINATION_LOG = "/dev/termination-log"
DRIVERS = {"": "oci", "runc": "oci", "oci": "oci", "crun": "oci", "vm": "microvm"}
LABEL_POD, LABEL_NAMESPACE = "io.kubernetes.pod.name", "io.kubernetes.pod.namespace"
LABEL_UID, LABEL_CONTAINER, LABEL_ATTEMPT = (
    "io.kubernetes.pod.uid",
    "io.kubernetes.container.name",
    "io.kubernetes.attempt",
)


def sandbox_id(pod: Resource) -> str:
    """The sandbox of a pod is named by the pod's uid."""
    return f"pod-{pod['metadata']['uid']}"


def hostname_of(pod: Resource) -> str:
    """spec.hostname, else the pod's name, cut to what a host name may be."""
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])[:63].rstrip("-.")


def sandbox_of(pod: Resource) -> SandboxConfig:
    """Network, host name and host ports of a pod."""
    meta, spec = pod["metadata"], pod["spec"]
    sysctls = {s["name"]: s["value"] for s in (spec.get("securityContext") or {}).get("sysctls") or ()}
    return SandboxConfig(
        id=sandbox_id(pod),
        hostname=hostname_of(pod),
        network="host" if spec.get("hostNetwork") else "default",
        ports=() if spec.get("hostNetwork") else host_ports(pod),
        labels={LABEL_POD: meta["name"], LABEL_NAMESPACE: meta["namespace"], LABEL_UID: meta["uid"]},
        sysctls=sysctls,
    )


def host_ports(pod: Resource) -> tuple[PortMapping, ...]:
    """Ports that the pod's containers want on the host."""
    return tuple(
        PortMapping(
            container_port=int(port["containerPort"]),
            protocol=port.get("protocol", "TCP").lower(),
            host_ip=port.get("hostIP", ""),
            host_port=int(port["hostPort"]),
        )
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or ()
        if port.get("hostPort")
    )


def instance_name(pod: Resource, container: str, attempt: int) -> str:
    """The engine's name for one attempt at one container."""
    meta = pod["metadata"]
    return f"k8s_{container}_{meta['name'][:100]}_{meta['namespace'][:63]}_{meta['uid']}_{attempt}"


def driver_of(handler: str) -> str:
    """The level that a RuntimeClass's handler names; none is a plain container."""
    return DRIVERS.get(handler, handler)


class Surroundings(Struct, frozen=True, kw_only=True):
    """What an instance needs besides its pod: `mounts` are the pod's volumes as a whole, by volume name, `subpaths` parts of them
    by (volume, path); `target` is the instance whose processes an ephemeral container shall see."""

    attempt: int
    env: tuple[str, ...]
    mounts: Mapping[str, MountConfig]
    subpaths: Mapping[tuple[str, str], str] = {}
    handler: str = ""
    termination_log: str = ""
    target: str = ""
    node_memory: int = 0


def instance_of(pod: Resource, container: Resource, around: Surroundings) -> InstanceConfig:
    """One container. Raises Unsupported for what this node cannot do."""
    spec = pod["spec"]
    refuse(spec, container)
    defined = defined_by(around.env)
    context = context_of(spec, container)
    command, args = container.get("command"), container.get("args")
    return InstanceConfig(
        name=instance_name(pod, container["name"], around.attempt),
        driver=driver_of(around.handler),
        image=container["image"],
        entrypoint=tuple(expand(word, defined) for word in command) if command else None,
        command=tuple(expand(word, defined) for word in args or ()) if args or command else None,
        env=around.env,
        working_dir=container.get("workingDir", ""),
        user=_user(context),
        groups=_groups(context),
        hostname="" if spec.get("hostNetwork") else hostname_of(pod),
        tty=bool(container.get("tty")),
        open_stdin=bool(container.get("stdin")),
        stdin_once=bool(container.get("stdinOnce")),
        mounts=_mounts(container, around, defined),
        network_mode=f"sandbox:{sandbox_id(pod)}",
        pid_mode="host" if spec.get("hostPID") else f"instance:{around.target}" if around.target else "",
        ipc_mode="host" if spec.get("hostIPC") else "",
        **_dns(spec),
        extra_hosts=_extra_hosts(spec),
        resources=resources_of(container),
        oom_score_adj=oom_score_of(spec, container, around.node_memory),
        security=security_of(context),
        stop_signal=(container.get("lifecycle") or {}).get("stopSignal", ""),
        labels=labels_of(pod, container["name"], around.attempt),
        annotations=dict(pod["metadata"].get("annotations") or {}),
        owner="kube",
    )


def context_of(spec: Resource, container: Resource) -> Resource:
    """A container's security context: the pod's with its own on top."""
    return {**(spec.get("securityContext") or {}), **(container.get("securityContext") or {})}


def _dns(spec: Resource) -> dict[str, Any]:
    wish = spec.get("dnsConfig") or {}
    options = [f"{o['name']}:{o['value']}" if o.get("value") else o["name"] for o in wish.get("options") or ()]
    return {
        "dns": tuple(wish.get("nameservers") or ()),
        "dns_search": tuple(wish.get("searches") or ()),
        "dns_options": tuple(options),
    }


def labels_of(pod: Resource, container: str, attempt: int) -> dict[str, str]:
    """How the agent finds its instances again."""
    meta = pod["metadata"]
    return {
        LABEL_POD: meta["name"],
        LABEL_NAMESPACE: meta["namespace"],
        LABEL_UID: meta["uid"],
        LABEL_CONTAINER: container,
        LABEL_ATTEMPT: str(attempt),
    }


def refuse(spec: Resource, container: Resource) -> None:
    """Say clearly what would otherwise be done wrongly or not at all. Raises Unsupported."""
    if container.get("volumeDevices"):
        raise Unsupported(f"container {container['name']}: volumeDevices (raw block volumes) are not supported yet")
    if spec.get("hostUsers") is False:
        raise Unsupported("spec.hostUsers=false (a user namespace per pod) is not supported yet")
    if spec.get("shareProcessNamespace"):
        raise Unsupported("spec.shareProcessNamespace=true is not supported yet")
    if (spec.get("os") or {}).get("name", "linux") != "linux":
        raise Unsupported(f"spec.os.name {spec['os']['name']!r} is not supported; this node runs linux")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        for action, field in (("grpc", "mode"), ("httpGet", "protocol")):  # new in 1.37, behind feature gates there
            if ((container.get(probe) or {}).get(action) or {}).get(field):
                raise Unsupported(
                    f"container {container['name']}: {probe}.{action}.{field} is not supported; leave it out"
                )
    profile = (context_of(spec, container).get("seccompProfile") or {}).get("type")
    if profile == "Localhost":
        raise Unsupported("seccompProfile.type Localhost is not supported yet; RuntimeDefault and Unconfined are")


def check_non_root(spec: Resource, container: Resource, image_user: str) -> None:
    """`runAsNonRoot` means that a container must not run as root. Raises Invalid with the kubelet's sentences."""
    context = context_of(spec, container)
    if not context.get("runAsNonRoot"):
        return
    uid = context.get("runAsUser")
    if uid is not None:
        if int(uid) == 0:
            raise Invalid("container's runAsUser breaks non-root policy")
        return
    user = image_user.split(":", 1)[0]
    if not user or (user.isdigit() and int(user) == 0):
        raise Invalid("container has runAsNonRoot and image will run as root")
    if not user.isdigit():
        raise Invalid(
            f"container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root"
        )


def _user(context: Resource) -> str:
    user, group = context.get("runAsUser"), context.get("runAsGroup")
    if user is None:
        return "" if group is None else f"0:{group}"
    return f"{user}" if group is None else f"{user}:{group}"


def _groups(context: Resource) -> tuple[str, ...]:
    groups = [str(group) for group in context.get("supplementalGroups") or ()]
    if context.get("fsGroup") is not None:
        groups.append(str(context["fsGroup"]))
    return tuple(groups)


def security_of(context: Resource) -> Security:
    """A merged security context in the engine's words."""
    capabilities = context.get("capabilities") or {}
    profile = (context.get("seccompProfile") or {}).get("type", "")
    return Security(
        privileged=bool(context.get("privileged")),
        cap_add=tuple(capabilities.get("add") or ()),
        cap_drop=tuple(capabilities.get("drop") or ()),
        no_new_privileges=context.get("allowPrivilegeEscalation") is False,
        seccomp="unconfined" if profile == "Unconfined" else None,
        readonly_rootfs=bool(context.get("readOnlyRootFilesystem")),
        masked_paths=() if context.get("procMount") == "Unmasked" else None,
        readonly_paths=() if context.get("procMount") == "Unmasked" else None,
    )


def resources_of(container: Resource) -> Resources:
    """Requests weigh, limits cap (cgroup rules of the kubelet)."""
    wanted = container.get("resources") or {}
    requests, limits = wanted.get("requests") or {}, wanted.get("limits") or {}
    milli = _milli(requests.get("cpu", limits.get("cpu")))
    limit = _milli(limits.get("cpu"))
    memory = int(parse_quantity(limits["memory"])) if "memory" in limits else None
    return Resources(
        cpu_shares=max(milli * 1024 // 1000, MIN_SHARES) if milli is not None else MIN_SHARES,
        cpu_quota_us=max(limit * CPU_PERIOD_US // 1000, 1000) if limit else None,
        cpu_period_us=CPU_PERIOD_US if limit else None,
        memory_bytes=memory,
        memory_swap_bytes=memory,
    )


def oom_score_of(spec: Resource, container: Resource, node_memory: int) -> int:
    """Who is killed first when memory runs out: best effort, then those over their request. Guaranteed pods would be given a
    negative score, which not every Insula may set; they are left at 0. Source: the kubelet's QoS policy."""
    request = _memory_request(container)
    if request is None:
        others = any(_memory_request(c) is not None or (c.get("resources") or {}) for c in spec.get("containers") or ())
        return BURSTABLE_MOST if others else BEST_EFFORT
    if _is_guaranteed(spec):
        return 0
    score = BEST_EFFORT - (BEST_EFFORT * request) // max(node_memory, 1)
    return min(max(score, BURSTABLE_LEAST), BURSTABLE_MOST)


def _memory_request(container: Resource) -> int | None:
    wanted = container.get("resources") or {}
    found = (wanted.get("requests") or {}).get("memory", (wanted.get("limits") or {}).get("memory"))
    return None if found is None else int(parse_quantity(found))


def _is_guaranteed(spec: Resource) -> bool:
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        wanted = container.get("resources") or {}
        limits = wanted.get("limits") or {}
        requests = {**limits, **(wanted.get("requests") or {})}
        if not {"cpu", "memory"} <= limits.keys():
            return False
        if any(parse_quantity(requests[name]) != parse_quantity(limits[name]) for name in ("cpu", "memory")):
            return False
    return True


def _milli(value: Any) -> int | None:
    return None if value is None else int(-(-(parse_quantity(value) * 1000) // 1))


def defined_by(env: tuple[str, ...]) -> dict[str, str]:
    """NAME=value as a mapping."""
    return dict(item.split("=", 1) for item in env)


def subpath_of(mount: Resource, defined: Mapping[str, str]) -> str:
    """Which part of its volume a mount shows; empty for all of it."""
    return expand(mount["subPathExpr"], defined) if mount.get("subPathExpr") else str(mount.get("subPath", ""))


def _mounts(container: Resource, around: Surroundings, defined: Mapping[str, str]) -> tuple[MountConfig, ...]:
    mounts = [_mount(mount, around, defined) for mount in container.get("volumeMounts") or ()]
    path = container.get("terminationMessagePath") or DEFAULT_TERMINATION_LOG
    if around.termination_log and path not in {mount.target for mount in mounts}:
        mounts.append(MountConfig(kind="bind", source=around.termination_log, target=path))
    return tuple(mounts)


def _mount(mount: Resource, around: Surroundings, defined: Mapping[str, str]) -> MountConfig:
    volume, below = around.mounts[mount["name"]], subpath_of(mount, defined)
    return MountConfig(
        kind=volume.kind,
        source=around.subpaths[mount["name"], below] if below else volume.source,
        target=mount["mountPath"],
        readonly=bool(mount.get("readOnly")) or volume.readonly,
        propagation={"HostToContainer": "rslave", "Bidirectional": "rshared"}.get(
            mount.get("mountPropagation", ""), "rprivate"
        ),
        size_bytes=volume.size_bytes,
    )


def _extra_hosts(spec: Resource) -> tuple[str, ...]:
    return tuple(
        f"{name}:{alias['ip']}" for alias in spec.get("hostAliases") or () for name in alias.get("hostnames") or ()
    )
