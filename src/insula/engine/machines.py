"""Machines: what an instance with `config.machine` gets in place of a root file system and a process."""

from __future__ import annotations

from insula.engine.parts import Parts
from insula.engine.resident import Resident
from insula.errors import Invalid
from insula.images.contract import Image
from insula.model.instance import Disk, DiskConfig, MachineConfig, MachineSpec, Tap
from insula.networks.contract import Endpoint

_CONTAINER_DISK = "/disk"  # where a containerDisk image keeps its disk, see KubeVirt's documentation of containerDisk


async def make_disks(parts: Parts, resident: Resident) -> tuple[Disk, ...]:
    """Make (or take back) every disk. Raises NotFound (image, file), Invalid (not a disk)."""
    machine = resident.entry.config.machine
    assert machine is not None
    return tuple([await _make_disk(parts, resident.id, disk) for disk in machine.disks])


async def _make_disk(parts: Parts, owner: str, disk: DiskConfig) -> Disk:
    backing = ""
    if disk.kind == "image":
        reference, _, path = disk.source.partition("!")
        image = await parts.images.get(reference)
        backing = await container_disk(parts, image, path)
    return await parts.volumes.make_disk(owner, disk, backing=backing)


async def container_disk(parts: Parts, image: Image, path: str) -> str:
    """The disk file in a containerDisk image: at `path`, or the only file below /disk."""
    return await parts.images.file(image, path or _CONTAINER_DISK)


async def machine_spec(parts: Parts, resident: Resident, endpoints: tuple[Endpoint, ...]) -> MachineSpec:
    """The hardware, resolved to files and taps of this host."""
    config = resident.entry.config.machine
    assert config is not None
    kernel, initrd = await _boot_files(parts, config)
    return MachineSpec(
        config=config,
        disks=await make_disks(parts, resident),
        taps=tuple(Tap(name=each.tap, mac=each.mac, model=config.nic_model) for each in endpoints if each.tap),
        kernel=kernel,
        initrd=initrd,
        kernel_args=config.kernel_args,
    )


async def _boot_files(parts: Parts, config: MachineConfig) -> tuple[str, str]:
    if not config.kernel_image:
        return "", ""
    if not config.kernel_path:
        raise Invalid("a machine that boots a kernel from an image needs kernel_path", field="machine.kernel_path")
    image = await parts.images.get(config.kernel_image)
    initrd = await parts.images.file(image, config.initrd_path) if config.initrd_path else ""
    return await parts.images.file(image, config.kernel_path), initrd
