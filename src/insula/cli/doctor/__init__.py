"""What this machine offers and lacks, and what is lost by it: the facts behind `insula doctor`.

    finding.py      one line of the answer, and what is examined
    host.py         who we are, processor, memory, disk, ports, control groups, capabilities
    features.py     features of the kernel, each tried in namespaces that vanish with a thread
    programs.py     helper programs and the packages that have them
    levels.py       what the drivers' and networks' own probes say
    neighbours.py   other engines on this machine

A check is a row in one of these files. Gathering a fact and judging it are apart, and the judging is pure.
"""

from __future__ import annotations

import asyncio

from insula.cli.doctor import features, host, levels, neighbours, programs
from insula.cli.doctor.finding import Finding, Subject


async def examine(subject: Subject) -> list[Finding]:
    """Everything, in the order in which a person wants to read it."""
    found = await asyncio.gather(
        asyncio.to_thread(host.findings, subject),
        asyncio.to_thread(features.findings, subject),
        asyncio.to_thread(programs.findings),
        levels.findings(subject),
        asyncio.to_thread(neighbours.findings),
    )
    return [finding for part in found for finding in part]
