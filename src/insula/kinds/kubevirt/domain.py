"""The schema of `domain`: the machine as its guest sees it."""

from __future__ import annotations

from insula.kinds.kubevirt.shape import Shape, free, many, quantity, record, switch, text, whole

BUSES = ("virtio", "sata", "scsi", "usb")
_RESOURCES = {
    "type": "object",
    "additionalProperties": quantity("An amount."),
    "description": "Amounts by resource name.",
}

_TARGET = {
    "bus": text("How the guest sees it: virtio, sata, scsi or usb.", one_of=BUSES),
    "readonly": switch("The guest cannot write to it. Defaults to false for a disk, to true for a CD-ROM."),
}
_DISK = record(
    "One disk of the machine; the volume of the same name holds its contents.",
    "name",
    name=text("Name of the disk, and of its volume."),
    disk=record("A disk.", **_TARGET, pciAddress=text("The disk's address on the PCI bus.")),
    lun=record("A disk that passes SCSI commands through.", **_TARGET, reservation=switch("Persistent reservations.")),
    cdrom=record("A CD-ROM.", **_TARGET, tray=text("State of its tray.", one_of=("open", "closed"))),
    bootOrder=whole(
        "Place in the order of boot devices, from 1. Without any, disks boot in the order of the list.", least=1
    ),
    serial=text("Serial number that the guest sees."),
    cache=text("Cache mode: none, writethrough or writeback.", one_of=("none", "writethrough", "writeback")),
    io=text("I/O mode: native, threads or default.", one_of=("native", "threads", "default")),
    blockSize=free("Block sizes that the guest sees."),
    dedicatedIOThread=switch("Give it an I/O thread of its own."),
    shareable=switch("Several machines may have it at once."),
    tag=text("A tag shown to the guest."),
    errorPolicy=text("What happens on a read or write error.", one_of=("stop", "ignore", "report", "enospace")),
)

_INTERFACE = record(
    "One network card; the network of the same name says where it leads.",
    "name",
    name=text("Name of the interface, and of its network."),
    masquerade=record("The machine reaches the pod network. In Insula it has its address on the segment itself."),
    bridge=record("The machine is on the pod network's segment with an address from DHCP."),
    sriov=free("A virtual function of a host's card."),
    passt=free("User-space networking."),
    macvtap=free("Deprecated."),
    slirp=free("Deprecated."),
    binding=free("A network binding plugin."),
    model=text("Model of the card: virtio (default), e1000, e1000e, rtl8139, ne2k_pci or pcnet."),
    macAddress=text("Hardware address, such as de:ad:00:00:be:af. Chosen when absent."),
    ports=many(
        "Ports that the guest serves.",
        record(
            "One port.",
            "port",
            name=text("Name of the port."),
            port=whole("Number of the port.", least=1),
            protocol=text("TCP or UDP.", one_of=("TCP", "UDP")),
        ),
    ),
    bootOrder=whole("Place in the order of boot devices, from 1.", least=1),
    pciAddress=text("The card's address on the PCI bus."),
    dhcpOptions=free("More options for the guest's DHCP client."),
    acpiIndex=whole("Index by which the guest names it.", least=0),
    state=text("up, down or absent.", one_of=("up", "down", "absent")),
    tag=text("A tag shown to the guest."),
)

_DEVICES = record(
    "Disks, network cards and everything else that is plugged in.",
    disks=many("Disks and CD-ROMs.", _DISK, key="name"),
    interfaces=many("Network cards.", _INTERFACE, key="name"),
    autoattachPodInterface=switch("Give it a card on the pod network when no networks are named. Defaults to true."),
    autoattachGraphicsDevice=switch("Give it a screen, reached with VNC. Defaults to true."),
    autoattachSerialConsole=switch("Give it a serial console. Defaults to true."),
    autoattachMemBalloon=switch("Give it a memory balloon. Defaults to true."),
    autoattachInputDevice=switch("Give it an input device."),
    autoattachVSOCK=switch("Give it a VSOCK device."),
    logSerialConsole=switch("Keep what the serial console says in the log. Always done."),
    rng=record("A source of random numbers from the host."),
    tpm=free("A trusted platform module."),
    watchdog=free("A watchdog timer."),
    inputs=many("Input devices.", free("One input device.")),
    sound=free("A sound card."),
    video=free("The graphics card's model."),
    gpus=many("Graphics processors of the host.", free("One of them.")),
    hostDevices=many("Devices of the host.", free("One of them.")),
    filesystems=many("Volumes shared as file systems.", free("One of them.")),
    panicDevices=many("Devices that report a panic of the guest. One is always there.", free("One of them.")),
    networkInterfaceMultiqueue=switch("Several queues per network card."),
    blockMultiQueue=switch("Several queues per disk."),
    disableHotplug=switch("Nothing can be plugged in while it runs."),
    useVirtioTransitional=switch("Virtio devices in their older form."),
    clientPassthrough=free("USB devices of a client."),
    downwardMetrics=free("Metrics of the host shown to the guest."),
)

