"""Running commands and waiting, with deadlines. A benchmark is a sequence, so this is plain blocking code."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

DEADLINE_S = 300.0


class CommandError(Exception):
    """A command that a benchmark needs has failed; the message has its last words."""


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, input: bytes | None = None) -> bytes:
    """Its standard output. Raises CommandError."""
    done = subprocess.run(argv, env=env, input=input, capture_output=True, timeout=DEADLINE_S, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[-2000:]
        raise CommandError(f"{' '.join(argv)} ended with code {done.returncode}: {words}")
    return done.stdout


def timed(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> float:
    """Seconds that a command takes from its start to its end. Raises CommandError."""
    began = time.perf_counter()
    run(argv, env=env)
    return time.perf_counter() - began


def until(true: Callable[[], bool], what: str, *, deadline_s: float = 60.0, every_s: float = 0.02) -> None:
    """Wait for a condition. Raises CommandError when it does not come."""
    end = time.monotonic() + deadline_s
    while not true():
        if time.monotonic() > end:
            raise CommandError(f"{what} did not come about within {deadline_s:g} s")
        time.sleep(every_s)
