"""What can be asked of /dev/kvm without running a guest (kernel: virt/kvm/api). A yes here is not yet a working KVM."""

from __future__ import annotations

import fcntl
import os

from insula.errors import Unavailable

DEVICE = "/dev/kvm"
_GET_API_VERSION = 0xAE00
_API_VERSION = 12  # the only one there is, fixed since Linux 2.6.22


def check_device(path: str = DEVICE) -> None:
    """Open the device and ask its version. Raises Unavailable with the reason."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unavailable(
            f"{path} does not exist",
            hint="enable virtualization in the firmware, or nested virtualization, and load kvm_intel or kvm_amd",
        ) from None
    except OSError as fault:
        raise Unavailable(f"{path} cannot be opened: {fault.strerror}") from fault
    try:
        version = fcntl.ioctl(fd, _GET_API_VERSION)
    except OSError as fault:
        raise Unavailable(f"{path} does not answer: {fault.strerror}") from fault
    finally:
        os.close(fd)
    if version != _API_VERSION:
        raise Unavailable(f"{path} speaks version {version} of its interface, {_API_VERSION} is needed")
