"""From the words of runc and crun to a HostFault that says them as dockerd does, with Docker's exit code.

Docker's codes: 127 the command was not found, 126 it cannot be executed (daemon/start.go and daemon/errors.go of moby
translate by the same parts of sentences), 128 anything else that the runtime refused.
"""

from __future__ import annotations

import re
from typing import Literal

from insula.errors import HostFault

NOT_FOUND = ("executable file not found", "no such file or directory", "system cannot find the file specified")
NOT_EXECUTABLE = ("permission denied", "not a directory", "is a directory", "exec format error")
MOUNT_HINT = (
    ": Are you trying to mount a directory onto a file (or vice-versa)? "
    "Check if the specified host path exists and is the expected type"
)
_LOGRUS = re.compile(r'level=(?:error|fatal) msg="((?:[^"\\]|\\.)*)"')


def plain_words(stderr: str) -> str:
    """The runtime's own sentence: runc logs `time=... level=error msg="..."`, crun writes `2026-...Z: sentence`."""
    if found := _LOGRUS.findall(stderr):
        return str(found[-1]).replace('\\"', '"').replace("\\\\", "\\")
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    return re.sub(r"^\d{4}-\d\d-\d\dT[\d:.]+Z?: ", "", lines[-1]) if lines else ""


def exit_code(words: str) -> int:
    """Docker's exit code for what the runtime said."""
    lower = words.lower()
    if any(part in lower for part in NOT_EXECUTABLE):
        return 126
    return 127 if any(part in lower for part in NOT_FOUND) else 128


def refusal(stderr: str, doing: Literal["create", "exec", "start"], command: str | None) -> HostFault:
    """The fault for a create, start or exec that the runtime refused."""
    words = plain_words(stderr) or "the runtime ended without a word"
    lead = "failed to create task for container: failed to create shim task: " if doing != "exec" else ""
    message = f"{lead}OCI runtime {doing} failed: {words}: unknown"
    if "not a directory" in words.lower() and doing != "exec":
        message += MOUNT_HINT
    if "CAP_SYS_RESOURCE" in words or ("setting rlimits" in words and "operation not permitted" in words):
        message += " (Insula lacks CAP_SYS_RESOURCE on this host, so limits cannot be raised)"
    return HostFault(message, command=command, stderr=stderr, code=exit_code(words))
