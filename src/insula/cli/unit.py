"""The systemd unit that runs Insula: its text, pure, and putting it in place.

What is not in it matters as much: every sandboxing option of systemd.exec(5) either gives the daemon a mount namespace of its
own, and then the mounts of containers would vanish with each restart, or is a seccomp filter or a flag that all containers
would inherit. Containers and machines are confined by their own profiles instead.
"""

from __future__ import annotations

import grp
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from insula.cli.paths import Paths
from insula.errors import HostFault

SYSTEMD = Path("/run/systemd/system")


def text(paths: Paths, command: list[str]) -> str:
    """The unit file. `command` starts the `insula` command."""
    root = ["--root", paths.root] if paths.root else []
    start = shlex.join([*command, *root, "up"]).replace("%", "%%")
    return f"""\
[Unit]
Description=Insula: containers, virtual machines and a Kubernetes API{f" below {paths.root}" if paths.root else ""}
After=network-online.target nftables.service firewalld.service
Wants=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={start}
Environment=INSULA_UNIT={paths.unit.name}
Environment=MALLOC_ARENA_MAX=2
# Only the daemon is stopped and started again: containers and machines go on, and the next daemon takes them back.
KillMode=process
Restart=always
RestartSec=1
TimeoutStartSec=120
TimeoutStopSec=70
# The control groups of what runs are Insula's own business.
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
OOMScoreAdjust=-500
# No ProtectSystem=, PrivateTmp= and the like: a mount namespace of its own would take the mounts of containers along at
# each restart. No SystemCallFilter=, NoNewPrivileges= and the like: containers would inherit them.

[Install]
WantedBy=multi-user.target
"""


def command() -> list[str]:
    """How this very installation is started: its script, else its interpreter."""
    script = Path(sys.executable).parent / "insula"
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-m", "insula.cli"]


def write(paths: Paths) -> bool:
    """Put the unit in place. Says whether anything changed."""
    wanted = text(paths, command())
    if paths.unit.exists() and paths.unit.read_text() == wanted:
        return False
    paths.unit.parent.mkdir(parents=True, exist_ok=True)
    fresh = paths.unit.with_suffix(f".{os.getpid()}")
    fresh.write_text(wanted)
    fresh.chmod(0o644)
    fresh.rename(paths.unit)
    return True


def add_group(name: str) -> bool:
    """Make the system group. Says whether it was missing. Raises HostFault."""
    try:
        grp.getgrnam(name)
    except KeyError:
        _run(["groupadd", "--system", name])
        return True
    return False


def runs_systemd() -> bool:
    """sd_booted(3)."""
    return SYSTEMD.is_dir() and shutil.which("systemctl") is not None


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    except OSError as fault:
        raise HostFault(f"{argv[0]} cannot be started: {fault.strerror}", command=shlex.join(argv)) from fault
    if done.returncode != 0:
        raise HostFault(f"{argv[0]} failed: {done.stderr.strip()}", command=shlex.join(argv), code=done.returncode)
