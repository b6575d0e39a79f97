"""`top` of a container whose processes the host does not see, in the form of ps(1): its standard lists `-ef` and `aux`, and
columns of one's own choice by `-o`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from insula.drivers.driver import ProcessRow
from insula.errors import Invalid

_Column = Callable[[ProcessRow, datetime], str]


def _clock(row: ProcessRow) -> str:
    """CPU time as ps shows it: 00:01:02."""
    minutes, seconds = divmod(int(row.cpu_s), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def _started(row: ProcessRow, now: datetime) -> str:
    began = now.astimezone() - timedelta(seconds=row.age_s)
    return began.strftime("%H:%M") if row.age_s < 86400 else began.strftime("%b%d")


def _busy(row: ProcessRow) -> float:
    return 100 * row.cpu_s / row.age_s if row.age_s > 0 else 0.0


_COLUMNS: dict[str, tuple[str, _Column]] = {
    "pid": ("PID", lambda row, _: str(row.pid)),
    "ppid": ("PPID", lambda row, _: str(row.parent)),
    "uid": ("UID", lambda row, _: str(row.uid)),
    "user": ("USER", lambda row, _: "root" if row.uid == 0 else str(row.uid)),
    "c": ("C", lambda row, _: str(int(_busy(row)))),
    "%cpu": ("%CPU", lambda row, _: f"{_busy(row):.1f}"),
    "stime": ("STIME", _started),
    "start": ("START", _started),
    "tty": ("TTY", lambda row, _: row.terminal or "?"),
    "time": ("TIME", lambda row, _: _clock(row)),
    "stat": ("STAT", lambda row, _: row.state),
    "vsz": ("VSZ", lambda row, _: str(row.virtual_bytes // 1024)),
    "rss": ("RSS", lambda row, _: str(row.memory_bytes // 1024)),
    "comm": ("COMMAND", lambda row, _: row.name),
    "cmd": ("CMD", lambda row, _: row.command),
    "args": ("COMMAND", lambda row, _: row.command),
}
_ALIASES = {
    "command": "args",
    "tname": "tty",
    "tt": "tty",
    "cputime": "time",
    "pcpu": "%cpu",
    "state": "stat",
    "s": "stat",
}
_FULL = ("user", "pid", "ppid", "c", "stime", "tty", "time", "cmd")
_BSD = ("user", "pid", "%cpu", "vsz", "rss", "tty", "stat", "start", "time", "args")
_LISTS = {"-ef": _FULL, "-eF": _FULL, "ef": _FULL, "-aux": _BSD, "aux": _BSD, "-e": ("pid", "tty", "time", "comm")}


def list_own(arguments: Sequence[str], rows: Sequence[ProcessRow], now: datetime) -> dict[str, Any]:
    """The titles and the rows. Raises Invalid for other arguments of ps than these."""
    names = _names(arguments)
    chosen = [_COLUMNS[name] for name in names]
    titles = ["UID" if names is _FULL and title == "USER" else title for title, _ in chosen]
    return {"Titles": titles, "Processes": [[show(row, now) for _, show in chosen] for row in rows]}


def _names(arguments: Sequence[str]) -> Sequence[str]:
    words = [word for word in arguments if word]
    if len(words) == 1 and words[0] in _LISTS:
        return _LISTS[words[0]]
    own = [word.removeprefix("-").lstrip("eo") for word in words if word not in ("-e", "-o", "-eo", "o")]
    names = [_ALIASES.get(name, name) for word in own for name in word.lower().split(",") if name]
    if not any(word in ("-o", "-eo", "o") or word.startswith("-o") for word in words) or not names:
        names = ["?"]
    for name in names:
        if name not in _COLUMNS:
            raise Invalid(
                f"ps: the processes of a container with runtime vm are listed by -ef, aux or -o with any of "
                f"{', '.join(sorted(_COLUMNS))}; not by {' '.join(words)!r}",
                field="ps_args",
            )
    return names
