"""The host's own firewall stays in charge: what docs/networking.md promises to an administrator."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from host.networks_support import HOST, OUTSIDE, World, ask, listening, lookup, make_world, run_in
from insula.errors import Unavailable
from insula.model.instance import PortMapping
from insula.networks.contract import Endpoint, Network
from insula.networks.manager import NodeNetworks

pytestmark = pytest.mark.root

PAGE = Path(__file__).parents[2] / "docs/networking.md"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made


@pytest.fixture
async def nets(world: World) -> AsyncIterator[NodeNetworks]:
    async with world.networks() as opened:
        yield opened


async def served(nets: NodeNetworks, port: int = 8080) -> Endpoint:
    endpoint = await nets.connect("default", "a", netns=await nets.make_namespace("a"))
    await nets.publish("a", endpoint.address, [PortMapping(container_port=80, host_port=port)])
    return endpoint


async def admin(world: World, rules: str) -> None:
    """Rules of the administrator's own, in a table of their own."""
    (world.folder / "admin.nft").write_text(rules)
    code, told = await run_in(world.host, "nft", "-f", str(world.folder / "admin.nft"))
    assert code == 0, told


async def reached(asker: str | Path, port: int = 8080) -> bool:
    try:
        await ask(asker, HOST, port, deadline_s=0.5)
    except (Unavailable, OSError):
        return False
    return True


async def test_a_forward_rule_closes_a_published_port(nets: NodeNetworks, world: World) -> None:
    a = await served(nets)
    example = re.search(r"```\n(table inet admin .*?)```", PAGE.read_text(), re.S)
    assert example is not None
    async with listening(a.netns, a.address, 80):
        await admin(world, example[1])
        assert await reached(world.outside)  # from the network that may
        await admin(world, "delete table inet admin\n" + example[1].replace("192.0.2.0/24", "203.0.113.0/24"))
        assert not await reached(world.outside)
        assert await reached(world.host)


async def test_an_input_rule_does_not(nets: NodeNetworks, world: World) -> None:
    a = await served(nets)
    await admin(
        world,
        "table inet admin { chain input { type filter hook input priority filter; policy accept; tcp dport 8080 drop; }\n}",
    )
    async with listening(a.netns, a.address, 80):
        assert await reached(world.outside)


async def test_an_early_rule_sees_the_port_that_was_asked_for(nets: NodeNetworks, world: World) -> None:
    a = await served(nets)
    await admin(
        world,
        "table inet admin { chain early { type filter hook prerouting priority mangle; policy accept; "
        'iifname "up0" tcp dport 8080 drop; }\n}',
    )
    async with listening(a.netns, a.address, 80):
        assert not await reached(world.outside)
        assert await reached(world.host)


async def test_a_policy_of_dropping_holds_until_it_is_opened(nets: NodeNetworks, world: World) -> None:
    a = await served(nets)
    b = await nets.connect("default", "b", netns=await nets.make_namespace("b"))
    await admin(
        world,
        "table inet admin { chain forward { type filter hook forward priority filter; policy drop; "
        "ct state established,related accept; }\n}",
    )
    async with (
        listening(a.netns, a.address, 80),
        listening(b.netns, b.address, 80),
        listening(world.outside, OUTSIDE, 81),
    ):
        assert not await reached(world.outside)
        with pytest.raises((Unavailable, OSError)):
            await ask(a.netns, OUTSIDE, 81, deadline_s=0.5)
        (note,) = [each for each in await nets.probe() if "inet admin forward" in each]
        for command in re.findall(r"nft (insert rule [^;]+)", note):
            code, told = await run_in(world.host, "nft", command.replace("'", "").strip())
            assert code == 0, told
        assert await reached(world.outside)
        assert await ask(a.netns, OUTSIDE, 81) == HOST
        with pytest.raises((Unavailable, OSError)):  # it is open for Insula's segments; Insula's own chain decides on
            await ask(world.outside, b.address, 80, deadline_s=0.5)


async def test_a_flushed_table_comes_back_with_the_next_change(nets: NodeNetworks, world: World) -> None:
    a = await served(nets)
    await run_in(world.host, "nft", "flush", "ruleset")
    await nets.create(Network(id="", name="next"))
    async with listening(a.netns, a.address, 80):
        assert await reached(world.outside)


async def test_no_names_where_the_hosts_input_drops(nets: NodeNetworks, world: World) -> None:
    await nets.create(Network(id="", name="web"))
    a = await nets.connect("web", "a", netns=await nets.make_namespace("a"), aliases=["a"])
    assert await lookup(a.netns, a.gateway, "a") == [a.address]
    await admin(
        world,
        "table inet admin { chain input { type filter hook input priority filter; policy drop; iif lo accept; }\n}",
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await lookup(a.netns, a.gateway, "a")
    assert any("inet admin input" in note for note in await nets.probe())
