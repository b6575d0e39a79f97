"""Level 2 for container images: each runs in a small machine with a kernel of its own. Docker's word for it is `--runtime vm`.

plan.py      from an instance to its sandbox and to the agent's orders (pure), with sizes.py, checks.py
argv.py      the machine as QEMU's arguments (pure)
files.py     the folder of a machine: what is prepared and kept there
cards.py     how it takes over the network of its namespace
sandboxed/   what runs beside QEMU: the protocol (frames.py), and the relay that stands for the image's process
link.py      our connection to the relay     processes.py  the list of processes inside
driver.py    the contract's verbs, most of them the `oci` driver's for the sandbox

The agent inside is images/machine/agent/agent.c.
"""

from insula.drivers.microvm.driver import MicrovmDriver

DRIVER = MicrovmDriver

__all__ = ["DRIVER", "MicrovmDriver"]
