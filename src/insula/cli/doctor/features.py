"""Features of the kernel: tried, not looked up, on a thread with a mount and a network namespace of its own, so that
whatever a trial makes is gone when the thread ends, and nobody else sees it.

Sources: namespaces(7), unshare(2), the kernel's filesystems/overlayfs.rst and admin-guide/binfmt-misc.rst.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from insula.cli.doctor.finding import UNTRIED, Finding, State, Subject
from insula.errors import InsulaError
from insula.host import mounts, netlink
from insula.host.netlink import Rtnl
from insula.host.nft import Nft

AREA = "kernel"
_NEWNS, _NEWNET = 0x00020000, 0x40000000
_OTHERS = 0x20000000 | 0x04000000 | 0x08000000 | 0x02000000  # pid, uts, ipc, cgroup
_NAT = (
    "add table ip trial; add chain ip trial nat { type nat hook postrouting priority srcnat; }; "
    "add rule ip trial nat ip saddr 10.0.0.0/8 masquerade; "
    "add map ip trial ports { type inet_service : ipv4_addr . inet_service; }"
)


class Feature(Struct, frozen=True, kw_only=True):
    """One row. `trial` is given a scratch folder and the data folder's file system, and raises what the kernel says."""

    name: str
    trial: Callable[[Path, Path], None]
    lost: str
    advice: str
    needed: bool = False


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _namespaces(_: Path, __: Path) -> None:
    _unshare(_OTHERS)


def _overlay(folder: Path, *, volatile: bool = False) -> None:
    layers = [folder / name for name in ("lower", "upper", "work", "merged")]
    for layer in layers:
        layer.mkdir(parents=True)
    lower, upper, work, merged = layers
    (lower / "file").touch()
    mounts.overlay(str(merged), [str(lower)], upper=str(upper), work=str(work), volatile=volatile)
    try:
        (merged / "file").unlink()
    finally:
        mounts.unmount(merged)


def _plain_overlay(_: Path, data: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".insula-doctor-", dir=data) as folder:
        _overlay(Path(folder))


def _volatile_overlay(scratch: Path, _: Path) -> None:
    _overlay(scratch / "volatile", volatile=True)


def _veth(_: Path, __: Path) -> None:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Rtnl() as rtnl:
            macs = {"mac": "02:42:00:00:00:01", "peer_mac": "02:42:00:00:00:02"}
            rtnl.run(netlink.add_veth("trial0", mtu=1500, peer="trial1", peer_netns_fd=own, **macs))
    finally:
        os.close(own)


def _bridge(_: Path, __: Path) -> None:
    with Rtnl() as rtnl:
        rtnl.run(netlink.add_bridge("trial2", mac="02:42:00:00:00:03", mtu=1500))


def _tap(_: Path, __: Path) -> None:
    netlink.add_tap("trial3")


def _nat(_: Path, __: Path) -> None:
    nft = Nft()
    try:
        nft.run(_NAT)
    finally:
        nft.close()


def _mounted(kind: str) -> Callable[[Path, Path], None]:
    def trial(scratch: Path, _: Path) -> None:
        folder = scratch / kind
        folder.mkdir()
        mounts.mount(kind, str(folder), kind)
        mounts.unmount(folder)

    return trial


def _opened(path: str) -> Callable[[Path, Path], None]:
    def trial(_: Path, __: Path) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    return trial


def _seccomp(_: Path, __: Path) -> None:
    Path("/proc/sys/kernel/seccomp/actions_avail").read_text()


def _pidfd(_: Path, __: Path) -> None:
    os.close(os.pidfd_open(os.getpid()))


