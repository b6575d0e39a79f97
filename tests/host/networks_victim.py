"""A process that works with networks and is killed by SIGKILL at a chosen step. Run by test_networks_recovery.

    python networks_victim.py FOLDER HOST_NETNS STEP

Steps are counted over everything that changes the world: kernel requests, firewall transactions, ledger writes, namespace
binds; before step STEP is carried out, the process dies. Prints each finished call, `end` when none was fatal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from insula.host import netlink, netns, nft
from insula.model.instance import PortMapping
from insula.networks import ledger
from insula.networks.contract import Network
from insula.networks.manager import NodeNetworks

_steps = 0


def fatal(call: Callable[..., Any], step: int) -> Callable[..., Any]:
    """Count calls of `call` and die before the chosen one."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        global _steps
        _steps += 1
        if _steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return wrapped


async def work(folder: Path, host: str, step: int) -> None:
    options = {"host_netns": host, "prefix": "it", "table": "itest"}
    nets = await NodeNetworks.open(folder / "state", folder / "run", pool_size=1, **options)
    netlink.Rtnl.run = fatal(netlink.Rtnl.run, step)  # type: ignore[method-assign]
    netlink.add_tap = fatal(netlink.add_tap, step)
    nft.Nft.run = fatal(nft.Nft.run, step)  # type: ignore[method-assign]
    ledger._replace = fatal(ledger._replace, step)
    netns.bind = fatal(netns.bind, step)
    netns.unbind = fatal(netns.unbind, step)

    async def told(name: str, call: Any) -> Any:
        result = await call
        print(name, flush=True)
        return result

    await told("create", nets.create(Network(id="", name="web", bridge="itcustom")))
    path = await told("namespace", nets.make_namespace("a"))
    endpoint = await told("connect", nets.connect("web", "a", netns=path, aliases=["a"]))
    await told("publish", nets.publish("a", endpoint.address, [PortMapping(container_port=80, host_port=8080)]))
    await told("tap", nets.connect_tap("web", "vm"))
    await told("unpublish", nets.unpublish("a"))
    await told("disconnect", nets.disconnect("a"))
    await told("drop", nets.drop_namespace("a"))
    await told("disconnect-tap", nets.disconnect("vm"))
    await told("remove", nets.remove("web"))
    print("end", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
