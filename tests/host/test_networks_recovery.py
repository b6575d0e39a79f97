"""Crash-only: killed at every step, rebooted, closed and opened again; and nothing left after `destroy`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from host.networks_support import HOST, OUTSIDE, World, ask, listening, make_world, run_in
from insula.errors import HostFault, NotFound
from insula.host import netlink, netns, nft
from insula.model.instance import PortMapping
from insula.networks.contract import Network
from insula.networks.ledger import Ledger
from insula.networks.manager import NodeNetworks

pytestmark = pytest.mark.root
VICTIM = Path(__file__).with_name("networks_victim.py")
STEPS = 32  # more than the victim takes: the last ones run to its end


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made


def interfaces(world: World) -> set[str]:
    with netns.inside(world.host), netlink.Rtnl() as rtnl:
        return {link.name for link in rtnl.links() if link.name.startswith("it")}


def elements(world: World) -> list[object]:
    with netns.inside(world.host):
        tables = nft.Nft()
        try:
            told = tables.list("map inet itest publish_any")
        finally:
            tables.close()
    return next(entry["map"].get("elem", []) for entry in told if "map" in entry)


async def victim(world: World, step: int) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(VICTIM), str(world.folder), str(world.host), str(step), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    return told.decode().split()


async def consistent(nets: NodeNetworks, world: World, owners: set[str]) -> None:
    """The kernel holds what the ledger says and nothing else."""
    networks, endpoints = await nets.list(), await nets.endpoints()
    expected = {n.bridge for n in networks if n.bridge} | {e.host_interface for e in endpoints}
    assert await asyncio.to_thread(interfaces, world) == expected
    assert {e.owner for e in endpoints} <= owners
    published = [p for owner in owners for p in await nets.published(owner)]
    assert len(await asyncio.to_thread(elements, world)) == len(published)
    bound = {path.name for path in (world.folder / "run" / "netns").iterdir()}
    assert bound <= owners
    ledger = msgspec.json.decode((world.folder / "state" / "networks.json").read_bytes(), type=Ledger)
    assert {n.id for n in ledger.networks} == {n.id for n in networks}
    assert ledger.endpoints == list(endpoints) and ledger.published == published


@pytest.mark.parametrize("step", range(1, STEPS))
async def test_killed_at_any_step(world: World, step: int) -> None:
    told = await victim(world, step)
    nets = await world.open()
    try:
        keep = {"a", "vm"} if step % 2 else {"vm"}
        await nets.recover(sorted(keep))
        await consistent(nets, world, keep)
        if "connect" in told and "disconnect" not in told and "a" in keep:
            (endpoint,) = await nets.endpoints(owner="a")
            async with listening(endpoint.netns, endpoint.address, 80):
                assert await ask(world.host, endpoint.address, 80)
                if "publish" in told and "unpublish" not in told:
                    assert await ask(world.outside, HOST, 8080) == OUTSIDE
        if "create" in told and "disconnect-tap" not in told:
            assert (await nets.get("web")).bridge == "itcustom", "acknowledged, so it is there"
        # The whole story can be told again, whatever was half done.
        path = await nets.make_namespace("a")
        endpoint = await nets.connect("default", "a", netns=path)
        await nets.publish("a", endpoint.address, [PortMapping(container_port=80, host_port=8090)])
        async with listening(path, endpoint.address, 80):
            assert await ask(world.outside, HOST, 8090) == OUTSIDE
    finally:
        await nets.destroy()
    assert await asyncio.to_thread(interfaces, world) == set()


async def test_the_last_step_is_reached(world: World) -> None:
    assert "end" in await victim(world, STEPS + 100)
    nets = await world.open()
    await nets.recover([])
    await consistent(nets, world, set())
    await nets.destroy()


async def test_closed_networks_go_on_and_are_taken_back(world: World) -> None:
    first = await world.open()
    path = await first.make_namespace("a")
    a = await first.connect("default", "a", netns=path)
    await first.publish("a", a.address, [PortMapping(container_port=80, host_port=8080)])
    tap = await first.connect_tap("default", "vm")
    await first.close()
    async with listening(path, a.address, 80):
        assert await ask(world.outside, HOST, 8080) == OUTSIDE
        async with world.networks() as second:
            await second.recover(["a", "vm"])
            assert list(await second.endpoints()) == [a, tap]
            assert await ask(world.outside, HOST, 8080) == OUTSIDE
            with pytest.raises(OSError, match="in use"):
                async with listening(world.host, "0.0.0.0", 8080):
                    pass


async def test_the_address_of_a_machine_is_remembered_over_restarts(world: World) -> None:
    first = await world.open()
    await first.connect_tap("default", "other")
    tap = await first.connect_tap("default", "vm-1", mac="02:49:00:00:00:07")
    await first.disconnect("vm-1")
    await first.close()
    async with world.networks() as second:
        await second.recover(["other"])
        again = await second.connect_tap("default", "vm-2", mac="02:49:00:00:00:07")
        assert again.address == tap.address


async def test_what_the_kernel_lost_is_made_again(world: World) -> None:
    first = await world.open()
    await first.create(Network(id="", name="web"))
    path = await first.make_namespace("a")
    a = await first.connect("web", "a", netns=path)
    tap = await first.connect_tap("web", "vm")
    await first.close()
    bridge = (await first.get("web")).bridge
    for name in (bridge, a.host_interface, tap.tap):
        code, told = await run_in(world.host, "ip", "link", "del", name)
        assert code == 0, told
    await run_in(world.host, "nft", "delete", "table", "inet", "itest")
    async with world.networks() as second:
        await second.recover(["a", "vm"])
        await consistent(second, world, {"a", "vm"})
        code, told = await run_in(path, "busybox", "ping", "-c1", "-W2", a.gateway)
        assert code == 0, told


async def test_after_a_reboot(world: World, tmp_path: Path) -> None:
    """Everything in the kernel is gone: networks are made again, end points wait for their instances to start anew."""
    first = await world.open()
    web = await first.create(Network(id="", name="web"))
    path = await first.make_namespace("a")
    a = await first.connect("web", "a", netns=path)
    await first.publish("a", a.address, [PortMapping(container_port=80, host_port=8080)])
    tap = await first.connect_tap("web", "vm")
    await first.close()
    netns.unbind(Path(path))
    Path(path).touch()
    (tmp_path / "next").mkdir()
    with make_world(tmp_path / "next") as rebooted:
        rebooted.folder = world.folder
        async with rebooted.networks() as second:
            await second.recover(["a", "vm"])
            assert (await second.get("web")) == web
            assert list(await second.endpoints()) == [tap]
            assert await second.published("a") == []
            await consistent(second, rebooted, {"a", "vm"})
            again = await second.connect("web", "a", netns=await second.make_namespace("a"))
            async with listening(again.netns, again.address, 80):
                assert await ask(rebooted.host, again.address, 80)


async def test_destroy_leaves_nothing_and_keeps_user_networks(world: World) -> None:
    nets = await world.open()
    await nets.create(Network(id="", name="web"))
    path = await nets.make_namespace("a")
    a = await nets.connect("web", "a", netns=path)
    await nets.publish("a", a.address, [PortMapping(container_port=80, host_port=8080)])
    await nets.connect_tap("default", "vm")
    await nets.destroy()
    assert await asyncio.to_thread(interfaces, world) == set()
    _, rules = await run_in(world.host, "nft", "list", "ruleset")
    assert rules.strip() == ""
    assert list((world.folder / "run" / "netns").iterdir()) == []
    async with world.networks() as again:
        assert (await again.get("web")).name == "web"
        assert list(await again.endpoints()) == []


async def test_a_damaged_ledger_is_told_and_kept(world: World) -> None:
    (world.folder / "state").mkdir()
    ledger = world.folder / "state" / "networks.json"
    ledger.write_text('{"networks": [')
    with pytest.raises(HostFault, match="Move it away"):
        await world.open()
    assert ledger.read_text() == '{"networks": ['


async def test_a_failing_connect_leaves_nothing(world: World) -> None:
    async with world.networks() as nets:
        before = await asyncio.to_thread(interfaces, world)
        with pytest.raises((NotFound, OSError)):
            await nets.connect("default", "a", netns=str(world.folder / "nowhere"))
        path = await nets.make_namespace("b")
        await run_in(path, "ip", "link", "add", "eth0", "type", "dummy")
        await run_in(path, "ip", "link", "add", "eth0", "type", "bridge")
        with pytest.raises(HostFault, match="refused"):
            await nets.connect("default", "b", netns=path)
        assert await asyncio.to_thread(interfaces, world) == before
        assert await nets.endpoints() == []