FEATURES: tuple[Feature, ...] = (
    Feature(
        name="namespaces",
        trial=_namespaces,
        needed=True,
        lost="containers",
        advice="use a kernel with CONFIG_NAMESPACES, and start Insula outside of an unprivileged container",
    ),
    Feature(
        name="overlayfs",
        trial=_plain_overlay,
        needed=True,
        lost="images and containers: the data folder's file system must carry a writable overlay",
        advice="put the data folder on ext4, xfs or btrfs, and load the module: modprobe overlay",
    ),
    Feature(
        name="overlayfs, volatile",
        trial=_volatile_overlay,
        lost="speed: what a container wrote is synced to disk when it ends",
        advice="use Linux 5.10 or newer",
    ),
    Feature(name="veth", trial=_veth, needed=True, lost="networks of containers", advice="modprobe veth"),
    Feature(name="bridge", trial=_bridge, needed=True, lost="networks", advice="modprobe bridge"),
    Feature(
        name="nftables with NAT",
        trial=_nat,
        needed=True,
        lost="published ports, Services and the way out of segments",
        advice="install the package nftables, and load: modprobe -a nf_tables nft_masq nft_nat",
    ),
    Feature(name="TUN/TAP", trial=_tap, lost="networks of machines", advice="modprobe tun"),
    Feature(
        name="seccomp",
        trial=_seccomp,
        lost="the default seccomp profile: containers may call every system call",
        advice="use a kernel with CONFIG_SECCOMP_FILTER",
    ),
    Feature(
        name="pidfd", trial=_pidfd, needed=True, lost="knowing when processes end", advice="use Linux 5.4 or newer"
    ),
    Feature(
        name="binfmt_misc",
        trial=_mounted("binfmt_misc"),
        lost="programs and containers of other processor architectures",
        advice="modprobe binfmt_misc",
    ),
    Feature(
        name="FUSE",
        trial=_opened("/dev/fuse"),
        lost="file systems in user space inside of containers",
        advice="modprobe fuse",
    ),
)


def judge(feature: Feature, complaint: str | None) -> Finding:
    """What a trial's outcome means: no complaint is good, None was not tried."""
    if complaint is None:
        return Finding(area=AREA, name=feature.name, state=State.UNKNOWN, found=UNTRIED)
    if not complaint:
        return Finding(area=AREA, name=feature.name, state=State.OK, found="works")
    return Finding(
        area=AREA,
        name=feature.name,
        state=State.MISSING if feature.needed else State.LOST,
        found=complaint,
        lost=feature.lost,
        advice=feature.advice,
    )


def findings(subject: Subject) -> list[Finding]:
    """One line per feature. Blocking."""
    release = os.uname().release
    first = Finding(area=AREA, name="version", state=State.OK, found=f"Linux {release}")
    complaints = try_all(existing(subject.paths.data)) if subject.root else {}
    return [first, *(judge(feature, complaints.get(feature.name)) for feature in FEATURES)]


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def try_all(data: Path) -> Mapping[str, str]:
    """Complaints by the name of the feature, empty ones for what works. Needs root. Blocking."""
    complaints: dict[str, str] = {}

    def run() -> None:
        try:
            _unshare(_NEWNS | _NEWNET)
            mounts.set_propagation("/", "rprivate")
            mounts.tmpfs(scratch)
        except (InsulaError, OSError) as fault:
            complaints.update({feature.name: _words(fault) for feature in FEATURES})
            return
        for feature in FEATURES:
            complaints[feature.name] = _complaint(feature, Path(scratch), data)

    with tempfile.TemporaryDirectory(prefix="insula-doctor-") as scratch:
        thread = threading.Thread(target=run, name="insula-doctor")
        thread.start()
        thread.join()
    return complaints


def _complaint(feature: Feature, scratch: Path, data: Path) -> str:
    try:
        feature.trial(scratch, data)
    except (InsulaError, OSError) as fault:
        return _words(fault)
    return ""


def _words(fault: BaseException) -> str:
    if isinstance(fault, OSError):
        return f"{fault.strerror}{f': {fault.filename}' if fault.filename else ''}"
    return str(fault).rstrip(".")
