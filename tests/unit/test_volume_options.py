"""What the options of a volume mean: pure."""

from __future__ import annotations

import pytest

from insula.engine.sources import propagation_fault
from insula.host.mounts import MS_BIND, MS_NOSUID, MS_RDONLY, MS_REC, parse_mountinfo
from insula.volumes.options import Plan, nfs_arguments, plan_of, with_address


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ({"type": "none", "device": "/srv", "o": "bind"}, Plan(kind="none", device="/srv", flags=MS_BIND)),
        (
            {"type": "none", "device": "/srv", "o": "rbind,ro,rslave"},
            Plan(kind="none", device="/srv", flags=MS_BIND | MS_REC | MS_RDONLY, propagation="rslave"),
        ),
        ({"type": "tmpfs", "device": "tmpfs"}, Plan(kind="tmpfs", device="tmpfs")),
        (
            {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,,nosuid,uid=5,ro,rw"},
            Plan(kind="tmpfs", device="tmpfs", flags=MS_NOSUID, data="size=1m,uid=5"),
        ),
        ({"type": "ext4", "device": "/dev/sdb1"}, Plan(kind="ext4", device="/dev/sdb1")),
        (
            {"type": "nfs", "device": ":/x", "o": "addr=nas,rw,nolock"},
            Plan(kind="nfs", device=":/x", data="addr=nas,nolock", host="nas"),
        ),
        (
            {"type": "cifs", "device": "//nas/x", "o": "addr=nas,user=u"},
            Plan(kind="cifs", device="//nas/x", data="addr=nas,user=u", host="nas"),
        ),
        ({"type": "tmpfs", "device": "t", "o": "addr=x"}, Plan(kind="tmpfs", device="t", data="addr=x")),
    ],
)
def test_plans(options: dict[str, str], plan: Plan) -> None:
    assert plan_of(options) == plan


def test_the_command_for_nfs() -> None:
    plan = plan_of({"type": "nfs4", "device": ":/x", "o": "addr=192.0.2.7,ro,soft,timeo=50"})
    assert nfs_arguments("/sbin/mount.nfs", plan, "/v") == [
        "/sbin/mount.nfs", "192.0.2.7:/x", "/v", "-o", "vers=4,ro,soft,timeo=50",
    ]  # fmt: skip
    six = with_address(plan_of({"type": "nfs", "device": ":/x", "o": "addr=nas"}), "2001:db8::7")
    assert (six.data, six.host) == ("addr=2001:db8::7", "2001:db8::7")
    assert nfs_arguments("mount.nfs", six, "/v") == ["mount.nfs", "[2001:db8::7]:/x", "/v", "-o", "defaults"]
    named = plan_of({"type": "nfs", "device": "nas:/x"})
    assert nfs_arguments("mount.nfs", named, "/v")[1] == "nas:/x"


POINTS = parse_mountinfo(
    "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "2 1 8:2 / /shared rw shared:1 - ext4 /dev/sda2 rw\n"
    "3 1 8:3 / /slave rw master:1 - ext4 /dev/sda3 rw\n"
)


@pytest.mark.parametrize(
    ("source", "propagation", "sentence"),
    [
        ("/tmp", "rslave", "path /tmp is mounted on / but it is not a shared or slave mount"),
        ("/tmp", "shared", "path /tmp is mounted on / but it is not a shared mount"),
        ("/shared/x", "rshared", ""),
        ("/shared", "slave", ""),
        ("/slave/x", "rslave", ""),
        ("/slave/x", "shared", "path /slave/x is mounted on /slave but it is not a shared mount"),
        ("/sharedness", "shared", "path /sharedness is mounted on / but it is not a shared mount"),
    ],
)
def test_how_mounts_spread(source: str, propagation: str, sentence: str) -> None:
    assert propagation_fault(source, propagation, POINTS) == sentence
