"""Linux capabilities by name, and which of them this host can give: capabilities(7), linux/capability.h."""

from __future__ import annotations

from pathlib import Path

_IN_ORDER_OF_BITS = """
CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID
CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK
CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN
CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE
CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND
CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE
"""
NAMES: tuple[str, ...] = tuple(_IN_ORDER_OF_BITS.split())


def parse_bounding(status: str) -> tuple[str, ...]:
    """The bounding set in a text of proc_pid_status(5), in the kernel's order."""
    for line in status.splitlines():
        if line.startswith("CapBnd:"):
            mask = int(line.split()[1], 16)
            return tuple(name for bit, name in enumerate(NAMES) if mask >> bit & 1)
    return ()


def bounding() -> tuple[str, ...]:
    """What this process, and so anything that it starts, can ever have."""
    return parse_bounding(Path("/proc/self/status").read_text())


def canonical(name: str) -> str:
    """`net_admin`, `NET_ADMIN` and `CAP_NET_ADMIN` are the same; `ALL` stays."""
    upper = name.upper()
    return upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
