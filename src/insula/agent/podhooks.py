"""postStart and preStop: what a container wants done right after its start and right before its end."""

from __future__ import annotations

import asyncio

from insula.agent.podcontainers import ContainerRecord
from insula.agent.probes import NodeProber, Target
from insula.agent.services import Services
from insula.errors import HostFault, InsulaError
from insula.model.resource import Resource

MINIMUM_GRACE_S = 2.0


async def after_start(services: Services, container: Resource, record: ContainerRecord, address: str) -> None:
    """Run postStart. A hook that fails kills the container. Raises HostFault."""
    action = (container.get("lifecycle") or {}).get("postStart")
    if not action or record.current is None:
        return
    fault = await _run(services, action, Target(record.current, container, address))
    if fault:
        await services.engine.stop(record.current.id, timeout_s=0)
        raise HostFault(f"PostStartHook failed: {fault}")


async def before_stop(
    services: Services, container: Resource, record: ContainerRecord, address: str, grace_s: float
) -> float:
    """Run preStop within the grace period. Returns the seconds of it that are left for the container itself."""
    action = (container.get("lifecycle") or {}).get("preStop")
    if not action or record.current is None or grace_s <= 0:
        return grace_s
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(grace_s):
            await _run(services, action, Target(record.current, container, address))
    except TimeoutError:
        return MINIMUM_GRACE_S
    return max(grace_s - (asyncio.get_running_loop().time() - began), MINIMUM_GRACE_S)


async def _run(services: Services, action: Resource, target: Target) -> str | None:
    """Why the hook failed, or None."""
    if pause := action.get("sleep"):
        await asyncio.sleep(float(pause["seconds"]))
        return None
    try:
        return await NodeProber(services.engine)(action, target)
    except (OSError, InsulaError) as fault:
        return str(fault)
