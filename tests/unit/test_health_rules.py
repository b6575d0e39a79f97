"""What health checks mean: merging with the image, the next status, texts."""

from __future__ import annotations

import pytest

from insula.engine.contract import Health, HealthResult
from insula.engine.healthrules import (
    begun,
    check_of,
    go_duration,
    judged,
    output_text,
    refuse_check,
    stopped,
    timeout_text,
)
from insula.errors import Invalid
from insula.images.contract import ImageConfig
from insula.model.instance import HealthCheck, InstanceConfig

SECOND = 1_000_000_000
STARTED = "2026-01-01T00:00:00.000000000Z"


def config(health: HealthCheck | None = None, **more: object) -> InstanceConfig:
    return InstanceConfig(name="x", health=health, **more)  # type: ignore[arg-type]


def image(test: list[str], shell: list[str] | None = None, **words: int) -> ImageConfig:
    return ImageConfig(healthcheck={"Test": test, **words}, raw={"config": {"Shell": shell}})


def result(code: int, at: str = "2026-01-01T00:00:01Z") -> HealthResult:
    return HealthResult(start=at, end=at, exit_code=code)


@pytest.mark.parametrize(
    ("asked", "own", "args"),
    [
        (None, None, None),
        (None, image(["CMD", "a", "b"]), ("a", "b")),
        (None, image(["CMD-SHELL", "a b"]), ("/bin/sh", "-c", "a b")),
        (None, image(["CMD-SHELL", "a b"], ["bash", "-ec"]), ("bash", "-ec", "a b")),
        (None, image(["NONE"]), None),
        (None, image(["WHATEVER", "x"]), None),
        (HealthCheck(test=("NONE",)), image(["CMD", "a"]), None),
        (HealthCheck(test=("CMD", "mine")), image(["CMD", "a"]), ("mine",)),
        (HealthCheck(interval_ns=SECOND), image(["CMD", "a"]), ("a",)),
        (HealthCheck(interval_ns=SECOND), None, None),
        (HealthCheck(test=("CMD",)), None, None),
    ],
)
def test_which_check_is_run(asked: HealthCheck | None, own: ImageConfig | None, args: tuple[str, ...] | None) -> None:
    check = check_of(config(asked), own or ImageConfig())
    assert (check.args if check else None) == args


def test_what_is_left_out_is_the_images_then_the_default() -> None:
    check = check_of(
        config(HealthCheck(retries=7)), image(["CMD", "a"], Interval=2 * SECOND, StartPeriod=SECOND, Retries=1)
    )
    assert check is not None
    assert (check.interval_s, check.timeout_s, check.start_period_s, check.start_interval_s) == (2, 30, 1, 5)
    assert check.retries == 7
    assert check_of(config(owner="kube"), image(["CMD", "a"])) is None


def test_the_status_follows_the_results() -> None:
    check = check_of(config(HealthCheck(test=("CMD", "a"), retries=2, start_period_ns=10 * SECOND)), ImageConfig())
    assert check is not None
    health = begun(check, Health(log=(result(0),)))
    assert (health.status, len(health.log)) == ("starting", 1)
    early = judged(check, health, result(1), started_at=STARTED)
    assert (early.status, early.failing_streak, len(early.log)) == ("starting", 0, 2)
    late = judged(check, health, result(1, "2026-01-01T00:00:10Z"), started_at=STARTED)
    assert (late.status, late.failing_streak) == ("starting", 1)
    well = judged(check, late, result(0), started_at=STARTED)
    assert (well.status, well.failing_streak) == ("healthy", 0)
    once = judged(check, well, result(1), started_at=STARTED)  # after a success the start period is over
    assert (once.status, once.failing_streak) == ("healthy", 1)
    twice = judged(check, once, result(-1), started_at=STARTED)
    assert (twice.status, twice.failing_streak) == ("unhealthy", 2)
    assert len(judged(check, twice, result(3), started_at=STARTED).log) == 5
    assert stopped(well).status == "unhealthy" and stopped(Health()).status == ""


def test_the_pause_is_shorter_while_it_starts() -> None:
    check = check_of(
        config(HealthCheck(test=("CMD", "a"), start_period_ns=10 * SECOND, start_interval_ns=SECOND // 2)),
        ImageConfig(),
    )
    assert check is not None
    assert check.pause_s(Health(status="starting"), running_s=1) == 0.5
    assert check.pause_s(Health(status="starting"), running_s=11) == 30
    assert check.pause_s(Health(status="healthy"), running_s=1) == 30


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        (HealthCheck(interval_ns=1), "Interval in Healthcheck cannot be less than 1ms"),
        (HealthCheck(timeout_ns=-1), "Timeout in Healthcheck cannot be less than 1ms"),
        (HealthCheck(start_period_ns=999_999), "StartPeriod in Healthcheck cannot be less than 1ms"),
        (HealthCheck(start_interval_ns=1), "StartInterval in Healthcheck cannot be less than 1ms"),
        (HealthCheck(retries=-1), "Retries in Healthcheck cannot be negative"),
    ],
)
def test_refusals(check: HealthCheck, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        refuse_check(check)


def test_texts() -> None:
    assert output_text(b"x" * 4096) == "x" * 4096
    assert output_text(b"x" * 4097) == "x" * 4096 + "..."
    assert output_text(b"\xff") == "\ufffd"
    assert timeout_text(1.5, "") == "Health check exceeded timeout (1.5s)"
    assert timeout_text(90, "out") == "Health check exceeded timeout (1m30s): out"
    assert [go_duration(each) for each in (0.25, 1, 60, 3600.5)] == ["250ms", "1s", "1m0s", "1h0m0.5s"]
