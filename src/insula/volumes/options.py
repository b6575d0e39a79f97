"""The options of the `local` driver: what a volume's folder is mounted from, as `docker volume create -o` says it. Pure.

    type    a kind of file system as mount(8) has it; `none` with o=bind for a folder of the host
    device  what is mounted: a folder, a block device, `tmpfs`, `:/exported/path` of a server
    o       options with commas, as in fstab(5): flags of mount(2), how mounts spread, and what the file system itself takes

Sources: Docker's documentation of `docker volume create`, mount(2), mount(8), nfs(5).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from insula.errors import Invalid
from insula.host.mounts import PROPAGATION

_KNOWN = ("type", "device", "o", "size")
_NFS = frozenset({"nfs", "nfs3", "nfs4"})
_BY_ADDRESS = _NFS | {"cifs"}

# Flags of mount(2) by their names in fstab(5): what is set, what is taken away.
_FLAGS: dict[str, tuple[int, int]] = {
    "defaults": (0, 0),
    "ro": (1, 0), "rw": (0, 1), "nosuid": (2, 0), "suid": (0, 2), "nodev": (4, 0), "dev": (0, 4), "noexec": (8, 0),
    "exec": (0, 8), "sync": (16, 0), "async": (0, 16), "dirsync": (128, 0), "noatime": (1024, 0), "atime": (0, 1024),
    "nodiratime": (2048, 0), "diratime": (0, 2048), "bind": (4096, 0), "rbind": (4096 | 16384, 0),
    "relatime": (1 << 21, 0), "norelatime": (0, 1 << 21), "strictatime": (1 << 24, 0), "nostrictatime": (0, 1 << 24),
}  # fmt: skip


class Plan(Struct, frozen=True, kw_only=True):
    """One mount(2). `host` is the name of a server that must be looked up before."""

    kind: str
    device: str
    flags: int = 0
    data: str = ""
    propagation: str = ""
    host: str = ""

    @property
    def by_server(self) -> bool:
        """Whether it is NFS, which a program of its own mounts best."""
        return self.kind in _NFS


def check(name: str, options: Mapping[str, str]) -> None:
    """Raises Invalid with dockerd's sentences."""
    for option in options:
        if option not in _KNOWN:
            raise Invalid(f'create {name}: invalid option: "{option}"', field="DriverOpts")
    if "size" in options:
        raise Invalid(f"create {name}: quota size requested but no quota support", field="DriverOpts.size")
    for option in ("device", "type") if options else ():
        if not options.get(option):
            raise Invalid(f'create {name}: missing required option: "{option}"', field=f"DriverOpts.{option}")


def plan_of(options: Mapping[str, str]) -> Plan:
    """What is mounted for checked options."""
    flags, propagation, rest = 0, "", []
    for option in filter(None, options.get("o", "").split(",")):
        if option in _FLAGS:
            on, off = _FLAGS[option]
            flags = (flags | on) & ~off
        elif option in PROPAGATION:
            propagation = option
        else:
            rest.append(option)
    kind = options["type"]
    return Plan(
        kind=kind,
        device=options["device"],
        flags=flags,
        data=",".join(rest),
        propagation=propagation,
        host=_server(rest) if kind in _BY_ADDRESS else "",
    )


def _server(rest: list[str]) -> str:
    return next((option.removeprefix("addr=") for option in rest if option.startswith("addr=")), "")


def with_address(plan: Plan, address: str) -> Plan:
    """The plan with the server's address in place of its name."""
    data = ",".join(f"addr={address}" if each.startswith("addr=") else each for each in plan.data.split(","))
    return Plan(
        kind=plan.kind, device=plan.device, flags=plan.flags, data=data, propagation=plan.propagation, host=address
    )


def nfs_arguments(program: str, plan: Plan, target: str) -> list[str]:
    """mount.nfs(8) for a plan: it speaks with the server's portmapper and lock manager, which mount(2) does not."""
    words = [word for word, (on, _) in _FLAGS.items() if on and on & plan.flags == on and on & ~(4096 | 16384)]
    options = [*words, *(each for each in plan.data.split(",") if each and not each.startswith("addr="))]
    version = {"nfs3": ["vers=3"], "nfs4": ["vers=4"]}.get(plan.kind, [])
    host = f"[{plan.host}]" if ":" in plan.host else plan.host
    source = f"{host}{plan.device}" if plan.device.startswith(":") else plan.device
    return [program, source, target, "-o", ",".join([*version, *options]) or "defaults"]
