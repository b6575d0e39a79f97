"""What the agent tells of the processes inside, read. Pure; it is a stranger's words, so what does not fit is left out."""

from __future__ import annotations

import os

from insula.drivers.driver import ProcessRow

_TICKS = 100  # a second, to user space, on every architecture that we run (USER_HZ)
_PAGE = 4096
_LONGEST = 4096


def read_rows(answers: list[bytes]) -> list[ProcessRow]:
    """Rows in the order of their pids."""
    rows = [row for answer in answers if (row := read_row(answer))]
    return sorted(rows, key=lambda row: row.pid)


def read_row(answer: bytes) -> ProcessRow | None:
    """One process: `pid=`, `uid=`, `up=`, `stat=` (proc_pid_stat(5)) and `cmd=`, with NULs between. None when it is not that."""
    fields = dict(part.partition("=")[::2] for part in answer.decode(errors="replace").split("\0"))
    lead, _, rest = fields.get("stat", "").rpartition(")")
    words = rest.split()
    try:
        numbers = [int(word) for word in words[1:22]]
        name = lead.partition("(")[2]
        return ProcessRow(
            pid=int(fields["pid"]),
            uid=int(fields["uid"]),
            name=name[:64],
            command=_printable(fields.get("cmd", "")) or f"[{name[:64]}]",
            state=words[0][:1],
            parent=numbers[0],
            terminal=_terminal(numbers[3]),
            cpu_s=(numbers[10] + numbers[11]) / _TICKS,
            age_s=max(0.0, int(fields["up"]) - numbers[18] / _TICKS),
            virtual_bytes=numbers[19],
            memory_bytes=numbers[20] * _PAGE,
        )
    except (KeyError, ValueError, IndexError):
        return None


def _terminal(device: int) -> str:
    """A pseudo-terminal's name; every other one is none of an image's."""
    major, minor = os.major(device & 0xFFFFFFFF), os.minor(device & 0xFFFFFFFF)
    return f"pts/{minor}" if 136 <= major <= 143 else ""


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text.strip())[:_LONGEST]
