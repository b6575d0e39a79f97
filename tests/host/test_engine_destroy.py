"""`destroy`: the node goes down as before a reboot. Nothing stays in the kernel, everything stays on disk."""

from __future__ import annotations

import time

import pytest

from host.engine_support import Home, config, home, opened, until
from insula.engine.contract import SandboxConfig
from insula.errors import NotFound, Unavailable
from insula.model.instance import MountConfig, PortMapping, RestartPolicy

pytestmark = pytest.mark.root


@pytest.fixture
def place():
    with home() as made:
        yield made
        assert made.traces() == {}


async def test_the_kernel_is_clean_and_the_next_start_is_as_after_a_reboot(place: Home) -> None:
    policies = {"always": "always", "unless": "unless-stopped", "failure": "on-failure", "once": "no"}
    async with opened(place, destroy=False) as engine:
        box = await engine.make_sandbox(SandboxConfig(id="pod", hostname="pod"))
        for name, policy in policies.items():
            volume = MountConfig(kind="volume", source="data", target="/data")
            restart = RestartPolicy(name=policy)  # type: ignore[arg-type]
            await engine.create(config("sleep", "60", name=name, restart=restart, mounts=(volume,)))
            await engine.start(name)
        ports = (PortMapping(container_port=80),)
        await engine.create(config("sleep", "60", name="net", network_mode="default", ports=ports))
        await engine.create(config("sleep", "60", name="podded", network_mode="sandbox:pod"))
        await engine.create(config("sleep", "60", name="gone", auto_remove=True))
        await engine.create(config("sleep", "60", name="stopped", restart=RestartPolicy(name="unless-stopped")))
        for name in ("net", "podded", "gone", "stopped"):
            await engine.start(name)
        await engine.pause("net")
        await engine.stop("stopped", timeout_s=0)
        await engine.create(config("true", name="created"))
        began = time.monotonic()
        await engine.destroy()
        assert time.monotonic() - began < 10
        assert place.traces() == {}
        with pytest.raises(Unavailable):
            await engine.destroy()
    async with opened(place) as engine:
        for name in ("always", "unless", "failure"):
            back = await until(engine, name, "running")
            assert back.state.restart_count == 1
        for name in ("once", "net", "podded", "stopped"):
            left = (await engine.get(name)).state
            assert (left.name, left.exit_code, left.pid) == ("exited", 137, 0)
        assert (await engine.get("created")).state.name == "created"
        with pytest.raises(NotFound):
            await engine.get("gone")
        again = await engine.get_sandbox("pod")
        assert (again.address, again.netns) == (box.address, box.netns)
        for name in ("once", "net", "podded", "created"):
            assert (await engine.start(name)).state.name in ("running", "exited")


async def test_containers_are_asked_first_when_there_is_time(place: Home) -> None:
    async with opened(place, destroy=False) as engine:
        polite = ("sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done")
        for name, command in (("polite", polite), ("frozen", polite), ("deaf", ("sleep", "60"))):
            await engine.create(config(*command, name=name))
            await engine.start(name)
        for name in ("polite", "frozen"):
            async for _ in engine.logs(name, follow=True):
                break
        await engine.pause("frozen")
        await engine.destroy(grace_s=1.0)
    async with opened(place) as engine:
        codes = [(await engine.get(name)).state.exit_code for name in ("polite", "frozen", "deaf")]
        assert codes == [5, 5, 137]
