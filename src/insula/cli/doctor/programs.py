"""Helper programs and libraries, and the packages of Debian and Ubuntu that have them."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from insula.cli.doctor.finding import Finding, State
from insula.errors import InsulaError
from insula.host import binfmt, qemu
from insula.host.binfmt import Rule
from insula.host.spawn import ENVIRONMENT

AREA = "programs"
_ELSEWHERE = ":/usr/libexec/podman:/usr/libexec/crio"


def program(*names: str) -> Callable[[], str]:
    """Finds the first of some programs; empty when none is there."""

    def find() -> str:
        paths = (shutil.which(name, path=ENVIRONMENT["PATH"] + _ELSEWHERE) for name in names)
        return next((path for path in paths if path), "")

    return find


def _nftables() -> str:
    try:
        ctypes.CDLL("libnftables.so.1")
    except OSError:
        return program("nft")()
    return "libnftables.so.1"


def _firmware() -> str:
    try:
        return qemu.find_firmware()[0]
    except InsulaError:
        return ""


class Helper(Struct, frozen=True, kw_only=True):
    """One row."""

    name: str
    find: Callable[[], str]
    package: str
    lost: str
    needed: bool = False


HELPERS: tuple[Helper, ...] = (
    Helper(name="runc or crun", find=program("crun", "runc"), package="runc", lost="containers", needed=True),
    Helper(name="conmon", find=program("conmon"), package="conmon", lost="containers", needed=True),
    Helper(
        name="busybox",
        find=program("busybox"),
        package="busybox-static",
        lost="containers: the runtime is tried with it",
        needed=True,
    ),
    Helper(name="nftables", find=_nftables, package="libnftables1", lost="networks", needed=True),
    Helper(name="QEMU", find=program("qemu-system-x86_64"), package="qemu-system-x86", lost="virtual machines"),
    Helper(name="qemu-img", find=program("qemu-img"), package="qemu-utils", lost="disks of virtual machines"),
    Helper(name="UEFI firmware", find=_firmware, package="ovmf", lost="machines that boot by UEFI"),
    Helper(name="modprobe", find=program("modprobe"), package="kmod", lost="loading kernel modules on demand"),
    Helper(name="apt-get", find=program("apt-get"), package="apt", lost="making the demo machine insula/linux"),
    Helper(
        name="docker",
        find=program("docker"),
        package="docker-cli (Debian 13, Ubuntu) or docker.io",
        lost="the usual client of the Docker door; insula itself does not use it",
    ),
    Helper(
        name="kubectl",
        find=program("kubectl"),
        package="kubernetes-client",
        lost="the usual client of the Kubernetes door",
    ),
)


def findings() -> list[Finding]:
    """One line per helper, and one for the rules that call foreign ones. Blocking."""
    return [*(judge(helper, helper.find()) for helper in HELPERS), judge_rules(binfmt.rules(), binfmt.native())]


def judge_rules(rules: Sequence[Rule], native: Sequence[str]) -> Finding:
    """Which other architectures' containers run."""
    foreign = [machine for machine in binfmt.MACHINES if machine.name not in native]
    works = [machine.name for machine in foreign if not binfmt.missing(machine, list(rules))]
    if works:
        return Finding(area=AREA, name="emulation", state=State.OK, found=f"runs containers for {', '.join(works)}")
    return Finding(
        area=AREA,
        name="emulation",
        state=State.LOST,
        found="no rule of binfmt_misc runs foreign programs",
        lost="containers of other processor architectures (docker run --platform)",
        advice="install the package qemu-user-static and run: insula emulation enable",
    )


def judge(helper: Helper, path: str) -> Finding:
    """What being there, or not, means."""
    if path:
        return Finding(area=AREA, name=helper.name, state=State.OK, found=str(Path(path)))
    return Finding(
        area=AREA,
        name=helper.name,
        state=State.MISSING if helper.needed else State.LOST,
        found="not installed",
        lost=helper.lost,
        advice=f"install the package {helper.package}",
    )
