"""Time: the only place that reads the wall clock, so that tests can run on virtual time and stores stay pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta


def now() -> datetime:
    """The present moment, timezone-aware, UTC."""
    return datetime.now(UTC)


def seconds(count: float) -> timedelta:
    """A span of time."""
    return timedelta(seconds=count)


def rfc3339(moment: datetime) -> str:
    """Whole seconds, as Kubernetes' `metav1.Time` writes it: 2026-01-02T03:04:05Z."""
    return (
        moment.astimezone(UTC).isoformat(timespec="seconds")[:19] + "Z"
    )  # strftime would ask for the time zone each time


def rfc3339_micro(moment: datetime) -> str:
    """Microseconds, as Kubernetes' `metav1.MicroTime` writes it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:26] + "Z"


def rfc3339_nano(moment: datetime) -> str:
    """Nine digits after the second, as the Docker Engine writes times."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:26] + "000Z"


def parse_rfc3339(text: str) -> datetime:
    """Read any RFC 3339 time; digits finer than a microsecond are cut. Raises ValueError."""
    head, dot, rest = text.partition(".")
    if dot:
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        text = f"{head}.{digits[:6].ljust(6, '0')}{rest[len(digits) :]}"
    moment = datetime.fromisoformat(text.replace("Z", "+00:00").replace("z", "+00:00"))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass
class Backoff:
    """Exponential waiting: `base_s` doubled at each failure up to `cap_s`, with up to `jitter` of it added."""

    base_s: float = 0.1
    cap_s: float = 300.0
    jitter: float = 0.1
    failures: int = field(default=0, init=False)

    def next_s(self) -> float:
        """Count one more failure and say how long to wait before trying again, in seconds."""
        delay = min(self.cap_s, self.base_s * float(2 ** min(self.failures, 60)))
        self.failures += 1
        return delay * (1 + random.random() * self.jitter)  # noqa: S311 - spreading load, not a secret

    def reset(self) -> None:
        """Forget the failures after a success."""
        self.failures = 0
