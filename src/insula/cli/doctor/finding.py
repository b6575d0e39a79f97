"""One line of what `insula doctor` says, and what it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from insula.cli.daemon import Serving
from insula.cli.paths import Paths
from insula.cli.settings import Settings

UNTRIED = "only root can try it"


class State(StrEnum):
    """How it stands."""

    OK = "ok"
    LOST = "lost"  # Insula works without it, and something else does not
    MISSING = "missing"  # Insula does not work without it
    UNKNOWN = "unknown"  # it could not be tried


class Finding(Struct, frozen=True, kw_only=True):
    """One line. `found` is what there is, `lost` what does not work because of it, `advice` what to do."""

    area: str
    name: str
    state: State
    found: str
    lost: str = ""
    advice: str = ""


class Subject(Struct, frozen=True, kw_only=True):
    """Which Insula on this machine is asked about. `fault` says what is wrong with its settings file."""

    paths: Paths
    settings: Settings
    fault: str = ""
    running: Serving | None = None
    root: bool = True


def is_fatal(findings: Sequence[Finding]) -> bool:
    """Whether something is missing that Insula cannot do without."""
    return any(finding.state is State.MISSING for finding in findings)


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    counts = {state: sum(finding.state is state for finding in findings) for state in State}
    verdict = "Insula does not work here yet" if is_fatal(findings) else "Insula works here"
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    return f"{verdict}: {', '.join(parts)}."
