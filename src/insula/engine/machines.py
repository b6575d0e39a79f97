"""Machines: what an instance with `config.machine` gets in place of a root file system and a process."""

from __future__ import annotations

from insula.engine.parts import Parts
from insula.engine.resident import Resident
from insula.errors import Invalid
from insula.images.contract import Image
from insula.model.instance import Disk, DiskConfig, MachineConfig, MachineSpec, Tap
from insula.networks.contract import Endpoint

_CONTAINER_DISK = "/disk"  # where a containerDisk image keeps its disk, see KubeVirt's documentation of containerDisk


async def pin_images(parts: Parts, machine: MachineConfig | None) -> dict[str, str]:
    """The images that hold a machine's disks and kernel: reference to id, as they are now. Raises NotFound."""
    if machine is None:
        return {}
    references = {disk.source.partition("!")[0] for disk in machine.disks if disk.kind == "image"}
    if machine.kernel_image:
        references.add(machine.kernel_image)
    return {reference: (await parts.images.get(reference)).id for reference in sorted(references)}


async def _image(parts: Parts, resident: Resident, reference: str) -> Image:
    """The one that the machine was made with, wherever the name points to now."""
    return await parts.images.get(resident.entry.machine_images.get(reference, reference))


async def make_disks(parts: Parts, resident: Resident) -> tuple[Disk, ...]:
    """Make (or take back) every disk. Raises NotFound (image, file), Invalid (not a disk)."""
    machine = resident.entry.config.machine
    assert machine is not None
    return tuple([await _make_disk(parts, resident, disk) for disk in machine.disks])


async def _make_disk(parts: Parts, resident: Resident, disk: DiskConfig) -> Disk:
    """A containerDisk's file is at the path that the source names after "!", or is the only one below /disk."""
    backing = ""
    if disk.kind == "image":
        reference, _, path = disk.source.partition("!")
        image = await _image(parts, resident, reference)
        backing = await parts.images.file(image, path or _CONTAINER_DISK)
    return await parts.volumes.make_disk(resident.id, disk, backing=backing)


async def machine_spec(parts: Parts, resident: Resident, endpoints: tuple[Endpoint, ...]) -> MachineSpec:
    """The hardware, resolved to files and taps of this host."""
    config = resident.entry.config.machine
    assert config is not None
    kernel, initrd = await _boot_files(parts, resident, config)
    return MachineSpec(
        config=config,
        disks=await make_disks(parts, resident),
        taps=tuple(Tap(name=each.tap, mac=each.mac, model=config.nic_model) for each in endpoints if each.tap),
        kernel=kernel,
        initrd=initrd,
        kernel_args=config.kernel_args,
    )


async def _boot_files(parts: Parts, resident: Resident, config: MachineConfig) -> tuple[str, str]:
    if not config.kernel_image:
        return "", ""
    if not config.kernel_path:
        raise Invalid("a machine that boots a kernel from an image needs kernel_path", field="machine.kernel_path")
    image = await _image(parts, resident, config.kernel_image)
    initrd = await parts.images.file(image, config.initrd_path) if config.initrd_path else ""
    return await parts.images.file(image, config.kernel_path), initrd
