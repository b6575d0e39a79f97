"""Golden tests of what a driver is told: merged as the Docker Engine merges."""

from __future__ import annotations

import pytest

from insula.engine.contract import ResolvedMount
from insula.engine.resolve import (
    DEFAULT_PATH,
    Surroundings,
    arguments,
    environment,
    exec_process,
    hostname_of,
    merge_resources,
    mounts_of,
    resolve,
    stop_signal_of,
    working_dir,
)
from insula.engine.users import Accounts, User
from insula.errors import Invalid
from insula.images.contract import ImageConfig
from insula.model.instance import InstanceConfig, MountConfig, Process, Resources

IMAGE = ImageConfig(entrypoint=("/entry",), command=("serve", "now"), env=("PATH=/image", "A=1", "B=2"))


@pytest.mark.parametrize(
    ("entrypoint", "command", "expected"),
    [
        (None, None, ("/entry", "serve", "now")),
        (None, ("other",), ("/entry", "other")),
        (("/mine",), None, ("/mine",)),
        (("/mine",), ("x",), ("/mine", "x")),
        (("",), ("x",), ("x",)),
        ((), None, ("serve", "now")),
    ],
)
def test_entrypoint_and_command(entrypoint, command, expected) -> None:
    config = InstanceConfig(name="x", entrypoint=entrypoint, command=command)
    assert arguments(config, IMAGE) == expected


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(Invalid, match="no command specified"):
        arguments(InstanceConfig(name="x"), ImageConfig())
    with pytest.raises(Invalid, match="no command specified"):
        arguments(InstanceConfig(name="x", entrypoint=("",)), IMAGE)


def test_environment_defaults_then_user_then_image() -> None:
    assert environment((), (), hostname="h", tty=True, home="/root") == (
        f"PATH={DEFAULT_PATH}",
        "HOSTNAME=h",
        "TERM=xterm",
        "HOME=/root",
    )
    merged = environment(("B=9", "C=3"), IMAGE.env, hostname="h", tty=False, home="/h")
    assert merged == ("PATH=/image", "HOSTNAME=h", "B=9", "C=3", "A=1", "HOME=/h")
    assert "PATH" not in {
        entry.partition("=")[0] for entry in environment(("PATH",), (), hostname="", tty=False, home="/")
    }
    assert "HOME=/x" in environment(("HOME=/x",), (), hostname="", tty=False, home="/root")


def test_working_dir() -> None:
    assert working_dir("") == "/"
    assert working_dir("/a//b/../c") == "/a/c"
    with pytest.raises(Invalid, match="needs to be an absolute path"):
        working_dir("a")


def test_an_exec_inherits_and_overrides() -> None:
    first = Process(args=("sh",), env=("PATH=/p", "HOME=/root", "A=1"), cwd="/w", uid=1, gid=2, groups=(2,))
    same = exec_process(Process(args=("id",), cwd=""), first=first, home="/root", user=None)
    assert (same.env, same.cwd, same.uid, same.gid, same.groups) == (first.env, "/w", 1, 2, (2,))
    other = exec_process(
        Process(args=("id",), cwd="/x", tty=True),
        first=first,
        home="/root",
        user=User(5, 6, (6,), "/five"),
        env=("A=2", "PATH"),
    )
    assert other.env == ("HOME=/five", "A=2", "TERM=xterm")
    assert (other.cwd, other.uid, other.gid) == ("/x", 5, 6)


def test_mounts_are_ordered_and_the_users_win() -> None:
    asked = (
        ResolvedMount(config=MountConfig(kind="bind", target="/a/b", source="/h", readonly=True), source="/h"),
        ResolvedMount(config=MountConfig(kind="volume", target="/a", source="v"), source="/volumes/v", volume="v"),
        ResolvedMount(config=MountConfig(kind="tmpfs", target="/run", size_bytes=4096, mode=0o1777), source=""),
        ResolvedMount(config=MountConfig(kind="tmpfs", target="/dev/shm", options=("exec",)), source=""),
    )
    around = Surroundings(id="i", directory="/d", log_path="/l", mounts=asked, host_files={"/etc/hosts": "/f/hosts"})
    mounts = mounts_of(InstanceConfig(name="x"), around)
    assert [mount.target for mount in mounts] == ["/a", "/run", "/a/b", "/dev/shm", "/etc/hosts"]
    by_target = {mount.target: mount for mount in mounts}
    assert by_target["/a/b"].options == ("rbind", "rprivate", "rro")
    assert by_target["/run"].options == ("noexec", "nosuid", "nodev", "size=4096", "mode=1777")
    assert by_target["/dev/shm"].options == ("exec", "nosuid", "nodev")
    assert by_target["/a"].source == "/volumes/v"


def test_a_whole_spec() -> None:
    config = InstanceConfig(
        name="web", command=("run",), user="app", hostname="h", resources=Resources(memory_bytes=1 << 24)
    )
    around = Surroundings(
        id="i" * 64,
        directory="/d",
        log_path="/l",
        rootfs="/r",
        image=IMAGE,
        accounts=Accounts("app:x:7:8::/home/app:/bin/sh\n", "app:x:8:\nextra:x:9:app\n"),
        hostname="h",
        netns="/ns",
        cgroup="insula-test",
    )
    spec = resolve(config, around)
    assert spec.process is not None
    assert spec.process.args == ("/entry", "run")
    assert (spec.process.uid, spec.process.gid, spec.process.groups) == (7, 8, (8, 9))
    assert "HOME=/home/app" in spec.process.env
    assert (spec.netns, spec.hostname, spec.cgroup_parent, spec.rootfs) == ("/ns", "h", "insula-test", "/r")
    assert spec.resources.memory_bytes == 1 << 24


def test_hostname_and_stop_signal() -> None:
    assert hostname_of(InstanceConfig(name="x"), "abcdef0123456789", host="node") == "abcdef012345"
    assert hostname_of(InstanceConfig(name="x", network_mode="host"), "a" * 64, host="node") == "node"
    assert hostname_of(InstanceConfig(name="x", hostname="h"), "a" * 64, host="node") == "h"
    assert stop_signal_of(InstanceConfig(name="x"), ImageConfig(stop_signal="SIGINT")) == "SIGINT"
    assert stop_signal_of(InstanceConfig(name="x"), ImageConfig()) == "SIGTERM"


def test_an_update_keeps_what_it_does_not_name() -> None:
    old = Resources(memory_bytes=1, cpu_shares=2)
    assert merge_resources(old, Resources(memory_bytes=9)) == Resources(memory_bytes=9, cpu_shares=2)
