"""A small machine with pure cgroup version 2, in which tests of this repository run: for hosts that have another layout.

The kernel and its modules are the demo machine's. Its root is an ext4 disk with copies of what the tests need, at the same
paths as here: the interpreter and its library, some distributions, the container programs, and this repository's sources.
What the guest says comes over its serial line; it ends by itself, with the exit code of what ran as its last words.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from insula.errors import DeadlineExceeded
from insula.host import qemu, spawn
from insula.images import demo
from insula.images.machine import MachineFiles, cpio
from insula.images.machine.initramfs import compress

REPOSITORY = Path(__file__).parents[2]
DISTRIBUTIONS = (
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
    "msgspec",
    "qemu.qmp",
    "typing_extensions",
)
PROGRAMS = ("runc", "crun", "conmon", "tini-static")
SOURCES = (
    "src",
    "tests/owned.py",
    "tests/contract",
    "tests/host/vm_support.py",
    "tests/host/test_cgroups_kernel.py",
    "pyproject.toml",
)
DISK_MIB = 512
_LAST_WORDS = re.compile(r"guest: ended with (\d+)\r?\n")

_FIRST = """#!/bin/busybox sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
modprobe virtio_pci
modprobe virtio_blk
mount -t ext4 /dev/vda /mnt
exec switch_root /mnt /init
"""

_INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
export PYTHONPATH=/packages PYTHONDONTWRITEBYTECODE=1
cd /repository
{commands}
echo "guest: ended with $?"
sync
poweroff -f
"""


def build_disk(folder: Path, commands: str) -> Path:
    """An ext4 disk whose init runs the shell `commands`. About 3 s. Raises CalledProcessError."""
    tree, disk = folder / "tree", folder / "root.img"
    for name in ("dev", "proc", "sys", "tmp", "run", "root", "etc", "var/tmp", "mnt"):
        (tree / name).mkdir(parents=True)
    _put_program(tree, demo.find_busybox(), "bin/busybox")
    for program in filter(None, map(shutil.which, PROGRAMS)):
        _put_program(tree, program, f"usr/bin/{Path(program).name}")
    _put_python(tree)
    _put_distributions(tree / "packages")
    _put_needs_of_modules(tree)
    for source in SOURCES:
        _put_source(REPOSITORY / source, tree / "repository" / source)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tree / "init").write_text(_INIT.format(commands=commands))
    (tree / "init").chmod(0o755)
    disk.touch()
    os.truncate(disk, DISK_MIB << 20)
    argv = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(tree), str(disk)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    shutil.rmtree(tree)
    return disk


def _put_source(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _put_program(tree: Path, program: str, target: str) -> None:
    _put(tree, Path(program).resolve(), target)
    for library in _libraries([program]):
        _put(tree, library)


def _put(tree: Path, source: Path, target: str = "") -> None:
    place = tree / (target or str(source).lstrip("/"))
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, place)


def _libraries(programs: Iterable[str]) -> Iterator[Path]:
    """The shared libraries and the loader that ldd(1) names; none for static programs."""
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, timeout=60, check=False)
    return map(Path, sorted(set(re.findall(r"(/\S+) \(0x", done.stdout))))


def _put_python(tree: Path) -> None:
    """The interpreter under its own path, for it finds its library from there."""
    python, library = Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib"))
    _put_program(tree, str(python), str(python).lstrip("/"))
    (tree / "bin/python3").symlink_to(python)
    absent = (
        "site-packages",
        "dist-packages",
        "test",
        "idlelib",
        "tkinter",
        "turtledemo",
        "ensurepip",
        "lib2to3",
        "config-*",
    )
    shutil.copytree(library, tree / str(library).lstrip("/"), ignore=shutil.ignore_patterns(*absent), symlinks=False)


def _put_distributions(target: Path) -> None:
    for name in DISTRIBUTIONS:
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts and Path(file.locate()).is_file():
                _put(target, Path(file.locate()), str(file))


def _put_needs_of_modules(tree: Path) -> None:
    """What the extension modules put so far are linked with."""
    for library in _libraries(str(path) for path in tree.rglob("*.so")):
        _put(tree, library)


def first_init(machine: MachineFiles, target: Path) -> Path:
    """The demo machine's initramfs with one file more, which goes on to the disk. Linux takes archives one after another."""
    more = cpio.archive([cpio.file("first", _FIRST.encode(), 0o755)])
    target.write_bytes(machine.initrd.read_bytes() + compress(more))
    return target


def arguments(kernel: Path, initrd: Path, disk: Path, serial: Path) -> list[str]:
    """QEMU's command: an emulated machine on the fastest terms, with nothing in it but the disk. Pure."""
    words = "console=ttyS0 quiet rdinit=/first panic=-1 mitigations=off cgroup_no_v1=all"
    return [
        qemu.find(),
        *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{serial}"),
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", words),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
    ]


async def run(commands: str, machine: MachineFiles, folder: Path, *, deadline_s: float) -> tuple[int, str]:
    """Run a shell script in the repository inside such a machine: its exit code, and all that the machine said. Raises
    DeadlineExceeded."""
    disk = await asyncio.to_thread(build_disk, folder, commands)
    initrd = await asyncio.to_thread(first_init, machine, folder / "initrd")
    serial = folder / "serial.log"
    try:
        await spawn.run(arguments(machine.kernel, initrd, disk, serial), deadline_s=deadline_s)
    except DeadlineExceeded as fault:
        raise DeadlineExceeded(f"{fault}\n{serial.read_text(errors='replace')}") from fault
    said = serial.read_text(errors="replace")
    ended = _LAST_WORDS.search(said)
    return int(ended.group(1)) if ended else -1, said
