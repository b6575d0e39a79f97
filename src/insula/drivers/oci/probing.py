"""Which runtime works here: found out by running a container with it.

What was found holds until this host boots again or one of the programs changes; it is kept in a file beside the runtimes' state,
so that a restart of Insula need not try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from insula.drivers.driver import Exit, Handle, Probe
from insula.drivers.oci import runtime as runtimes
from insula.drivers.oci.runtime import Runtime
from insula.errors import InsulaError
from insula.host import cgroups, conmon, pidfd
from insula.host.cgroups import Group
from insula.model.instance import InstanceSpec, Mount, Process
from insula.tasks import in_thread

DEADLINE_S = 20.0
NEEDED = {"conmon": "conmon", "busybox": "busybox-static"}  # program to the package that brings it


class Trial(Protocol):
    """The part of a driver that a probe uses."""

    def adopt(self, runtime: Runtime) -> None:
        """Use this runtime."""

    async def create(self, spec: InstanceSpec) -> Handle:
        """As in the driver contract."""
        ...

    async def start(self, handle: Handle) -> int:
        """As in the driver contract."""
        ...

    async def wait(self, handle: Handle) -> Exit:
        """As in the driver contract."""
        ...

    async def delete(self, handle: Handle) -> None:
        """As in the driver contract."""
        ...


class Found(Struct, frozen=True):
    """A runtime that works, and the state of the host for which that holds."""

    key: str
    probe: Probe
    runtime: Runtime


class Maker(Protocol):
    """Makes a driver for a trial."""

    def __call__(self, runtime_dir: Path, *, cgroup_parent: str) -> Trial: ...


async def probe(runtime_dir: Path, forced: str | None, make: Maker) -> tuple[Probe, Runtime | None]:
    """The runtime that was found to work before, while it holds; else try them in the order of preference. The notes say what
    failed and what to install."""
    await in_thread(_sweep, runtime_dir)
    key = await in_thread(_key, forced)
    if found := await in_thread(_remembered, runtime_dir, key):
        return found.probe, found.runtime
    tried, chosen = await _try_all(runtime_dir, forced, make)
    if chosen is not None:
        await in_thread(_remember, runtime_dir, Found(key, tried, chosen))
    return tried, chosen


def _key(forced: str | None) -> str:
    """What the answer depends on: this boot, the kernel and the programs."""
    words = [pidfd.boot_id(), os.uname().release, *_cgroup_facts().values(), forced or ""]
    for name in (*NEEDED, *((forced,) if forced else runtimes.PREFERRED)):
        if path := runtimes.find(name):
            status = Path(path).stat()
            words.append(f"{path} {status.st_mtime_ns} {status.st_size}")
    return " ".join(words)


def _file(runtime_dir: Path) -> Path:
    return runtime_dir / "runtime.json"


def _remembered(runtime_dir: Path, key: str) -> Found | None:
    try:
        found = msgspec.json.decode(_file(runtime_dir).read_bytes(), type=Found)
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.key == key else None


def _remember(runtime_dir: Path, found: Found) -> None:
    with contextlib.suppress(OSError):  # a full disk: it is tried again the next time
        fresh = _file(runtime_dir).with_suffix(f".{os.getpid()}.new")
        fresh.write_bytes(msgspec.json.encode(found))
        fresh.replace(_file(runtime_dir))


async def _try_all(runtime_dir: Path, forced: str | None, make: Maker) -> tuple[Probe, Runtime | None]:
    notes = [
        f"{name} is not installed (package {package})" for name, package in NEEDED.items() if not runtimes.find(name)
    ]
    if notes:
        return Probe(available=False, notes=tuple(notes)), None
    for name in (forced,) if forced else runtimes.PREFERRED:
        path = runtimes.find(name)
        if not path:
            notes.append(f"{name} is not installed")
            continue
        root = str(runtime_dir / Path(name).name)
        candidate = Runtime(name=Path(name).name, path=path, root=root, conmon=runtimes.find("conmon"))
        version = await runtimes.version(path)
        if complaint := await _try(candidate, runtime_dir, make):
            notes.append(f"{version or name} does not run containers here: {complaint}")
            continue
        facts = {"runtime": candidate.name, "runtime_path": path, **_cgroup_facts()}
        return Probe(available=True, version=version, notes=tuple(notes), facts=facts), candidate
    return Probe(available=False, notes=tuple(notes)), None


def _cgroup_facts() -> dict[str, str]:
    layout = cgroups.detect()
    return {"cgroups": "v1 (hybrid)" if layout.hybrid else f"v{layout.version}"}


async def _try(candidate: Runtime, runtime_dir: Path, make: Maker) -> str:
    """Run `true` in a container of busybox. Returns a complaint, empty when it went well."""
    id = secrets.token_hex(32)
    folder = runtime_dir / f"probe-{id[:12]}"
    parent = f"insula-probe-{id[:12]}"
    trial = make(runtime_dir, cgroup_parent=parent)
    trial.adopt(candidate)
    handle: Handle | None = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            instance = await in_thread(_instance, id, folder)
            handle = await trial.create(instance)
            await trial.start(handle)
            done = await trial.wait(handle)
            return "" if done.code == 0 else f"it ended with code {done.code}"
    except TimeoutError:
        return f"no answer within {DEADLINE_S:g} s"
    except InsulaError as fault:
        return fault.message
    finally:
        if handle:
            with contextlib.suppress(InsulaError):
                await trial.delete(handle)
        await in_thread(_remove, folder, parent)


def _sweep(runtime_dir: Path) -> None:
    """Remove what trials left that were killed in the middle, with their Insula. Others may be trying just now."""
    for folder in runtime_dir.glob("probe-*/"):
        with contextlib.suppress(OSError, InsulaError):
            if time.time() - folder.stat().st_mtime > 2 * DEADLINE_S:
                _remove(folder, f"insula-{folder.name}")


def _remove(folder: Path, parent: str) -> None:
    """All of a trial, also of one that was broken off while it was being created."""
    conmon.end_all(folder / "bundle")
    for state in folder.parent.glob(f"*/{folder.name.removeprefix('probe-')}*"):
        shutil.rmtree(state, ignore_errors=True)  # what the runtime knows of it
    cgroups.remove(Group(layout=cgroups.detect(), path=parent))
    shutil.rmtree(folder, ignore_errors=True)


def _instance(id: str, folder: Path) -> InstanceSpec:
    rootfs = folder / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    (rootfs / "bin" / "busybox").touch()  # a bind mount, for nothing can be executed from a /run that is mounted noexec
    program = Mount(target="/bin/busybox", kind="bind", source=runtimes.find("busybox"), options=("bind", "ro"))
    process = Process(args=("/bin/busybox", "true"), env=("PATH=/bin",))
    return InstanceSpec(
        id=id,
        name="probe",
        directory=str(folder),
        log_path="",
        rootfs=str(rootfs),
        process=process,
        mounts=(program,),
    )
