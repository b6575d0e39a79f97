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
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z?: ")
_CRUN_NOT_FOUND = re.compile(r"executable file `([^`]*)` not found")
_LOGRUS = re.compile(r'level=(?:error|fatal) msg="((?:[^"\\]|\\.)*)"')


def plain_words(stderr: str) -> str:
    """The runtime's own sentence: runc logs `time=... level=error msg="..."`, crun writes `TIME: sentence`."""
    if found := _LOGRUS.findall(stderr):
        return str(found[-1]).replace('\\"', '"').replace("\\\\", "\\")
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    return _as_runc_says(_TIME.sub("", lines[-1])) if lines else ""


def _as_runc_says(words: str) -> str:
    """crun's sentence in the words of runc, by which the docker command tells its own exit code."""
    if found := _CRUN_NOT_FOUND.search(words):
        name = found[1]
        why = f"stat {name}: no such file or directory" if "/" in name else "executable file not found in $PATH"
        return f'unable to start container process: exec: "{name}": {why}'
    if words.startswith("open executable: "):
        return "unable to start container process: exec: permission denied"
    lead, colon, errno = words.rpartition(": ")
    return f"{lead}{colon}{errno[:1].lower()}{errno[1:]}"


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
    if doing == "exec" and not words.startswith("exec failed"):
        words = f"exec failed: {words}"
    message = f"{lead}OCI runtime {doing} failed: {words}: unknown"
    if "not a directory" in words.lower() and doing != "exec":
        message += MOUNT_HINT
    if "CAP_SYS_RESOURCE" in words or ("setting rlimits" in words and "operation not permitted" in words):
        message += " (Insula lacks CAP_SYS_RESOURCE on this host, so limits cannot be raised)"
    return HostFault(message, command=command, stderr=stderr, code=exit_code(words))
