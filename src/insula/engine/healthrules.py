"""What health checks mean: pure decisions, the Docker Engine's rules.

Sources: the Dockerfile reference (HEALTHCHECK), the Engine API reference (`HealthConfig`, `Health`) and what dockerd does: the
log holds five results, their output is cut at 4096 bytes, and a container whose checks have stopped counts as unhealthy.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
from msgspec import Struct

from insula import clock
from insula.engine.contract import Health, HealthResult
from insula.errors import Invalid
from insula.images.contract import ImageConfig
from insula.model.instance import HealthCheck, InstanceConfig

MOST_OUTPUT = 4096
MOST_RESULTS = 5
NOT_RUN = -1
LEAST_NS = 1_000_000
_SECOND_NS = 1_000_000_000
_INTERVAL_NS, _TIMEOUT_NS, _START_INTERVAL_NS, _RETRIES = 30 * _SECOND_NS, 30 * _SECOND_NS, 5 * _SECOND_NS, 3
_DEFAULT_SHELL = ("/bin/sh", "-c")


class Check(Struct, frozen=True, kw_only=True):
    """A check with everything decided. Spans in seconds."""

    args: tuple[str, ...]
    interval_s: float
    timeout_s: float
    start_period_s: float
    start_interval_s: float
    retries: int

    def pause_s(self, health: Health, *, running_s: float) -> float:
        """How long to wait before the next check."""
        starting = health.status == "starting" and running_s < self.start_period_s
        return self.start_interval_s if starting else self.interval_s


def check_of(config: InstanceConfig, image: ImageConfig) -> Check | None:
    """The check of an instance; None when there is none. A pod's image has none that counts: Kubernetes has probes."""
    asked = merged(config.health, image_check(image) if config.owner == "docker" else None)
    args = _arguments(asked.test, config.shell or _image_shell(image)) if asked else ()
    if asked is None or not args:
        return None
    return Check(
        args=args,
        interval_s=(asked.interval_ns or _INTERVAL_NS) / _SECOND_NS,
        timeout_s=(asked.timeout_ns or _TIMEOUT_NS) / _SECOND_NS,
        start_period_s=asked.start_period_ns / _SECOND_NS,
        start_interval_s=(asked.start_interval_ns or _START_INTERVAL_NS) / _SECOND_NS,
        retries=asked.retries or _RETRIES,
    )


def merged(asked: HealthCheck | None, image: HealthCheck | None) -> HealthCheck | None:
    """What was asked, and the image's value for all that it leaves out."""
    if asked is None or image is None:
        return asked or image
    unsaid = {name: getattr(image, name) for name in HealthCheck.__struct_fields__ if not getattr(asked, name)}
    return msgspec.structs.replace(asked, **unsaid)


def image_check(image: ImageConfig) -> HealthCheck | None:
    """The image's own, in its words; what an image gets wrong counts as nothing."""
    words: dict[str, Any] = image.healthcheck or {}
    test = words.get("Test")
    if not isinstance(test, list) or not all(isinstance(word, str) for word in test):
        return None

    def number(name: str) -> int:
        value = words.get(name)
        return value if isinstance(value, int) and value > 0 else 0

    return HealthCheck(
        test=tuple(test),
        interval_ns=number("Interval"),
        timeout_ns=number("Timeout"),
        start_period_ns=number("StartPeriod"),
        start_interval_ns=number("StartInterval"),
        retries=number("Retries"),
    )


def _image_shell(image: ImageConfig) -> tuple[str, ...]:
    shell = (image.raw.get("config") or {}).get("Shell")
    return tuple(map(str, shell)) if isinstance(shell, list) else ()


def _arguments(test: tuple[str, ...], shell: tuple[str, ...]) -> tuple[str, ...]:
    """Of a kind that nobody knows there is no check, as with dockerd."""
    kind, *words = test or ("NONE",)
    match kind:
        case "CMD":
            return tuple(words)
        case "CMD-SHELL":
            return (*(shell or _DEFAULT_SHELL), *words) if words else ()
        case _:
            return ()


def refuse_check(check: HealthCheck | None) -> None:
    """Raises Invalid with the Docker Engine's sentences."""
    spans = (("Interval", "interval_ns"), ("Timeout", "timeout_ns"), ("StartPeriod", "start_period_ns"))
    for word, name in (*spans, ("StartInterval", "start_interval_ns")):
        if check is not None and getattr(check, name) != 0 and getattr(check, name) < LEAST_NS:
            raise Invalid(f"{word} in Healthcheck cannot be less than 1ms", field=f"health.{name}")
    if check is not None and check.retries < 0:
        raise Invalid("Retries in Healthcheck cannot be negative", field="health.retries")


# --- from one state to the next -----------------------------------------------------------------------------------


def begun(check: Check | None, before: Health) -> Health:
    """At a start: what earlier runs logged stays."""
    return Health(status="starting", log=before.log) if check else Health()


def stopped(health: Health) -> Health:
    """Nobody checks any more."""
    return msgspec.structs.replace(health, status="unhealthy") if health.status else health


def judged(check: Check, health: Health, result: HealthResult, *, started_at: str) -> Health:
    """After one result. A failure within the start period does not count until the first success."""
    log = (*health.log, result)[-MOST_RESULTS:]
    if result.exit_code == 0:
        return Health(status="healthy", log=log)
    if health.status == "starting" and _after(started_at, result.start) < timedelta(seconds=check.start_period_s):
        return msgspec.structs.replace(health, log=log)
    streak = health.failing_streak + 1
    status = "unhealthy" if streak >= check.retries else health.status
    return Health(status=status, failing_streak=streak, log=log)


def _after(begin: str, moment: str) -> timedelta:
    return clock.parse_rfc3339(moment) - clock.parse_rfc3339(begin)


def output_text(data: bytes) -> str:
    """What a check wrote, cut."""
    text = data[:MOST_OUTPUT].decode(errors="replace")
    return f"{text}..." if len(data) > MOST_OUTPUT else text


def timeout_text(timeout_s: float, output: str) -> str:
    """What is said of a check that took too long."""
    said = f"Health check exceeded timeout ({go_duration(timeout_s)})"
    return f"{said}: {output}" if output else said


def go_duration(seconds: float) -> str:
    """A span as Go prints it: `1m30s`, `1.5s`, `250ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
