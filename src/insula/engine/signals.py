"""Names of signals, as the Docker API takes them."""

from __future__ import annotations

import signal
from types import MappingProxyType

from insula.errors import Invalid

_RTMIN, _RTMAX = 34, 64  # glibc's, what Docker's names count from
_ALIASES = MappingProxyType({"CLD": "CHLD", "POLL": "IO", "IOT": "ABRT"})


def parse_signal(text: str) -> int:
    """`KILL`, `SIGKILL`, `9`, `RTMIN+3` as a number. Raises Invalid with the Docker Engine's sentence."""
    word = text.strip().upper().removeprefix("SIG")
    if word.isascii() and word.isdigit():
        number = int(word)
        if 0 < number <= _RTMAX:
            return number
        raise Invalid(f"invalid signal: {text}", field="signal")
    for base, start in (("RTMIN", _RTMIN), ("RTMAX", _RTMAX)):
        if word.startswith(base):
            return _realtime(text, word.removeprefix(base), start)
    member = signal.Signals.__members__.get("SIG" + _ALIASES.get(word, word))
    if member is None:
        raise Invalid(f"invalid signal: {text}", field="signal")
    return int(member)


def _realtime(text: str, offset: str, start: int) -> int:
    try:
        number = start + (int(offset) if offset else 0)
    except ValueError:
        number = 0
    if not _RTMIN <= number <= _RTMAX:
        raise Invalid(f"invalid signal: {text}", field="signal")
    return number
