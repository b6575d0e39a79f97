"""What the drivers and the networks find out by trying: one line per level, one per note."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from insula import drivers
from insula.cli.doctor.finding import UNTRIED, Finding, State, Subject
from insula.drivers.driver import Driver, Probe
from insula.errors import InsulaError
from insula.networks import probe as networks
from insula.networks.kernel import Kernel

NEEDED = "oci"  # without containers Insula does not start what people expect of it
_QUIET_FACTS = ("reason", "binary", "runtime_path")


async def findings(subject: Subject) -> list[Finding]:
    """Runs a container and a tiny machine."""
    if not subject.root:
        return [_untried("level", name) for name in drivers.available()] + [_untried("network", "networks")]
    levels, notes = await asyncio.gather(_levels(), _networks(subject))
    return [*levels, *notes]


def _untried(area: str, name: str) -> Finding:
    return Finding(area=area, name=name, state=State.UNKNOWN, found=UNTRIED)


async def _levels() -> list[Finding]:
    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="insula-doctor-")
    try:
        made = [factory(Path(folder)) for factory in drivers.available().values()]
        probes = await asyncio.gather(*(driver.probe() for driver in made))
        for driver in made:
            await driver.close()
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return [line for driver, probe in zip(made, probes, strict=True) for line in judge(driver, probe)]


def judge(driver: Driver, probe: Probe) -> list[Finding]:
    """A driver's own words: whether it works at all, then what it notes."""
    name = f"{driver.level} {driver.name}"
    facts = ", ".join(f"{key} {value}" for key, value in probe.facts.items() if key not in _QUIET_FACTS)
    if not probe.available:
        state = State.MISSING if driver.name == NEEDED else State.LOST
        why = " ".join(probe.notes) or "it does not say why"
        return [Finding(area="level", name=name, state=state, found=why, lost=driver.summary)]
    works = Finding(area="level", name=name, state=State.OK, found=f"works: {probe.version}, {facts}".rstrip(", "))
    worse = State.OK if probe.facts.get("accelerator") == "kvm" else State.LOST
    return [works, *(Finding(area="level", name=name, state=worse, found=note) for note in probe.notes)]


async def _networks(subject: Subject) -> list[Finding]:
    kernel = Kernel(subject.paths.prefix, subject.paths.table)
    try:
        notes = await kernel.call(networks.notes, kernel, mend=subject.running is not None)
    except (InsulaError, OSError) as fault:
        notes = [f"the networks cannot be looked at: {fault}"]
    finally:
        await kernel.close()
    return judge_notes(notes)


def judge_notes(notes: Sequence[str]) -> list[Finding]:
    """The networks' sentences carry their own advice."""
    if not notes:
        return [Finding(area="network", name="networks", state=State.OK, found="nothing stands in their way")]
    return [Finding(area="network", name="networks", state=State.LOST, found=note) for note in notes]
