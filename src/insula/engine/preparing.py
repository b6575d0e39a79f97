"""Making an instance: the ordered steps from a request to an instance that could be started."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from insula import clock
from insula.engine.checks import SANDBOX, check_config, check_log, networks_of
from insula.engine.contract import ResolvedMount
from insula.engine.guests import guest_driver
from insula.engine.lifecycle import Verb
from insula.engine.machines import make_disks, pin_images
from insula.engine.names import check_name, new_id
from insula.engine.parts import Parts
from insula.engine.records import Entry
from insula.engine.resident import Resident
from insula.engine.resolve import clean_path
from insula.engine.steps import Plan, Step, Undo, set_up
from insula.errors import Invalid, NotFound
from insula.host.rootfd import Root, open_in, split
from insula.images.contract import Image, ImageConfig
from insula.model.instance import InstanceConfig, MountConfig
from insula.tasks import in_thread

ANONYMOUS_LABEL = (
    "com.docker.volume.anonymous"  # what Docker marks such volumes with, so that `volume prune` finds them
)


@dataclass
class Preparation:
    """One creation under way."""

    parts: Parts
    resident: Resident
    undo: Undo
    mounts: list[MountConfig] = field(default_factory=list)
    upper: str = ""
    lowers: tuple[str, ...] = ()
    rootfs: str = ""


async def prepare(parts: Parts, config: InstanceConfig) -> Resident:
    """Record the instance and make what can be made before it runs. Raises NotFound (image), Conflict (name), Invalid."""
    driver = parts.driver(config.driver)
    if not config.image and config.machine is None:
        raise Invalid("no image specified", field="image")
    image = await parts.images.get(config.image) if config.image else None
    machine_images = await pin_images(parts, config.machine)
    check_config(config, image.config if image else ImageConfig())
    check_log(config, driver)
    if guest := guest_driver(driver):
        guest.check(config)
    await _check_neighbours(parts, config)
    id = new_id()
    name = check_name(config.name) if config.name else parts.names.unused()
    parts.names.take(name, id)
    mounts = wanted_mounts(config, image)
    entry = Entry(
        id=id,
        config=msgspec.structs.replace(config, name=name),
        created=clock.rfc3339_nano(clock.now()),
        image=image.id if image else "",
        machine_images=machine_images,
        anonymous_volumes=tuple(
            secrets.token_hex(32) for mount in mounts if mount.kind == "volume" and not mount.source
        ),
    )
    resident = Resident(entry, driver, parts.ledger, image)
    parts.residents[id] = resident
    undo = Undo()
    undo.push(_forget, parts, resident)
    try:
        await set_up(PREPARE, Preparation(parts, resident, undo, mounts))
    except BaseException:
        await undo.run()
        raise
    parts.say(resident, "create")
    return resident


async def _check_neighbours(parts: Parts, config: InstanceConfig) -> None:
    for network in networks_of(config):
        await parts.networks.get(network)
    if config.network_mode.startswith(SANDBOX) and config.network_mode.removeprefix(SANDBOX) not in parts.sandboxes:
        id = config.network_mode.removeprefix(SANDBOX)
        raise NotFound(f"No such sandbox: {id}", kind="sandbox", name=id)


def wanted_mounts(config: InstanceConfig, image: Image | None) -> list[MountConfig]:
    """What was asked, plus an anonymous volume for each VOLUME of the image that nothing else covers."""
    targets = {clean_path(mount.target) for mount in config.mounts}
    declared = image.config.volumes if image and config.machine is None else ()
    extra = [
        MountConfig(kind="volume", target=clean_path(target))
        for target in declared
        if target.startswith("/") and clean_path(target) not in targets | {"/"}
    ]
    asked = [msgspec.structs.replace(mount, target=clean_path(mount.target)) for mount in config.mounts]
    return asked + extra


async def _forget(parts: Parts, resident: Resident) -> None:
    parts.residents.pop(resident.id, None)
    await parts.ledger.delete("instances", resident.id)
    parts.names.free(resident.entry.name, resident.id)


# --- the steps --------------------------------------------------------------------------------------------------


async def _record(work: Preparation) -> None:
    """Before anything is made: whatever a crash leaves is named in the ledger."""
    await work.resident.save()


async def _folder(work: Preparation) -> None:
    folder = work.parts.folder(work.resident.id)
    work.undo.push(in_thread, functools.partial(shutil.rmtree, folder, ignore_errors=True))
    await in_thread(folder.mkdir, mode=0o710, parents=True, exist_ok=True)


async def _root(work: Preparation) -> None:
    image, id = work.resident.image, work.resident.id
    if image is None or work.resident.entry.config.machine is not None:
        return
    work.undo.push(work.parts.images.unmount, id, remove=True)
    root = await work.parts.images.mount(image, id, volatile=work.resident.entry.fleeting)
    work.rootfs, work.upper, work.lowers = root.path, root.upper, root.lowers


async def _volumes(work: Preparation) -> None:
    """Named volumes are made where they are missing and stay, whatever becomes of the instance, as with Docker."""
    anonymous = iter(work.resident.entry.anonymous_volumes)
    resolved = []
    for config in work.mounts:
        if config.kind == "volume":
            resolved.append(await _volume(work, config, next(anonymous) if not config.source else ""))
        elif config.kind == "bind":
            resolved.append(ResolvedMount(config=config, source=await in_thread(_bind_source, config)))
        else:
            resolved.append(ResolvedMount(config=config, source=""))
    await work.resident.save(
        Verb.PREPARED, mounts=tuple(resolved), rootfs=work.rootfs, upper=work.upper, lowers=work.lowers
    )


async def _volume(work: Preparation, config: MountConfig, fresh: str) -> ResolvedMount:
    volumes = work.parts.volumes
    volume = await volumes.create(fresh or config.source, labels={ANONYMOUS_LABEL: ""} if fresh else None)
    if fresh:
        work.undo.push(volumes.remove, fresh)
    source = None
    if work.rootfs and not config.no_copy and not config.subpath:
        source = await in_thread(_folder_inside, work.rootfs, config.target)
    if source is None and not config.subpath:
        return ResolvedMount(config=config, source=volume.path, volume=volume.name)
    work.undo.push(volumes.leave, work.resident.id)
    await volumes.take(volume.name, work.resident.id)
    if source is not None:
        await volumes.populate(volume, source)
    path = await in_thread(_subpath, volume.path, config.subpath) if config.subpath else volume.path
    await volumes.leave(work.resident.id)
    return ResolvedMount(config=config, source=path, volume=volume.name)


def _folder_inside(rootfs: str, target: str) -> str | None:
    """The real place of a folder of the image, or None when the image has none there."""
    with Root(rootfs) as root:
        try:
            return str(Path(f"/proc/self/fd/{root.folder(split(target))}").readlink())
        except OSError:
            return None


def _subpath(volume: str, subpath: str) -> str:
    with Root(volume) as root:
        try:
            found = open_in(root.fd, subpath, os.O_PATH)
        except OSError as fault:
            raise NotFound(f"the volume has no folder {subpath!r}: {fault.strerror}") from fault
        try:
            return str(Path(f"/proc/self/fd/{found}").readlink())
        finally:
            os.close(found)


def _bind_source(config: MountConfig) -> str:
    source = Path(config.source)
    if not source.exists():
        if not config.create_source:
            raise Invalid(
                f'invalid mount config for type "bind": bind source path does not exist: {config.source}',
                field="mounts",
            )
        source.mkdir(parents=True, exist_ok=True)
    return config.source


async def _disks(work: Preparation) -> None:
    if work.resident.entry.config.machine is not None:
        work.undo.push(work.parts.volumes.drop_disks, work.resident.id)
        await make_disks(work.parts, work.resident)


PREPARE: Plan[Preparation] = (
    (Step("create.record", _record),),
    (Step("create.folder", _folder), Step("create.root", _root), Step("create.disks", _disks)),
    (Step("create.volumes", _volumes),),
)