_CPU = record(
    "Number, topology and model of the CPUs.",
    cores=whole("Cores per socket. Defaults to 1.", least=1),
    sockets=whole("Sockets. Defaults to 1.", least=1),
    threads=whole("Threads per core. Defaults to 1.", least=1),
    maxSockets=whole("Sockets that can be plugged in.", least=1),
    model=text("host-model (default), host-passthrough, or the name of a model."),
    features=many(
        "Single features of the CPU.",
        record(
            "One feature.", "name", name=text("Its name."), policy=text("force, require, optional, disable or forbid.")
        ),
    ),
    dedicatedCpuPlacement=switch("Each CPU on one of the host's alone."),
    isolateEmulatorThread=switch("The emulator on one more CPU of its own."),
    numa=free("Topology of memory nodes."),
    realtime=free("Real-time scheduling."),
)

_FIRMWARE = record(
    "Identity and way of booting.",
    uuid=text("UUID that the guest sees. Made from namespace and name when absent, so that it stays."),
    serial=text("Serial number that the guest sees."),
    bootloader=record(
        "BIOS or UEFI.",
        bios=record("Boot with BIOS, the default.", useSerial=switch("The BIOS writes to the serial line too.")),
        efi=record(
            "Boot with UEFI.",
            secureBoot=switch("Verify what is booted. Defaults to true; needs features.smm.enabled."),
            persistent=switch("Keep UEFI's variables."),
        ),
    ),
    kernelBoot=record(
        "Boot a kernel directly, with no boot loader.",
        kernelArgs=text("The kernel's command line."),
        container=record(
            "The image that holds kernel and initrd.",
            "image",
            image=text("Reference of the image."),
            kernelPath=text("Path of the kernel inside."),
            initrdPath=text("Path of the initrd inside."),
            imagePullPolicy=text("Always, IfNotPresent or Never.", one_of=("Always", "IfNotPresent", "Never")),
            imagePullSecret=text("Secret with the registry's credentials."),
        ),
    ),
    acpi=free("More ACPI tables."),
)

DOMAIN: Shape = record(
    "The machine: CPUs, memory, devices and firmware.",
    "devices",
    cpu=_CPU,
    memory=record(
        "The machine's memory.",
        guest=quantity("Memory that the guest sees. Defaults to resources.requests.memory."),
        maxGuest=quantity("Memory that can be plugged in."),
        hugepages=record("Back it by huge pages.", pageSize=text("2Mi or 1Gi.")),
    ),
    resources=record(
        "What is asked of the host, and the limits.",
        requests=_RESOURCES,
        limits=_RESOURCES,
        overcommitGuestOverhead=switch("Do not count the emulator's own memory."),
    ),
    machine=record("The board.", type=text("q35 (default), pc, microvm, or one of their versions such as pc-q35-7.2.")),
    firmware=_FIRMWARE,
    devices=_DEVICES,
    features=free("Features of board and hypervisor: acpi, apic, smm, hyperv and others."),
    clock=free("Offset and timers of the guest's clock."),
    chassis=record(
        "What the guest's SMBIOS says of the case.",
        manufacturer=text("Manufacturer."),
        version=text("Version."),
        serial=text("Serial number."),
        asset=text("Asset number."),
        sku=text("Order number."),
    ),
    ioThreads=free("I/O threads."),
    ioThreadsPolicy=text("shared, auto or supplementalPool.", one_of=("shared", "auto", "supplementalPool")),
    launchSecurity=free("Encrypted memory."),
    rebootPolicy=text("What a reboot of the guest does."),
)
