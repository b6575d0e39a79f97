"""The agent of one node, put together: register the node, take back what runs, then follow API and engine."""

from __future__ import annotations

from pathlib import Path

from insula.agent import node
from insula.agent.machines import Machines
from insula.agent.mirror import Mirror
from insula.agent.pods import Pods
from insula.agent.server import Server
from insula.agent.services import Services
from insula.tasks import Tasks


class Agent:
    """Use `start` and `close`. Closing leaves every workload running."""

    def __init__(self, services: Services, socket: Path) -> None:
        self._services = services
        self._socket = socket
        self._tasks = Tasks("agent")
        self._server = Server(services)
        self._pods = Pods(services, self._tasks)
        self._machines = Machines(services, self._tasks)
        self._mirror = Mirror(services, self._tasks)

    async def start(self) -> None:
        """Serve streams, register the node, adopt and follow workloads."""
        self._services.folder.mkdir(parents=True, exist_ok=True)
        self._pods.subscribe()
        self._machines.subscribe()
        await self._services.caches.start()
        await self._server.start(self._socket)
        await self._pods.start()
        await self._machines.start()
        await self._mirror.start()
        await node.register(self._services)
        self._tasks.spawn(node.tell_levels(self._services), "levels")

    async def close(self) -> None:
        """Let go; instances go on."""
        await self._server.close()
        await self._tasks.close()
        await self._services.events.close()
