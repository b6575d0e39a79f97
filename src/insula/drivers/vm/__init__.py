"""Level 2, hardware: virtual machines on QEMU with KVM, falling back to emulation where KVM does not run guests.

argv.py      a machine as QEMU's arguments (pure), with launch.py, devices.py
probe.py     which accelerator works here
create.py    from a specification to a stopped QEMU
machine.py   a running machine and how it ends     console.py  its serial line for many viewers
envelope.py  its control group                     stats.py    its counters
driver.py    the contract's verbs
"""

from insula.drivers.vm.driver import VmDriver

DRIVER = VmDriver

__all__ = ["DRIVER", "VmDriver"]
