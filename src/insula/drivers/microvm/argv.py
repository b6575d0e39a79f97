"""A machine for a container image as QEMU's argument list: pure, with golden tests. What is decided here, and why:

- With KVM it is QEMU's `microvm`: no PCI, no firmware tables, devices on memory-mapped registers. Emulated it is a `q35`,
  because a microvm without KVM's clock measures time by the PIT and hangs on a busy host. Devices are the same, over PCI.
- Memory is one shared memfd, for virtiofsd reads and writes the machine's buffers itself.
- One virtio-serial port carries everything between the agent inside and the relay (sandboxed/frames.py).
- QEMU runs in a container that holds nothing else, and there as a user of its own, who may start nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from insula.drivers.vm.devices import json_argument
from insula.drivers.vm.launch import Accelerator

FOLDER = "/run/insula"  # the machine's folder of the host, inside of the sandbox
KERNEL, INITRD = "/boot/kernel", "/boot/initrd"
_TCG_CACHE_MIB = 64
_QUICK = (
    # say nothing, end where nobody could help; the agent asks for the rest
    "quiet loglevel=1 panic=-1 reboot=t",
    # look for nothing that is not there
    "8250.nr_uarts=0 i8042.noaux i8042.nokbd i8042.dumbkbd i8042.nopnp pci=lastbus=0 cryptomgr.notests",
    # trust the clock and the random numbers of the host
    "tsc=reliable no_timer_check random.trust_cpu=on rcupdate.rcu_expedited=1",
)


class Card(Struct, frozen=True, kw_only=True):
    """A network card: the tap in the sandbox's namespace, and the address that the machine takes over."""

    tap: str
    mac: str


class Machine(Struct, frozen=True, kw_only=True):
    """The hardware. `uid` is QEMU's own user; `port_fd` its end of the agent's port."""

    binary: str
    version: tuple[int, int]
    accelerator: Accelerator
    memory_mib: int
    cpus: int
    uid: int
    port_fd: int


def qemu_arguments(machine: Machine, cards: Sequence[Card]) -> list[str]:
    """The whole command."""
    size = f"{machine.memory_mib}M"
    user = f"{machine.uid}:{machine.uid}"
    return [
        *(machine.binary, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny"),
        *(["-run-with", f"user={user}"] if machine.version >= (9, 1) else ["-runas", user]),
        *_board(machine),
        *("-m", size, "-object", f"memory-backend-memfd,id=memory,size={size},share=on"),
        *("-smp", f"{machine.cpus},sockets=1,cores={machine.cpus},threads=1"),
        *("-kernel", KERNEL, "-initrd", INITRD, "-append", " ".join(_QUICK)),
        *("-chardev", f"socket,id=share,path={FOLDER}/share", "-chardev", f"socket,id=port,fd={machine.port_fd}"),
        *json_argument("-device", _device(machine, "vhost-user-fs", chardev="share", tag="share")),
        *json_argument("-device", _device(machine, "virtio-serial", id="serial", max_ports=2)),
        *json_argument("-device", {"driver": "virtserialport", "bus": "serial.0", "chardev": "port", "nr": 1}),
        *(word for number, card in enumerate(cards) for word in _card(machine, number, card)),
    ]


def _board(machine: Machine) -> list[str]:
    if machine.accelerator == "kvm":
        board = "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=off,auto-kernel-cmdline=on,memory-backend=memory"
        return ["-machine", board, "-accel", "kvm", "-cpu", "host", "-global", "virtio-mmio.force-legacy=false"]
    board = "q35,hpet=off,vmport=off,smbus=off,sata=off,usb=off,memory-backend=memory"
    return ["-machine", board, "-accel", f"tcg,thread=multi,tb-size={_TCG_CACHE_MIB}", "-cpu", "max,la57=off"]


def _device(machine: Machine, kind: str, **settings: object) -> dict[str, object]:
    """A virtio device on whichever bus the board has."""
    return {"driver": f"{kind}-{'device' if machine.accelerator == 'kvm' else 'pci'}", **settings}


def _card(machine: Machine, number: int, card: Card) -> list[str]:
    backend = {"type": "tap", "id": f"net{number}", "ifname": card.tap, "script": "no", "downscript": "no"}
    device = _device(machine, "virtio-net", netdev=f"net{number}", mac=card.mac)
    if machine.accelerator != "kvm":
        device |= {"romfile": ""}
    return [*json_argument("-netdev", backend), *json_argument("-device", device)]
