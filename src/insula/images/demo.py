"""The demo image `insula/busybox`: the distribution's static busybox with its applets, made without any network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from insula.errors import Unavailable
from insula.images.build import FileEntry

NAME = "insula/busybox:latest"
SHORT_NAME = "busybox:latest"
CONFIG = {"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}

_USERS = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
sync:x:4:100:sync:/bin:/bin/sync
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUPS = """\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
kmem:x:9:
wheel:x:10:root
www-data:x:33:
utmp:x:43:
staff:x:50:
users:x:100:
nobody:x:65534:
"""
_FOLDERS = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o755, "root": 0o700, "run": 0o755,
    "sys": 0o755, "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755, "sbin": 0o755,
    "var": 0o755, "var/spool": 0o755, "var/tmp": 0o1777, "var/www": 0o755,
}  # fmt: skip


def find_busybox() -> str:
    """The static busybox of this host. Raises Unavailable."""
    for name in ("/usr/bin/busybox", "/bin/busybox", shutil.which("busybox") or ""):
        if name and Path(name).is_file():
            return name
    raise Unavailable("busybox is not installed", hint="apt-get install busybox-static")


def applets(busybox: str) -> list[str]:
    """The names that a busybox answers to. Blocks for some milliseconds."""
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, timeout=10, check=True).stdout
    return sorted({name for name in listed.split() if name and "/" not in name and name != "busybox"})


def files(busybox: str, names: list[str]) -> list[FileEntry]:
    """The root file system: busybox in /bin, each applet a hard link to it, and the files that programs expect in /etc."""
    folders = [FileEntry(path=path, folder=True, mode=mode) for path, mode in _FOLDERS.items()]
    program = FileEntry(path="bin/busybox", source=busybox, mode=0o755)
    links = [FileEntry(path=f"bin/{name}", hard_link="bin/busybox", mode=0o755) for name in names]
    settings = {
        "etc/passwd": _USERS,
        "etc/group": _GROUPS,
        "etc/shadow": "root:*:::::::\nnobody:*:::::::\n",
        "etc/nsswitch.conf": "hosts: files dns\n",
        "etc/services": "http 80/tcp\nhttps 443/tcp\ndomain 53/udp\n",
    }
    texts = [
        FileEntry(path=path, data=text.encode(), mode=0o600 if path == "etc/shadow" else 0o644)
        for path, text in settings.items()
    ]
    env = FileEntry(path="usr/bin/env", link="../../bin/env")
    return [*folders, program, *links, *texts, env]
